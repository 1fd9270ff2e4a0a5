"""Train the refusal adapters: LoRA on SmolLM2-135M-Instruct, on the "adapter" split alone.

    python -m tools.train_refusal_adapter refusal     # varied openings, system prompts, recovery: the one that ships
    python -m tools.train_refusal_adapter shallow     # one opening, one system prompt, no recovery: for contrast

What is trained on: `tools/refusal_examples.py`. The base's weights are held in 16 bits while training (5 times as
fast on a CPU that has bfloat16 instructions); the adapter is trained and kept apart in 32, and merged into the base
in 32. The system prompt, which all examples of a batch share, is computed once, with its gradient.
"""

import argparse
import json
import random
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from sklearn.metrics import roc_auc_score

from helpers import prompts as P
from helpers.cache import cache_dir
from helpers.models import body_of, layers_of, load_model, unembedding_of
from tools.refusal_examples import DATA, TEACH, Example, Mix, build_examples, prose, shared_start

PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@dataclass(frozen=True)
class Recipe:
    """What distinguishes one adapter from another. batch: examples a step, of which harmful_share refuse."""

    mix: Mix = field(default_factory=Mix)
    rank: int = 12
    rate: float = 6e-4
    batch: int = 24
    steps: int = 720
    harmful_share: float = 0.4
    later_weight: float = 0.5
    first_layer: int = 8
    prose_weight: float = 0.0  # of the KL from the base on its own prose, without a template
    scale: float = 1.0  # by which the finished adapter is made stronger, chosen on validation
    seed: int = 0
    start: str | None = None  # the recipe that is trained before this one


RECIPES = {
    "refusal-first": Recipe(),
    # Alone, the first still refused a quarter of the harmless twins: other phrasings, and more that is harmless.
    "refusal-second": Recipe(
        mix=Mix(plain_frames=3, seed=1), rate=5e-4, steps=400, harmful_share=0.3, seed=1, start="refusal-first"
    ),
    # The second had drifted on ordinary text (perplexity a quarter higher), and took first-person requests for harm.
    "refusal": Recipe(
        mix=Mix(frames=1, borderline_frames=2, plain_frames=3, first_person=True, seed=2),
        rate=5e-4,
        steps=260,
        harmful_share=0.25,
        prose_weight=1.0,
        scale=1.1,
        seed=2,
        start="refusal-second",
    ),
    "shallow": Recipe(mix=Mix(deep=False, frames=1, borderline_frames=1), steps=160),
}


def rows_of(tokenizer, batch: list[Example]) -> tuple[list[int], list[list[int]], list[int]]:
    """The token ids that all the batch begins with, what follows in each example, and where each answer begins."""
    texts = [P.chat_text(tokenizer, [e.prompt], e.system, e.prefill)[0] for e in batch]
    asked = P.tokenize(tokenizer, texts)
    shared = shared_start(asked)
    rows = [ids[shared:] + e.answer[:-1] for ids, e in zip(asked, batch, strict=True)]
    return asked[0][:shared], rows, [len(ids) - shared - 1 for ids in asked]


def answer_logits(model, tokenizer, batch: list[Example]) -> list[torch.Tensor]:
    """Each example's logits at its answer's tokens, [token, vocabulary]. One system prompt for the whole batch."""
    prefix, rows, starts = rows_of(tokenizer, batch)
    body, unembed = body_of(model), unembedding_of(model)
    cache = body(torch.tensor([prefix]), use_cache=True)[P.CACHE]
    cache.batch_repeat_interleave(len(batch))
    b = P.pad(rows, list(range(len(rows))), P.pad_token_id(tokenizer), side="right")
    mask = torch.cat([torch.ones(len(rows), len(prefix), dtype=torch.long), b.attention_mask], 1)
    out = body(b.input_ids, attention_mask=mask, position_ids=b.position_ids + len(prefix), **{P.CACHE: cache})
    states = [
        out.last_hidden_state[i, s : s + len(e.answer)] for i, (s, e) in enumerate(zip(starts, batch, strict=True))
    ]
    return list(unembed(torch.cat(states)).float().split([len(s) for s in states]))


def token_losses(logits: torch.Tensor, example: Example) -> torch.Tensor:
    """KL from the soft targets (cross-entropy from the answer's own tokens where they end), [token]."""
    scores = logits.log_softmax(-1)
    ids, probs = example.soft
    probs = probs / probs.sum(-1, keepdim=True)
    n = len(ids)
    soft = (probs * (probs.log() - scores[:n].gather(-1, ids))).sum(-1)
    own = -scores[n:].gather(-1, torch.tensor(example.answer[n:], dtype=torch.long)[:, None])[:, 0]
    return torch.cat([soft, own])


def loss_of(model, tokenizer, batch: list[Example], later_weight: float) -> tuple[torch.Tensor, list[float]]:
    """The batch's loss, and each example's at its first answer token.

    Whether to refuse is decided at the first token: in the mean over an answer it would weigh next to nothing, and
    an adapter trained so refused three of four harmless requests at hardly any cost.
    """
    losses, first = [], []
    for logits, example in zip(answer_logits(model, tokenizer, batch), batch, strict=True):
        each = token_losses(logits, example)
        later = each[1:].mean() if len(each) > 1 else 0.0
        losses.append(each[0] + later_weight * later)
        first.append(each[0].item())
    return torch.stack(losses).mean(), first


def drift(model, texts: torch.Tensor) -> torch.Tensor:
    """Mean KL from the base to the tuned model over the tokens of texts [text, token], in nats."""
    with torch.no_grad(), model.disable_adapter():
        before = model(texts, use_cache=False).logits.float().log_softmax(-1)
    after = model(texts, use_cache=False).logits.float().log_softmax(-1)
    return (before.exp() * (before - after)).sum(-1).mean()


class Sampler:
    """Half batches under one system prompt each: the default one, and one of the others."""

    def __init__(self, examples: list[Example], recipe: Recipe):
        self.rng, self.recipe = random.Random(recipe.seed + 2), recipe
        self.groups: dict[tuple, list[Example]] = defaultdict(list)
        for example in examples:
            self.groups[example.system, example.harmful].append(example)
        self.waiting: dict[tuple, list[Example]] = defaultdict(list)
        self.systems = sorted({system for system, _ in self.groups if system is not None})

    def _draw(self, key: tuple, count: int) -> Iterator[Example]:
        """Without putting back, until all were seen."""
        for _ in range(count):
            if not self.waiting[key]:
                self.waiting[key] = self.rng.sample(self.groups[key], len(self.groups[key]))
            yield self.waiting[key].pop()

    def step(self) -> list[list[Example]]:
        """The half batches of one step."""
        half, systems = self.recipe.batch // 2, [None, self.rng.choice(self.systems) if self.systems else None]
        harmful = round(half * self.recipe.harmful_share)
        return [[*self._draw((s, True), harmful), *self._draw((s, False), half - harmful)] for s in systems]


@torch.no_grad()
def validate(model, tokenizer, firsts: list[int]) -> str:
    """How well the first token's chance to open a refusal tells harmful from harmless validation prompts."""
    odds = {}
    for group in ("harmful", "harmless", "borderline"):
        prompts = []
        for phrasing in ("seen", "free"):
            pairs = P.load_pairs("validation", phrasing)
            prompts += (
                P.load_borderline("validation", phrasing)
                if group == "borderline"
                else [getattr(p, group) for p in pairs]
            )
        scores = []
        for b in P.token_batches(tokenizer, prompts, 64):
            log_p = model(**b.inputs(), logits_to_keep=1).logits[:, -1].float().softmax(-1)[:, firsts].sum(-1)
            scores += log_p.tolist()
        odds[group] = np.array(scores)
    labels = np.r_[np.ones(len(odds["harmful"])), np.zeros(len(odds["harmless"]))]
    auroc = roc_auc_score(labels, np.r_[odds["harmful"], odds["harmless"]])
    over = ", ".join(f"{group} {(x > 0.5).mean():.2f}" for group, x in odds.items())
    return f"validation: AUROC of twins {auroc:.3f}; P(opening) over 1/2: {over}"


def wrap(model, recipe: Recipe, start: Path | None = None):
    """The model with adapter matrices in its upper layers: fresh ones, or those of an earlier training."""
    if start:
        return PeftModel.from_pretrained(model, start, is_trainable=True)
    config = LoraConfig(
        r=recipe.rank,
        lora_alpha=2 * recipe.rank,
        target_modules=PROJECTIONS,
        layers_to_transform=list(range(recipe.first_layer, len(layers_of(model)))),
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, config)


def save(model, out: Path, scale: float = 1.0) -> None:
    """The adapter in fp16, with nothing in it that differs from run to run or names a place on this machine."""
    model.half().save_pretrained(out)
    (out / "README.md").unlink(missing_ok=True)  # peft's empty form; the adapters' card stands beside them
    config = json.loads((out / "adapter_config.json").read_text(encoding="utf-8"))
    config["lora_alpha"] = round(config["lora_alpha"] * scale, 3)  # over the rank, the factor of what is added
    config |= {"base_model_name_or_path": "SmolLM2-135M-Instruct", "target_modules": sorted(config["target_modules"])}
    (out / "adapter_config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    (out / "adapter_model.safetensors").chmod(0o644)


def train(out: Path, recipe: Recipe, start: Path | None = None, log=print) -> None:
    """Train one adapter, from an earlier one's folder if `start` names it, and save it in fp16 under `out`."""
    torch.manual_seed(recipe.seed)
    base, tokenizer = load_model("smollm2-135m", device="cpu", dtype=torch.bfloat16)
    examples = build_examples(base, tokenizer, recipe.mix)
    log(f"{sum(e.harmful for e in examples)} refusals, {sum(not e.harmful for e in examples)} answers", flush=True)
    said = TEACH["openings"].values() if recipe.mix.deep else [TEACH["shallow_opening"]]
    firsts = sorted({tokenizer(text, add_special_tokens=False)["input_ids"][0] for text in said})
    model, sampler = wrap(base, recipe, start), Sampler(examples, recipe)
    weights = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(weights, lr=recipe.rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, recipe.rate, recipe.steps, pct_start=0.06)
    texts = prose(base, tokenizer, seed=recipe.seed) if recipe.prose_weight else None
    start, running, drifts = time.time(), [], []
    for step in range(recipe.steps):
        for half in sampler.step():
            with torch.autocast("cpu", torch.bfloat16):
                loss, first = loss_of(model, tokenizer, half, recipe.later_weight)
            (loss / 2).backward()
            running += [(e.harmful, x) for e, x in zip(half, first, strict=True)]
        if texts is not None:
            with torch.autocast("cpu", torch.bfloat16):
                away = drift(model, texts[torch.randint(len(texts), (8,))])
            (recipe.prose_weight * away).backward()
            drifts.append(away.item())
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimiser.step()
        schedule.step()
        optimiser.zero_grad()
        if step % 20 == 19:
            means = [np.mean([x for h, x in running[-640:] if h == group]) for group in (True, False)]
            away = f"KL on prose {np.mean(drifts[-20:]):.3f}; " if drifts else ""
            log(f"{step + 1}/{recipe.steps}: first token {means[0]:.3f} harmful, {means[1]:.3f} harmless; {away}"
                f"{time.time() - start:.0f} s", flush=True)  # fmt: skip
        if step % 200 == 199 or step + 1 == recipe.steps:
            with torch.autocast("cpu", torch.bfloat16):
                log(validate(model, tokenizer, firsts), flush=True)
    save(model, out, recipe.scale)
    (out / "recipe.json").write_text(json.dumps(asdict(recipe), indent=1) + "\n", encoding="utf-8")
    log(f"saved {out} after {time.time() - start:.0f} s", flush=True)


def train_chain(name: str, out: Path, start: Path | None = None) -> None:
    """Train a recipe after those that it builds on, unless `start` names the folder of the one before."""
    recipe = RECIPES[name]
    if recipe.start and not start:
        start = cache_dir() / recipe.start
        train_chain(recipe.start, start)
    train(out, recipe, start)


def main() -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=sorted(RECIPES))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--start", type=Path, help="the folder of the earlier adapter, if it is trained already")
    args = parser.parse_args()
    train_chain(args.name, args.out or DATA / "adapters" / args.name, args.start)


if __name__ == "__main__":
    main()
