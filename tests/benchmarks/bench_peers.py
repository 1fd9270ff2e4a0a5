"""Eight pieces of the course's work, done by its helpers and by what a learner would otherwise use, in one run.

    python course.py bench                     in an environment of its own, with the peers pinned
    python -m tests.benchmarks.bench_peers     here; peers that are not installed are left out (--rounds, --every, --only, --out)

Against: one forward for each prompt and layer (or patch), as in a plain loop; the same batched, with plain transformers;
TransformerLens; nnsight; and the *floor*: what the arithmetic asks for, counted in token-layers, at the speed of a plain
forward of all prompts. All run on the same prompts of one length, in turn, several times; the table has medians. Slow ways
do every n-th patch, and their time is scaled. Seconds are the processor's, so that other work on the machine does not count.
The answers must agree to 1e-3, or the run ends with an error.
"""

import argparse
import json
import platform
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import torch
from matplotlib.ticker import LogLocator
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from helpers.costs import CostMeter
from helpers.figures import figure
from helpers.fresh_prefix import fresh
from helpers.hooks import ablate_direction, record
from helpers.many_edits import odds_of_each
from helpers.models import dims_of, load_model
from helpers.neurons import SafetyNeuronFinder
from helpers.node_effects import attribute_nodes
from helpers.probing import held_out_decisions, read_at, topic_folds
from helpers.prompts import Batch, chat_text, load_pairs, pad, pad_token_id, tokenize
from helpers.refusal import refusal_score_of
from helpers.sweep import Patch, Sweep, first_tokens
from helpers.twins import Twins
from tests.benchmarks.peers import Lens, Plain, Sight

AGREE = 1e-3


@dataclass
class Work:
    """The model, 16 pairs (32 prompts) of one length, their batches, and the score."""

    model: torch.nn.Module
    tokenizer: object
    pairs: list
    clean: Batch
    donor: Batch
    both: Batch
    score: object

    @property
    def prompts(self) -> list[str]:
        return [p.harmful for p in self.pairs] + [p.harmless for p in self.pairs]

    def odds(self, logits: torch.Tensor) -> torch.Tensor:
        """Refusal log-odds by first tokens, [prompt]."""
        log_p = logits.double().log_softmax(-1)[..., [o[0] for o in self.score.openings]].logsumexp(-1).clamp(max=-1e-6)
        return log_p - torch.log(-torch.expm1(log_p))


def prepare(name: str, count: int = 16) -> Work:
    """The commonest length decides which pairs are taken."""
    model, tokenizer = load_model(name)
    rows = []
    for pair in load_pairs("test") + load_pairs("method"):
        a, b = tokenize(tokenizer, chat_text(tokenizer, [pair.harmful, pair.harmless]))
        if len(a) == len(b):
            rows.append((len(a), pair, a, b))
    length = Counter(row[0] for row in rows).most_common(1)[0][0]
    rows = [row for row in rows if row[0] == length][:count]
    sides = [[row[2] for row in rows], [row[3] for row in rows]]
    batches = [pad(ids, list(range(len(ids))), pad_token_id(tokenizer)) for ids in (*sides, sides[0] + sides[1])]
    return Work(model, tokenizer, [row[1] for row in rows], *batches, first_tokens(refusal_score_of(model, tokenizer)))


@dataclass
class Task:
    """One piece of work. ours() and way(peer, every) give arrays that agree where both have values; floor is in token-layers.

    steps: how many slow calls there are; a way does every n-th, and its time is scaled. loop: the time of the plain loop is
    that of `alone` calls of one prompt each, times their number.
    """

    name: str
    steps: int
    floor: float
    ours: Callable[[], np.ndarray]
    way: Callable[[Plain, int], np.ndarray]
    loop: Callable[[Plain], None]
    loops: int


def patches_task(name: str, work: Work, patches: list[Patch]) -> Task:
    """A sweep: each patch is a forward to the others."""
    width, layers = work.clean.input_ids.shape[1], dims_of(work.model).n_layers
    above = [(layers - p.layer) * (width - p.start) * len(work.pairs) for p in patches]

    def way(peer: Plain, every: int) -> np.ndarray:
        return np.stack([work.odds(peer.patched(p)).numpy() for p in patches[::every]])

    def loop(alone: Plain) -> None:
        p = patches[len(patches) // 2]
        alone.patched(Patch(p.site, p.layer, p.columns[:1], p.values[:1], p.channels))

    def ours() -> np.ndarray:
        return Sweep(work.model, work.clean, work.score).scores(patches).numpy()

    return Task(
        name,
        len(patches),
        2 * layers * width * len(work.pairs) + sum(above),
        ours,
        way,
        loop,
        len(patches) * len(work.pairs),
    )


def tasks_of(work: Work) -> list[Task]:
    """All eight."""
    model, n, width = work.model, len(work.pairs), work.clean.input_ids.shape[1]
    dims = dims_of(model)
    forward = dims.n_layers * width * n  # token-layers of one forward over one side
    donors = {site: Plain(model, work.donor).read(site) for site in ("attn_out", "mlp_out", "resid_pre", "z")}
    last = torch.zeros(n, width, dtype=torch.bool)
    last[:, -1] = True
    differ = (work.clean.input_ids != work.donor.input_ids).int().cummax(-1).values.bool() | last
    parts = [(site, layer) for layer in range(dims.n_layers) for site in ("attn_out", "mlp_out")]
    first = int(differ.any(0).nonzero()[0])
    at = [torch.zeros_like(last) for _ in range(first, width)]
    for place, columns in zip(range(first, width), at, strict=True):
        columns[:, place] = True
    own = [slice(h * dims.d_head, (h + 1) * dims.d_head) for h in range(dims.n_heads)]
    sweeps = [
        patches_task("sweep, all positions", work, [Patch(s, a, differ, donors[s][a]) for s, a in parts]),
        patches_task("sweep, last position", work, [Patch(s, a, last, donors[s][a]) for s, a in parts]),
        patches_task("layer x position map", work,
                     [Patch("resid_pre", a, c, donors["resid_pre"][a]) for a in range(dims.n_layers) for c in at]),
        patches_task("head sweep", work,
                     [Patch("z", a, last, donors["z"][a][..., c], c) for a in range(dims.n_layers) for c in own]),
    ]  # fmt: skip

    def neurons(peer, every):
        return torch.stack([x[:, -1] for x in peer.read("neurons").values()], 1).numpy()

    finder = SafetyNeuronFinder(model, work.tokenizer)
    reading = Task("neurons of all layers", 1, 2 * forward, lambda: finder.get_mlp_activations(work.prompts).numpy(), neurons,
                   lambda alone: alone.read("neurons"), 2 * n * dims.n_layers)  # fmt: skip
    return [reading, *sweeps, attribution_task(work, forward), direction_task(work, forward), probe_task(work, forward)]


def attribution_task(work: Work, forward: int) -> Task:
    """(harmful - harmless) * gradient for every head, MLP and neuron: two forwards and a backward, which costs twice a forward."""
    heads, sites = dims_of(work.model), ("z", "neurons", "mlp_out")

    def way(peer, every):
        found = peer.gradients(sites, lambda logits: work.odds(logits).sum())
        with record(work.model, sites) as other:
            Plain(work.model, work.donor).forward()
        lost = {(s, a): (x - other[s][a]) * slope for (s, a), (x, slope) in found.items()}
        z, neurons, mlps = (torch.stack([lost[s, a].sum(1) for a in range(heads.n_layers)], 1) for s in sites)
        by_head = z.unflatten(-1, (heads.n_heads, heads.d_head)).sum(-1)
        return torch.cat([by_head, neurons, mlps.sum(-1, keepdim=True)], -1).numpy()

    def loop(alone):
        with record(work.model, sites):
            alone.forward()
        alone.gradients(sites, lambda logits: work.odds(logits).sum())

    tokens = [o[0] for o in work.score.openings]

    def ours():
        twins = Twins(work.model, work.tokenizer, work.pairs, tokens)
        found = attribute_nodes(twins, steps=1)
        return torch.cat([found.heads, found.neurons, found.mlps[..., None]], -1).detach().numpy()

    return Task("attribution patching", 1, 4 * forward, ours, way, loop, len(work.pairs))


def direction_task(work: Work, forward: int, count: int = 8) -> Task:
    """Refusal log-odds with each of some directions out of everything that is written."""
    directions = torch.nn.functional.normalize(
        torch.randn(count, dims_of(work.model).d_model, generator=torch.Generator().manual_seed(0)), dim=-1
    )

    def way(peer, every):
        return np.stack([work.odds(peer.cut(d)).numpy() for d in directions[::every]])

    def ours():
        asked = [p.harmful for p in work.pairs]
        meter = fresh(CostMeter(work.model, work.tokenizer, asked, asked[:1], score=work.score), replay=False)
        return odds_of_each(meter, [partial(ablate_direction, work.model, d) for d in directions], at_once=2)

    return Task(
        "direction ablation",
        count,
        count * forward,
        ours,
        way,
        lambda alone: alone.cut(directions[0]),
        count * len(work.pairs),
    )


def probe_task(work: Work, forward: int) -> Task:
    """A probe a layer, five folds by pair: activations of the last token, and scikit-learn for the others."""
    y = torch.tensor([1.0] * len(work.pairs) + [0.0] * len(work.pairs))
    folds = topic_folds([*range(len(work.pairs))] * 2)

    def fit(x: torch.Tensor) -> np.ndarray:
        out = np.zeros(x.shape[:2])
        for layer in range(len(x)):
            for fold in range(5):
                train = folds != fold
                probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=5000, tol=1e-8))
                probe.fit(x[layer, train].double().numpy(), y[train].numpy())
                out[layer, ~train] = probe.decision_function(x[layer, ~train].double().numpy())
        return out

    def way(peer, every):
        return fit(torch.stack([x[:, -1] for x in peer.read("resid_pre").values()]))

    def ours():
        x = read_at(work.model, work.tokenizer, work.prompts)
        return held_out_decisions(x.transpose(0, 1), y, folds, 0.01).numpy()

    return Task(
        "probe of all layers",
        1,
        2 * forward,
        ours,
        way,
        lambda alone: alone.read("resid_pre"),
        2 * len(work.pairs) * dims_of(work.model).n_layers,
    )


# --- timing -------------------------------------------------------------------------------------------------


def timed(call: Callable) -> tuple[float, object]:
    start = time.process_time()
    value = call()
    return time.process_time() - start, value


def peers_for(work: Work, batch: Batch) -> list[Plain]:
    """The ways that are installed here."""
    found = [Plain(work.model, batch)]
    for make in (lambda: Lens(work.model, batch, work.tokenizer), lambda: Sight(work.model, batch)):
        try:
            found.append(make())
        except ImportError as error:
            print(f"left out: {error.name}")
    return found


def one_round(work: Work, task: Task, ways: list[Plain], every: int, speed: float) -> dict[str, float]:
    """Seconds of each way, in turn; raises AssertionError where the answers differ."""
    seconds, ours = timed(task.ours)
    row, every = {"ours": seconds, "floor": task.floor * speed}, min(every, task.steps)
    row_ids = work.clean.input_ids[0].tolist()
    alone = Plain(work.model, pad([row_ids], [0], pad_token_id(work.tokenizer)))
    times = [timed(lambda: task.loop(alone))[0] for _ in range(3)]
    row["plain loop"] = float(np.median(times)) * task.loops
    for way in ways:
        seconds, got = timed(lambda way=way: task.way(way, every))
        part = ours[::every] if task.steps > 1 else ours
        worst = float(np.abs(np.asarray(got, float) - np.asarray(part, float)).max())
        assert worst < AGREE * max(1.0, float(np.abs(part).max())), f"{task.name}: {way.name} differs by {worst:.1e}"
        row[way.name] = seconds * task.steps / len(range(0, task.steps, every))
    return row


def main(name: str, pairs: int, rounds: int, every: int, out: Path | None, only: str = "") -> pd.DataFrame:
    """The table of medians, one row a task whose name holds `only`; written and drawn if `out` is given."""
    work = prepare(name, pairs)
    width = work.clean.input_ids.shape[1]
    print(
        f"{len(work.pairs)} pairs of {width} tokens, {dims_of(work.model).n_layers} layers, {torch.get_num_threads()} threads"
    )
    for_both = {"neurons of all layers", "probe of all layers"}
    ways = {batch: peers_for(work, getattr(work, batch)) for batch in ("clean", "both")}
    plain, rows = ways["both"][0], []
    if not any(only in task.name for task in tasks_of(work)):
        raise SystemExit(f"No task has {only!r} in its name: {', '.join(task.name for task in tasks_of(work))}.")
    with torch.no_grad():
        plain.forward()
        for turn in range(rounds):
            speed = timed(plain.forward)[0] / (dims_of(work.model).n_layers * width * len(work.prompts))
            for task in (one for one in tasks_of(work) if only in one.name):
                row = one_round(work, task, ways["both" if task.name in for_both else "clean"], every, speed)
                rows.append({"task": task.name, "round": turn, **row})
                print(
                    f"round {turn + 1}, {task.name}: " + ", ".join(f"{k} {v:.2f} s" for k, v in row.items()), flush=True
                )
    table = pd.DataFrame(rows).groupby("task", sort=False).median().drop(columns="round")
    ratios = table.rdiv(table["ours"], axis=0).drop(columns="ours").add_prefix("ours / ")
    print(table.round(2).to_string(), "\n\n", ratios.round(3).to_string(), sep="")
    if out:
        write(table, ratios, out, f"{len(work.pairs)} pairs of {width} tokens, {rounds} rounds, every {every}")
    return table


def write(table: pd.DataFrame, ratios: pd.DataFrame, out: Path, what: str) -> None:
    """peers.csv, peers.json (the machine and the versions), peers.png."""
    from importlib.metadata import PackageNotFoundError, version

    out.mkdir(parents=True, exist_ok=True)
    pd.concat([table, ratios], axis=1).round(4).to_csv(out / "peers.csv")
    versions = {}
    for package in ("torch", "transformers", "transformer-lens", "nnsight"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None
    machine = {
        "processor": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "versions": versions,
        "what": what,
    }
    (out / "peers.json").write_text(json.dumps(machine, indent=1) + "\n", encoding="utf-8")
    matplotlib.use("Agg")
    fig, ax = figure(size=(9, 5))
    marks = {"floor": "|", "plain loop": "s", "transformers, batched": "o", "TransformerLens": "^", "nnsight": "D"}
    for name, mark in marks.items():
        if name in table:
            ax.plot(table[name] / table["ours"], range(len(table)), linestyle="", marker=mark, label=name, markersize=9)
    ax.axvline(1, color="#555555", linewidth=1)
    ax.set(
        xscale="log", yticks=range(len(table)), yticklabels=table.index, xlabel="times as long as the course's helpers"
    )
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.xaxis.set_major_formatter("{x:g}")
    ax.xaxis.set_minor_formatter("")
    ax.invert_yaxis()
    fig.legend(loc="outside lower center", ncols=len(marks))
    fig.savefig(out / "peers.png", dpi=150)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m-refusal")
    parser.add_argument("--pairs", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--every", type=int, default=10)
    parser.add_argument("--only", default="", help="tasks whose name holds this")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    main(given.model, given.pairs, given.rounds, given.every, given.out, given.only)
