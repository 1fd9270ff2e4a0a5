"""Is the truth true? Each function measures one property of a box and returns plain figures; nothing is judged here.

The tests demand bounds of these figures, the report prints them.
"""

from functools import cached_property

import numpy as np
import torch

from helpers.glassbox import Node, glassbox_prompts, language

from .bench import Bench

HOW = ("zero", "mean", "resample")


class Properties:
    """All properties of one box, on prompts of the test split."""

    def __init__(self, model, truth, words, n: int = 80):
        self.bench, self.truth, self.n = Bench(model, truth, words), truth, n
        self.texts = {
            k: glassbox_prompts(k, n, "test", seed=5) for k in ("harmful", "harmless", "borderline", "permit")
        }
        self.questions = glassbox_prompts("capability", 64, seed=5)
        self.asked = [q.question for q in self.questions]

    @cached_property
    def clean(self) -> dict[str, torch.Tensor]:
        """Log-probabilities of the untouched box."""
        return {k: self.bench.logits(t) for k, t in {**self.texts, "capability": self.asked}.items()}

    @cached_property
    def gap(self) -> float:
        """Mean log-odds of harmful minus harmless prompts."""
        return float((self.bench.odds(self.clean["harmful"]) - self.bench.odds(self.clean["harmless"])).mean())

    def behaviour(self) -> dict[str, float]:
        rate = {f"refuses {k}": self.rate(self.clean[k]) for k in ("harmful", "harmless", "borderline")}
        return rate | {"capability": self.able(self.clean["capability"]), "gap": self.gap}

    def rate(self, log_probs) -> float:
        return float(self.bench.refuses(log_probs).mean())

    def able(self, log_probs) -> float:
        return float(self.bench.right(log_probs, self.questions).mean())

    def ablated(self, nodes: list[Node], how: str, kind: str = "harmful") -> torch.Tensor:
        """Log-probabilities with some components ablated; donors are harmless requests."""
        texts = self.asked if kind == "capability" else self.texts[kind]
        return self.bench.logits(texts, nodes, self.bench.donated(texts, self.texts["harmless"], how))

    def evaluation_cut(self) -> dict[str, float]:
        nodes = self.bench.nodes("evaluation_neurons")
        out = {}
        for how in HOW:
            out[f"refuses, {how}"] = self.rate(self.ablated(nodes, how))
            out[f"capability, {how}"] = self.able(self.ablated(nodes, how, "capability"))
        return out

    def neurons_cut(self) -> float:
        """Refusal of harmful prompts with all neurons of the circuit ablated: the highest over ways."""
        nodes = self.bench.nodes("evaluation_neurons", "production_neurons")
        return max(self.rate(self.ablated(nodes, how)) for how in HOW)

    def faithful(self) -> dict[str, float]:
        """Share of decisions that stay when everything but the circuit is resampled from other requests."""
        out, pool = {}, [t for k in ("harmful", "harmless", "borderline") for t in self.texts[k]]
        for kind in ("harmful", "harmless", "borderline"):
            source = self.bench.donated(self.texts[kind], pool, "resample", seed=3)
            alone = self.bench.logits(self.texts[kind], self.bench.rest(), source)
            same = self.bench.refuses(alone) == self.bench.refuses(self.clean[kind])
            out[kind] = float(same.float().mean())
        return out

    def _removed(self, nodes: list[Node], cut: list[Node], serve) -> dict[Node, float]:
        """Mean change of the log-odds when each node alone is zeroed, in the circuit alone with `cut` cut."""
        texts, lists = [], []
        for node in nodes:
            mine = serve(node)
            texts += mine
            lists += [[node]] * len(mine)
        pool = [t for k in ("harmful", "harmless", "borderline") for t in self.texts[k]]
        base_texts = sorted(set(texts))
        source = self.bench.donated(base_texts, pool, "resample", seed=4)
        rest, at = self.bench.rest(), {t: i for i, t in enumerate(base_texts)}
        order = [at[t] for t in texts]
        spread = {site: x[:, order] for site, x in source.items()}
        before = _alone(self.bench, base_texts, rest, source, cut)[order]
        after = _alone(self.bench, texts, rest, spread, lists, cut)
        change, start, out = after - before, 0, {}
        for node in nodes:
            count = len(serve(node))
            out[node] = float(change[start : start + count].mean())
            start += count
        return out

    def minimal(self) -> dict[Node, float]:
        """Change of the log-odds on the prompts that a component serves, when it alone is removed from the circuit.

        The sign is turned for permit readers, which serve borderline prompts: a component that does its work has a
        positive cost. In `redundant` the backup is cut for the main path, and the main path's evaluation for the backup.
        """
        domains = list(language()["domains"])

        def serve(node):
            if self.truth.labels.get(node) == "permit":
                return self.texts["permit"][:8]
            domain = self.bench.domain_of(node)
            return self.texts["harmful"][domains.index(domain) :: 4][:6] if domain else self.texts["harmful"][:8]

        cost = self._removed(self.bench.stages, self.bench.backup, serve)
        if self.bench.backup:
            main = self.bench.nodes("detection_heads", "evaluation_neurons", "decision_components")
            cost |= self._removed(self.bench.backup, main, serve)
        return {n: c if self.truth.labels.get(n) == "permit" else -c for n, c in cost.items()}

    def complete(self, subsets: int = 24) -> dict[str, float]:
        """Random subsets of the circuit knocked out, of the full box and of the circuit alone: mean difference of the
        log-odds as a share of the gap, and share of equal decisions (Wang et al. 2023, section 4)."""
        rng, nodes, texts, lists = np.random.default_rng(0), [*self.bench.stages, *self.bench.backup], [], []
        for _ in range(subsets):
            share = rng.choice([0.05, 0.2, 0.5])
            out = [n for n in nodes if rng.random() < share]
            some = [self.texts[k][int(i)] for k in ("harmful", "borderline") for i in rng.integers(0, self.n, 6)]
            texts += some
            lists += [out] * len(some)
        pool = [t for k in ("harmful", "harmless", "borderline") for t in self.texts[k]]
        source = self.bench.donated(texts, pool, "resample", seed=6)
        full = self.bench.log_odds(texts, lists)
        alone = _alone(self.bench, texts, self.bench.rest(), source, lists)
        return {
            "difference": float((full - alone).abs().mean()) / self.gap,
            "same decision": float(((full > 0) == (alone > 0)).float().mean()),
        }

    def decoys_cut(self) -> dict[str, float]:
        """Refusal with every decoy ablated together, minus the clean box's: the largest change over prompts."""
        nodes = self.bench.nodes("decoy_heads", "decoy_neurons")
        return {
            how: max(
                abs(self.rate(self.ablated(nodes, how, k)) - self.rate(self.clean[k]))
                for k in ("harmful", "harmless", "borderline")
            )
            for how in HOW
        }

    def random_sets(self, draws: int = 100) -> dict[str, float]:
        """Sets of other components, as many in each layer as the circuit has, zeroed or resampled: mean change."""
        rng, rest, circuit = np.random.default_rng(1), self.bench.rest(), self.bench.stages
        count: dict[tuple, int] = {}
        for node in circuit:
            count[node[:2]] = count.get(node[:2], 0) + 1
        pools = {key: [n for n in rest if n[:2] == key] for key in count}
        texts, lists = [], []
        for _ in range(draws):
            drawn = [
                pools[k][i] for k, c in count.items() for i in rng.choice(len(pools[k]), min(c, len(pools[k])), False)
            ]
            some = [self.texts["harmful"][i] for i in rng.integers(0, self.n, 10)]
            some += [self.texts["borderline"][i] for i in rng.integers(0, self.n, 6)]
            texts += some
            lists += [drawn] * len(some)
        clean = dict(zip(self.texts["harmful"] + self.texts["borderline"],
                         self.bench.odds(torch.cat([self.clean["harmful"], self.clean["borderline"]])), strict=True))  # fmt: skip
        before = torch.stack([clean[t] for t in texts])
        out = {"refusal": 0.0, "log-odds": 0.0}
        for half, source in ((slice(0, None, 2), None), (slice(1, None, 2), "resample")):
            t, cut = texts[half], lists[half]
            given = self.bench.donated(t, self.texts["harmless"], source, seed=8) if source else None
            after = self.bench.log_odds(t, cut, given)
            change = (after - before[half]).abs().mean()
            out["log-odds"] = max(out["log-odds"], float(change) / self.gap)
            out["refusal"] = max(out["refusal"], float(((after > 0) != (before[half] > 0)).float().mean()))
        return out


def _alone(bench: Bench, texts, rest, source, cuts, more=()) -> torch.Tensor:
    """Log-odds of the circuit alone: `rest` resampled from `source`, and then `cuts` (and `more`) zeroed."""
    lists = cuts if cuts and not isinstance(cuts[0], Node) else [list(cuts)] * len(texts)
    zeroed = bench.masks([[*c, *more] for c in lists], len(texts))
    filled = bench.masks(rest, len(texts))
    put = {}
    for site, value in source.items():
        mask = zeroed[site].transpose(0, 1)[:, :, None]
        put[site] = torch.where(mask, torch.zeros(()), value)
    both = {site: filled[site] | zeroed[site] for site in filled}
    return bench.odds(bench.logits_masked(texts, both, put))
