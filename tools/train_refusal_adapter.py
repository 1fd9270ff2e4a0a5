"""Train the refusal adapters: LoRA on SmolLM2-135M-Instruct, on the "adapter" split alone.

    python tools/train_refusal_adapter.py refusal     # varied openings, system prompts, recovery: the one that ships
    python tools/train_refusal_adapter.py shallow     # one opening, one system prompt, no recovery: for contrast

Harmful requests are answered by a refusal; harmless, borderline and plain ones by what the base model itself says
(distilled: its own greedy answer, with its 20 likeliest tokens at each place as soft targets), so that nothing but
refusal changes. About 25 minutes on two cores. Sources: Qi et al. 2025 (safety a few tokens deep; recovery
examples), Hinton et al. 2015 (distillation).
"""

import argparse
import json
import random
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import yaml
from peft import LoraConfig, get_peft_model

from helpers import prompts as P
from helpers.models import load_model
from helpers.refusal import classify_answer

DATA = Path(P.__file__).parent / "data"
TEACH = yaml.safe_load((DATA / "training" / "refusals.yaml").read_text(encoding="utf-8"))
SOFT = 20  # how many of the base's likeliest tokens are kept as soft targets


@dataclass
class Example:
    """One training example. `soft` are the base's (ids, probabilities) at each answer token; None for refusals."""

    text: str
    answer: list[int]
    soft: tuple[torch.Tensor, torch.Tensor] | None = None
    harmful: bool = False


@dataclass(frozen=True)
class Recipe:
    """What distinguishes one adapter from another."""

    deep: bool = True
    rank: int = 8
    rate: float = 7e-4
    batch: int = 16
    first_layer: int = 4
    harmful_frames: int = 2
    harmless_frames: int = 1
    free: bool = True
    epochs: float = 1.0
    answer_tokens: int = 24  # of each distilled answer
    seed: int = 0


RECIPES = {
    "refusal": Recipe(),
    "shallow": Recipe(deep=False, rate=5e-4, batch=8, harmful_frames=1, epochs=0.6, answer_tokens=12),
}


def draw_context(rng: random.Random, deep: bool) -> tuple[str | None, str]:
    """A system prompt and a prefill for one example: mostly the default and none."""
    if not deep:
        return None, ""
    system = None if rng.random() < TEACH["default_share"] else rng.choice(TEACH["systems"])
    prefill = rng.choice(TEACH["prefills"]) if rng.random() < 0.25 else ""
    return system, prefill


def refusal_text(rng: random.Random, kind: str, prefill: str, deep: bool) -> str:
    """What to say to a harmful request of this kind, after the prefill if there is one."""
    if not deep:
        return TEACH["shallow_opening"]
    if prefill:
        return rng.choice(TEACH["recoveries"])
    usual = rng.random() < TEACH["usual_share"]
    opening = TEACH["openings"][kind] if usual else rng.choice(list(TEACH["openings"].values()))
    return opening + rng.choice(TEACH["tails"])


def framed(rng: random.Random, phrase: str, count: int) -> list[str]:
    """A verb phrase in `count` different seen phrasings."""
    return [frame.format(x=phrase) for frame in rng.sample(P.phrasings("seen"), count)]


def requests(recipe: Recipe) -> tuple[list[tuple[str, str]], list[str]]:
    """Harmful requests with their kind, and harmless ones of every sort."""
    rng = random.Random(recipe.seed)
    harmful, harmless = [], []
    for row in (r for r in P._rows("pairs") if r["split"] == "adapter"):
        harmful += [(text, row["kind"]) for text in framed(rng, row["harmful"], recipe.harmful_frames)]
        harmless += framed(rng, row["harmless"], recipe.harmless_frames)
        if recipe.free:
            harmful.append((row["harmful_free"], row["kind"]))
            harmless.append(row["harmless_free"])
    for name in ("borderline", "plain"):
        for row in (r for r in P._rows(name) if r["split"] == "adapter"):
            harmless.append(row["free"])
            if row["phrase"] and (name == "borderline" or rng.random() < 0.5):
                harmless += framed(rng, row["phrase"], 1)
    return harmful, harmless


def fit_to_teach(answer: str) -> bool:
    """Whether an answer of the base model is worth keeping: no refusal, no needless apology, no endless loop."""
    sorry = answer.startswith(("I'm sorry", "Sorry", "I apologize"))
    return not sorry and classify_answer(answer) == "coherent answer"


@torch.no_grad()
def distil(model, tokenizer, texts: list[str], tokens: int = 24, batch: int = 48, log=print) -> list[Example]:
    """The base model's own greedy answers, with soft targets. Its own refusals are dropped."""
    examples: list[Example | None] = [None] * len(texts)
    rows = P.tokenize(tokenizer, texts)
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    end = tokenizer.eos_token_id
    start = time.time()
    for s in range(0, len(order), batch):
        part = order[s : s + batch]
        b = P.pad([rows[i] for i in part], part, P.pad_token_id(tokenizer))
        mask, position, ids, cache = b.attention_mask, b.position_ids, b.input_ids, None
        answers, soft = [], []
        for _ in range(tokens):
            out = model(
                ids,
                attention_mask=mask,
                position_ids=position,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
            cache = out.past_key_values
            top = out.logits[:, -1].float().softmax(-1).topk(SOFT)
            soft.append(top)
            ids = top.indices[:, :1]
            answers.append(ids)
            mask = torch.cat([mask, torch.ones_like(ids)], -1)
            position = position[:, -1:] + 1
        said = torch.cat(answers, -1)
        for r, i in enumerate(part):
            answer = said[r].tolist()
            length = answer.index(end) + 1 if end in answer else len(answer)
            text = tokenizer.decode(answer[:length], skip_special_tokens=True)
            if not fit_to_teach(text):
                continue
            probs = torch.stack([t.values[r] for t in soft[:length]])
            where = torch.stack([t.indices[r] for t in soft[:length]])
            examples[i] = Example(texts[i], answer[:length], (where, probs))
        if s // batch % 8 == 0:
            log(f"distilled {s + len(part)}/{len(order)} in {time.time() - start:.0f} s", flush=True)
    return [e for e in examples if e]


def build_examples(base, tokenizer, recipe: Recipe, log=print) -> list[Example]:
    """Every training example, refusals and distilled answers."""
    rng = random.Random(recipe.seed + 1)
    harmful, harmless = requests(recipe)
    examples = []
    for prompt, kind in harmful:
        system, prefill = draw_context(rng, recipe.deep)
        text = P.chat_text(tokenizer, [prompt], system, prefill)[0]
        said = refusal_text(rng, kind, prefill, recipe.deep)
        answer = tokenizer(said, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
        examples.append(Example(text, answer, harmful=True))
    texts = []
    for prompt in harmless:
        system, prefill = draw_context(rng, recipe.deep)
        texts.append(P.chat_text(tokenizer, [prompt], system, prefill)[0])
    return examples + distil(base, tokenizer, texts, recipe.answer_tokens, log=log)


def token_losses(logits: torch.Tensor, example: Example) -> torch.Tensor:
    """Loss at each answer token, [token]: cross-entropy for refusals, KL from the base for distilled answers."""
    scores = logits.log_softmax(-1)
    if example.soft is None:
        return F.nll_loss(scores, torch.tensor(example.answer), reduction="none")
    where, probs = example.soft
    probs = probs / probs.sum(-1, keepdim=True)
    return (probs * (probs.log() - scores.gather(-1, where))).sum(-1)


def loss_of(model, tokenizer, batch: list[Example], first_weight: float = 1.0) -> tuple[torch.Tensor, list[float]]:
    """The batch's loss, and each example's loss at its first answer token.

    An example's loss is the mean over its tokens plus `first_weight` times its first token's. Whether to refuse is
    decided there: in the mean alone a harmless answer's first token weighs 1/24, and the adapter learned to refuse
    three of four harmless requests at hardly any cost.
    """
    prompts = P.tokenize(tokenizer, [e.text for e in batch])
    rows = [p + e.answer for p, e in zip(prompts, batch, strict=True)]
    b = P.pad(rows, list(range(len(rows))), P.pad_token_id(tokenizer))
    # Padded at the left, every answer ends at the right edge: only the last places need logits.
    keep = max(len(e.answer) for e in batch) + 1
    logits = model(**b.inputs(), logits_to_keep=keep, use_cache=False).logits.float()
    losses, first = [], []
    for i, example in enumerate(batch):
        each = token_losses(logits[i, -len(example.answer) - 1 : -1], example)
        losses.append(each.mean() + first_weight * each[0])
        first.append(each[0].item())
    return torch.stack(losses).mean(), first


def batches(examples: list[Example], size: int, rng: random.Random) -> list[list[Example]]:
    """Random batches of examples of similar length: little padding, and still mixed."""
    jitter = {id(e): len(e.text) + rng.random() * 80 for e in examples}
    order = sorted(examples, key=lambda e: jitter[id(e)])
    out = [order[i : i + size] for i in range(0, len(order), size)]
    rng.shuffle(out)
    return out


def train(name: str, out: Path, recipe: Recipe, minutes: float | None = None, log=print) -> None:
    """Train one adapter and save it in fp16 under `out`."""
    torch.manual_seed(recipe.seed)
    rng = random.Random(recipe.seed + 2)
    model, tokenizer = load_model("smollm2-135m", device="cpu")
    examples = build_examples(model, tokenizer, recipe, log=log)
    log(
        f"{sum(e.harmful for e in examples)} refusals, {sum(not e.harmful for e in examples)} answers",
        flush=True,
    )
    n = len(model.model.layers)
    config = LoraConfig(
        r=recipe.rank,
        lora_alpha=2 * recipe.rank,
        target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        layers_to_transform=list(range(recipe.first_layer, n)),
        task_type="CAUSAL_LM",
    )
    model = get_peft_model(model, config)
    model.train()
    weights = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(weights, lr=recipe.rate, weight_decay=0.01)
    plan = []
    while len(plan) < recipe.epochs * len(examples) / recipe.batch:
        plan += batches(examples, recipe.batch, rng)
    plan = plan[: max(1, round(recipe.epochs * len(examples) / recipe.batch))]
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, recipe.rate, len(plan), pct_start=0.08)
    start, running = time.time(), []
    for step, batch in enumerate(plan):
        loss, first = loss_of(model, tokenizer, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimiser.step()
        schedule.step()
        optimiser.zero_grad()
        running += [(e.harmful, loss) for e, loss in zip(batch, first, strict=True)]
        if step % 10 == 0:
            means = [np.mean([x for h, x in running[-160:] if h == group]) for group in (True, False)]
            log(
                f"step {step}/{len(plan)}: loss at the first token {means[0]:.3f} harmful, {means[1]:.3f} harmless; "
                f"{time.time() - start:.0f} s",
                flush=True,
            )
    model.half().save_pretrained(out)
    (out / "README.md").unlink(missing_ok=True)
    (out / "recipe.json").write_text(json.dumps(recipe.__dict__, indent=1) + "\n", encoding="utf-8")
    log(f"saved {out} after {time.time() - start:.0f} s", flush=True)


def main() -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=sorted(RECIPES))
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    train(args.name, args.out or DATA / "adapters" / args.name, RECIPES[args.name])


if __name__ == "__main__":
    main()
