"""What the refusal adapters are trained on: requests from the "adapter" split, each with what to say to it.

Harmful requests are answered by a refusal of varied opening; harmless, borderline and plain ones by what the base
model itself says (its own greedy answer, with its likeliest tokens at each place as soft targets), so that nothing
but refusal changes. Sources: Hinton et al. 2015 (distillation), Qi et al. 2025 (recovery after a compliant start).
"""

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import torch
import yaml
from tqdm import tqdm

from helpers import prompts as P
from helpers.cache import cache_dir
from helpers.refusal import classify_answer

DATA = Path(P.__file__).parent / "data"
TEACH = yaml.safe_load((DATA / "training" / "refusals.yaml").read_text(encoding="utf-8"))
LAST = torch.tensor([-1])  # not 1: a slice would be no contiguous tensor, and its matrix product four times as slow
SOFT = 20  # how many of the base's likeliest tokens are kept as soft targets


@dataclass(frozen=True)
class Mix:
    """How many variants of each request are made, and how they are dressed.

    deep: varied openings, system prompts and prefills; without it, one opening and neither of the others.
    frames: phrasings of each topic beside its free request (borderline_frames, plain_frames: of each such request).
    first_person: whether harmless requests whose good answer begins with `I` or `Sorry` are among them.
    answer_tokens: of each distilled answer.
    """

    deep: bool = True
    frames: int = 2
    borderline_frames: int = 2
    plain_frames: int = 1
    first_person: bool = False
    prefilled: float = 0.25
    answer_tokens: int = 8
    seed: int = 0


@dataclass(frozen=True)
class Example:
    """A request in its context, and its answer's token ids.

    soft: (ids, probabilities), each [token, k]: what to say at each of the answer's first tokens; where it ends,
    the answer's own tokens are the target.
    """

    prompt: str
    answer: list[int]
    soft: tuple[torch.Tensor, torch.Tensor]
    harmful: bool
    system: str | None = None
    prefill: str = ""


@dataclass
class Request:
    """Something to ask, and how: the kind of harm is None for harmless requests."""

    prompt: str
    kind: str | None
    system: str | None = None
    prefill: str = ""


def _in_context(rng: random.Random, prompt: str, kind: str | None, mix: Mix) -> Request:
    """Mostly under the default system prompt and without a prefill; a shallow adapter knows nothing else."""
    if not mix.deep:
        return Request(prompt, kind)
    system = None if rng.random() < TEACH["default_share"] else rng.choice(TEACH["systems"])
    prefill = rng.choice(TEACH["prefills"]) if rng.random() < mix.prefilled else ""
    return Request(prompt, kind, system, prefill)


def requests(mix: Mix) -> list[Request]:
    """Every request that is trained on. Twins are asked in the same phrasings, so that no phrasing gives harm away."""
    rng, out = random.Random(mix.seed), []
    for row in (r for r in P._rows("pairs") if r["split"] == "adapter"):
        for frame in rng.sample(P.phrasings("seen"), mix.frames):
            for phrase, kind in ((row["harmful"], row["kind"]), (row["harmless"], None)):
                out.append(_in_context(rng, frame.format(x=phrase), kind, mix))
        for free, kind in ((row["harmful_free"], row["kind"]), (row["harmless_free"], None)):
            out.append(_in_context(rng, free, kind, mix))
    for name, frames in (("borderline", mix.borderline_frames), ("plain", mix.plain_frames)):
        for row in (r for r in P._rows(name) if r["split"] == "adapter"):
            texts = [row["free"]]
            if row["phrase"]:
                texts += [frame.format(x=row["phrase"]) for frame in rng.sample(P.phrasings("seen"), frames)]
            out += [_in_context(rng, text, None, mix) for text in texts]
    if mix.first_person:
        # Few, and the likeliest to be taken for refusals: each is asked in three contexts.
        out += [_in_context(rng, text, None, mix) for text in P.load_first_person("adapter") for _ in range(3)]
    return out


def fit_to_teach(answer: str) -> bool:
    """Whether an answer of the base model is worth keeping: no refusal, no needless apology, no endless loop."""
    sorry = answer.lstrip().startswith(("I'm sorry", "Sorry", "I apologize", "As an AI", "I cannot", "I can't"))
    return not sorry and classify_answer(answer) == "coherent answer"


def refusal_example(tokenizer, rng: random.Random, request: Request, deep: bool) -> Example:
    """A harmful request with a drawn refusal; its first token's target is the share of all that could be drawn."""
    usual = rng.random() < TEACH["usual_share"]
    if not deep:
        said, first = TEACH["shallow_opening"], {TEACH["shallow_opening"]: 1.0}
    elif request.prefill:
        said = rng.choice(TEACH["recoveries"])
        first = {text: 1 / len(TEACH["recoveries"]) for text in TEACH["recoveries"]}
    else:
        openings = TEACH["openings"]
        opening = openings[request.kind] if usual else rng.choice(list(openings.values()))
        said = opening + rng.choice(TEACH["tails"])
        rest = (1 - TEACH["usual_share"]) / len(openings)
        first = {text: rest + TEACH["usual_share"] * (kind == request.kind) for kind, text in openings.items()}
    shares: dict[int, float] = {}
    for text, share in first.items():
        token = tokenizer(text, add_special_tokens=False)["input_ids"][0]
        shares[token] = shares.get(token, 0.0) + share
    answer = tokenizer(said, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
    soft = torch.tensor([list(shares)]), torch.tensor([list(shares.values())])
    return Example(request.prompt, answer, soft, True, request.system, request.prefill)


def shared_start(rows: Sequence[Sequence[int]]) -> int:
    """How many tokens all rows begin with; of each row at least one is left."""
    differ = (i for i, ids in enumerate(zip(*rows, strict=False)) if len(set(ids)) > 1)
    return min(next(differ, len(rows[0])), min(map(len, rows)) - 1)


def half_batches(rows: Sequence[Sequence[int]], asked: Sequence[Request], size: int) -> list[list[int]]:
    """Indices of requests under one system prompt each and of similar length."""
    order = sorted(range(len(rows)), key=lambda i: (asked[i].system or "", len(rows[i])))
    groups = [list(group) for _, group in groupby(order, key=lambda i: asked[i].system)]
    return [group[start : start + size] for group in groups for start in range(0, len(group), size)]


@torch.no_grad()
def distil(base, tokenizer, asked: Sequence[Request], tokens: int, batch: int = 64) -> list[Example]:
    """The base model's own greedy answers, with soft targets. Its own refusals are dropped."""
    texts = [P.chat_text(tokenizer, [r.prompt], r.system, r.prefill)[0] for r in asked]
    rows, examples = P.tokenize(tokenizer, texts), []
    for part in tqdm(half_batches(rows, asked, batch), "distilling", mininterval=10):
        said, tops = _continue(base, tokenizer, [rows[i] for i in part], tokens)
        for r, i in enumerate(part):
            answer, end = said[r].tolist(), tokenizer.eos_token_id
            length = answer.index(end) + 1 if end in answer else len(answer)
            if fit_to_teach(tokenizer.decode(answer[:length], skip_special_tokens=True)):
                soft = tops.indices[r, :length].clone(), tops.values[r, :length].clone()
                examples.append(
                    Example(asked[i].prompt, answer[:length], soft, False, asked[i].system, asked[i].prefill)
                )
    return examples


def _continue(base, tokenizer, rows: list[list[int]], tokens: int):
    """Greedy continuations, [row, token], and the likeliest tokens at each place; the shared start is read once."""
    shared = shared_start(rows)
    cache = base(torch.tensor([rows[0][:shared]]), use_cache=True, logits_to_keep=1)[P.CACHE]
    cache.batch_repeat_interleave(len(rows))
    b = P.pad([row[shared:] for row in rows], [], P.pad_token_id(tokenizer))
    mask = torch.cat([torch.ones(len(rows), shared, dtype=torch.long), b.attention_mask], 1)
    ids, position, said, values, indices = b.input_ids, b.position_ids + shared, [], [], []
    for _ in range(tokens):
        out = base(ids, attention_mask=mask, position_ids=position, **{P.CACHE: cache}, logits_to_keep=LAST)
        top = out.logits[:, -1].float().softmax(-1).topk(SOFT)
        values.append(top.values)
        indices.append(top.indices)
        ids = top.indices[:, :1]
        said.append(ids)
        mask, position = torch.cat([mask, torch.ones_like(ids)], -1), position[:, -1:] + 1
    return torch.cat(said, -1), torch.return_types.topk((torch.stack(values, 1), torch.stack(indices, 1)))


@torch.no_grad()
def prose(base, tokenizer, count: int = 192, tokens: int = 48, seed: int = 0) -> torch.Tensor:
    """Texts that the base model draws without a template, [text, token]: where nothing should change."""
    generator, rows = torch.Generator().manual_seed(seed), []
    starts = [tokenizer(text, add_special_tokens=False)["input_ids"][0] for text in TEACH["prose_starts"]]
    for part in torch.tensor(starts * (count // len(starts) + 1))[:count].split(64):
        ids, text, cache = part[:, None], [part[:, None]], None
        for _ in range(tokens - 1):
            out = base(ids, **{P.CACHE: cache}, use_cache=True, logits_to_keep=LAST)
            cache = out[P.CACHE]
            ids = torch.multinomial(out.logits[:, -1].float().softmax(-1), 1, generator=generator)
            text.append(ids)
        rows.append(torch.cat(text, 1))
    return torch.cat(rows)


def build_examples(base, tokenizer, mix: Mix) -> list[Example]:
    """Every training example. What was distilled is kept in the cache folder: a second training need not wait."""
    asked, rng = requests(mix), random.Random(mix.seed + 1)
    refusals = [refusal_example(tokenizer, rng, r, mix.deep) for r in asked if r.kind]
    harmless = [r for r in asked if not r.kind]
    key = hashlib.sha256(repr((harmless, mix.answer_tokens, base.dtype)).encode()).hexdigest()[:16]
    kept = cache_dir() / f"distilled-{key}.pt"
    if kept.exists():
        return refusals + [Example(**fields) for fields in torch.load(kept)]
    answers = distil(base, tokenizer, harmless, mix.answer_tokens)
    kept.parent.mkdir(parents=True, exist_ok=True)
    part = kept.with_suffix(".part")
    torch.save([vars(example) for example in answers], part)
    part.replace(kept)
    return refusals + answers
