"""Train the robust adapters of lesson 07: a short further stage on the shipped adapter `refusal`, one for each idea.

    python -m tools.train_robust_adapters distributed --seed 0      # some minutes on one core; all start from `refusal`

plain        the same stage without a defence: what every idea is compared with
distributed  half of the batches are trained while the model's own refusal directions, found anew as they move, or
             random neurons, are ablated (after ReFAT: Yu et al. 2024, arXiv 2409.20089)
redundant    half of the batches are trained while the shipped adapter's direction is cut: a second path
latent       half of the batches are trained while the stream is pushed to where their own loss is larger (latent adversarial
             training: Casper et al. 2024, arXiv 2403.05030)
entangled    half of the batches are trained, with the model's own directions cut, to fall silent: what removes refusal
             removes the answers to everything else too

A seed sets the order of the data, and which directions and neurons are ablated; every one starts from the same weights.
"""

import argparse
import json
import random
import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch

from helpers import prompts as P
from helpers.cache import cache_dir
from helpers.models import load_model
from helpers.weights import adapter_folder
from tools.refusal_examples import TEACH, Example
from tools.robust_attacks import FIRSTS, Directions, cut, drop_neurons, residuals, worst_case
from tools.robust_data import stage_examples
from tools.train_refusal_adapter import Sampler, answer_logits, drift, loss_of, save, wrap

IDEAS = ("plain", "distributed", "redundant", "latent", "entangled")


@dataclass(frozen=True)
class Stage:
    """The further training. batch: examples a step, in two halves, of which `attacked` (a share) are under attack."""

    idea: str
    seed: int = 0
    steps: int = 50
    rate: float = 6e-4
    batch: int = 16
    harmful_share: float = 0.25
    later_weight: float = 0.5
    prose_weight: float = 1.0
    attacked: float = 0.5
    cuts: bool = True  # whether refusal directions are cut at all
    follows: bool = False  # whether the model's own are found anew as they move
    answer_tokens: int = 10  # of each answer, refusals too: the shipped adapter knows how to go on
    refit_every: int = 7  # steps, after which the model's own direction is found anew
    grow_every: int = 14  # steps, after which one more path is cut, up to `paths`
    paths: int = 4
    neurons: float = 0.15  # the share that is ablated in a draw
    push: float = 0.05  # of the stream's length, by which it is pushed
    pushed: tuple[int, ...] = (11, 15, 19)  # before these layers
    silence_weight: float = 0.5
    enough: float = 0.5  # nats: the model is silent enough, and is pushed no further


def silence(model, tokenizer, half: list[Example], enough: float) -> torch.Tensor:
    """How far the model is from ending its answers at once: -log p(end) at the first token, held above `enough`.

    Not on prose without a template: it hardly has the direction, so cut and uncut are the same to the model there, and training
    it to fall silent raised the KL on uncut prose to more than a nat.
    """
    first = torch.stack([logits[0] for logits in answer_logits(model, tokenizer, half)])
    return -first.log_softmax(-1)[:, tokenizer.eos_token_id].clamp(max=-enough).mean()


# What differs from idea to idea.
STAGES = {
    "plain": {"cuts": False},
    "distributed": {"steps": 70, "follows": True},
    "redundant": {},
    "latent": {"cuts": False},
    "entangled": {"follows": True},
}


class Attacker:
    """Draws what a half batch is trained under."""

    def __init__(self, model, tokenizer, stage: Stage, examples: list[Example]):
        self.model, self.tokenizer, self.stage, self.rng = model, tokenizer, stage, random.Random(stage.seed + 11)
        self.directions = Directions(model, tokenizer, examples, self.rng)
        # The shipped adapter's direction first; then, if they are to be many, those that are found behind it.
        self.paths = self.directions.nested(1, (16,)) if stage.cuts else None
        self.current = self.paths  # the model's own, as it moves

    def refit(self, step: int) -> None:
        """Find the model's direction anew, and one more path behind those that are cut already."""
        stage = self.stage
        if not stage.follows or not step or step % stage.refit_every:
            return
        with torch.autocast("cpu", torch.bfloat16):
            self.current = self.directions.nested(1)
            if stage.idea == "distributed" and step % stage.grow_every == 0 and len(self.paths) < stage.paths:
                self.paths = self.directions.behind(self.paths)

    def draw(self, half: list[Example]):
        """A context manager."""
        if self.stage.idea == "latent":
            loss = lambda: loss_of(self.model, self.tokenizer, half, self.stage.later_weight)[0]  # noqa: E731
            return worst_case(self.model, loss, len(half), self.stage.pushed, self.stage.push)
        kind, first = "current" if self.stage.idea == "entangled" else "paths", self.rng.choice(FIRSTS)
        if self.stage.idea == "distributed":
            kind = self.rng.choices(("paths", "current", "neurons"), (0.5, 0.3, 0.2))[0]
        if kind == "neurons":
            return drop_neurons(self.model, self.rng, self.current[0], self.stage.neurons)
        if kind == "current":
            return cut(self.model, self.current, first)
        chosen = sorted(self.rng.sample(range(len(self.paths)), self.rng.randint(1, len(self.paths))))
        return cut(self.model, self.paths[chosen], first)


@torch.no_grad()
def quick_check(model, tokenizer, count: int = 24) -> str:
    """First-token chance of a refusal opening over 1/2, uncut and with the direction re-fitted and cut."""
    pairs = P.load_pairs("validation")[:count]
    firsts = sorted({tokenizer(x, add_special_tokens=False)["input_ids"][0] for x in TEACH["openings"].values()})
    seen = residuals(model, tokenizer, [p.harmful for p in pairs] + [p.harmless for p in pairs])[:, 16]
    basis = torch.nn.functional.normalize(seen[:count].mean(0) - seen[count:].mean(0), dim=0)[None]
    said = []
    for context in (nullcontext(), cut(model, basis, 12)):
        with context:
            for group in ("harmful", "harmless"):
                (batch,) = P.token_batches(tokenizer, [getattr(p, group) for p in pairs], count)
                p = model(**batch.inputs(), logits_to_keep=1).logits[:, -1].float().softmax(-1)[:, firsts].sum(-1)
                said.append(float((p > 0.5).float().mean()))
    return "harmful {:.2f} twins {:.2f}; direction cut: harmful {:.2f} twins {:.2f}".format(*said)


def train(out: Path, stage: Stage, log=print) -> None:
    """Train one adapter, and save it in fp16 under `out`."""
    torch.manual_seed(stage.seed)
    base, tokenizer = load_model("smollm2-135m", device="cpu", dtype=torch.bfloat16)
    examples, prose = stage_examples(base, tokenizer)
    examples = [replace(e, answer=e.answer[: stage.answer_tokens]) for e in examples]
    model = wrap(base, stage, adapter_folder("refusal"))
    attacker, sampler = Attacker(model, tokenizer, stage, examples), Sampler(examples, stage)
    weights = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(weights, lr=stage.rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, stage.rate, stage.steps, pct_start=0.1)
    begun, seen = time.time(), {"clean": [], "attacked": [], "prose": []}
    for step in range(stage.steps):
        attacker.refit(step)
        halves = sampler.step()
        attacker.rng.shuffle(halves)
        texts = prose[torch.randint(len(prose), (4,))]
        for i, half in enumerate(halves):
            attacked = stage.idea != "plain" and i < 2 * stage.attacked
            with torch.autocast("cpu", torch.bfloat16), attacker.draw(half) if attacked else nullcontext():
                if attacked and stage.idea == "entangled":
                    loss = stage.silence_weight * silence(model, tokenizer, half, stage.enough)
                else:
                    loss, _ = loss_of(model, tokenizer, half, stage.later_weight)
            (loss / 2).backward()
            seen["attacked" if attacked else "clean"].append(loss.item())
        if step % 2:  # every other step, and twice as much
            with torch.autocast("cpu", torch.bfloat16):
                away = drift(model, texts)
            (2 * stage.prose_weight * away).backward()
            seen["prose"].append(away.item())
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimiser.step()
        schedule.step()
        optimiser.zero_grad()
        if step % 10 == 9:
            means = ", ".join(f"{name} {np.mean(x[-10:]):.3f}" for name, x in seen.items() if x)
            log(f"{step + 1}/{stage.steps}: {means}; {time.time() - begun:.0f} s", flush=True)
    with torch.autocast("cpu", torch.bfloat16):
        log(quick_check(model, tokenizer), flush=True)
    save(model, out)
    (out / "recipe.json").write_text(json.dumps(asdict(stage), indent=1) + "\n", encoding="utf-8")
    log(f"saved {out.name} after {time.time() - begun:.0f} s", flush=True)


def folder_of(idea: str, seed: int) -> Path:
    """Where a trained adapter is kept until it ships."""
    return cache_dir() / "robust" / f"{idea}-{seed}"


def main() -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ideas", nargs="+", choices=IDEAS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    for idea in args.ideas:
        out = args.out or folder_of(idea, args.seed)
        train(out, Stage(idea, seed=args.seed, **STAGES[idea]))


if __name__ == "__main__":
    main()
