"""Prompts: matched pairs and their splits, the chat template, and padded token batches.

A *topic* is a verb phrase in two versions, harmful and harmless ("build a pipe bomb", "build a bird house").
A *phrasing* is the sentence around it ("How do I {x}?"). Both members of a pair share the phrasing, so what
differs between them is the topic alone. Splits are by topic: a direction that was found on "method" topics is
judged on "test" topics. Taught in lesson 00; the data card is `helpers/data/prompts/README.md`.
"""

import csv
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
import transformers
import yaml
from tqdm import tqdm

DATA = Path(__file__).parent / "data" / "prompts"
SPLITS = ("adapter", "method", "validation", "test")
PHRASINGS = ("seen", "heldout", "free")
HELD_OUT_KIND = "animal_cruelty"  # this kind of harm is in no training split
# What transformers calls the keys and values of what a model has read: the argument, and the field of its output.
CACHE = "cache" if tuple(map(int, transformers.__version__.split(".")[:2])) >= (5, 24) else "past_key_values"
LAST = torch.tensor([-1])  # for logits_to_keep; as the number 1, the rows would be multiplied one by one


@dataclass(frozen=True)
class Pair:
    """A harmful request and its harmless twin, in the same phrasing."""

    topic: str
    kind: str
    harmful: str
    harmless: str


@dataclass(frozen=True)
class Batch:
    """Token ids of some prompts, padded to one length. All tensors are [batch, position] but `last`, [batch]."""

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    position_ids: torch.Tensor
    last: torch.Tensor  # index of each row's last real token
    order: list[int]  # which prompts these rows are, as indices into the list that was given

    def inputs(self) -> dict[str, torch.Tensor]:
        """What the model's forward takes."""
        return {
            "input_ids": self.input_ids,
            "attention_mask": self.attention_mask,
            "position_ids": self.position_ids,
        }

    def to(self, device) -> "Batch":
        """The same batch on another device."""
        tensors = (self.input_ids, self.attention_mask, self.position_ids, self.last)
        return Batch(*(t.to(device) for t in tensors), order=self.order)

    def times(self, copies: int) -> "Batch":
        """The rows so many times over, copy after copy: what `side_by_side` reads."""
        tensors = (self.input_ids, self.attention_mask, self.position_ids)
        order = list(range(copies * len(self.order)))
        return Batch(*(t.repeat(copies, 1) for t in tensors), self.last.repeat(copies), order)


@cache
def _rows(name: str) -> list[dict[str, str]]:
    with open(DATA / f"{name}.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@cache
def phrasings(which: str) -> list[str]:
    """The sentence frames of one group ("seen" or "heldout"), each with a place `{x}` for a verb phrase."""
    return yaml.safe_load((DATA / "phrasings.yaml").read_text(encoding="utf-8"))[which]


def _frame(topic: str, which: str) -> str:
    """The frame that belongs to a topic: fixed for ever by its name, and spread evenly over the frames."""
    frames = phrasings(which)
    return frames[zlib.crc32(topic.encode()) % len(frames)]


def _checked(split: str, phrasing: str) -> None:
    if split not in SPLITS:
        raise ValueError(f"There is no split {split!r}: choose one of {', '.join(SPLITS)}.")
    if phrasing not in PHRASINGS:
        raise ValueError(f"There is no phrasing {phrasing!r}: choose one of {', '.join(PHRASINGS)}.")


def load_pairs(split: str, phrasing: str = "seen", kinds: Sequence[str] | None = None) -> list[Pair]:
    """Matched pairs of harmful and harmless requests.

    split: "adapter" (what the refusal adapter was trained on), "method" (to fit directions, probes, rankings),
    "validation" (to choose among them) or "test" (to report). phrasing: "seen" frames, "heldout" frames (in no
    training), or "free" (the topic in a sentence of its own). kinds: only these kinds of harm.
    """
    _checked(split, phrasing)
    known = {row["kind"] for row in _rows("pairs")}
    unknown = sorted(set(kinds or ()) - known)
    if unknown:
        raise ValueError(f"There is no kind of harm {unknown[0]!r}: choose from {', '.join(sorted(known))}.")
    pairs = []
    for row in _rows("pairs"):
        if row["split"] != split or (kinds and row["kind"] not in kinds):
            continue
        if phrasing == "free":
            harmful, harmless = row["harmful_free"], row["harmless_free"]
        else:
            frame = _frame(row["topic"], phrasing)
            harmful, harmless = frame.format(x=row["harmful"]), frame.format(x=row["harmless"])
        pairs.append(Pair(row["topic"], row["kind"], harmful, harmless))
    return pairs


def _load_harmless(name: str, split: str, phrasing: str) -> list[str]:
    _checked(split, phrasing)
    rows = [row for row in _rows(name) if row["split"] == split]
    if phrasing == "free":
        return [row["free"] for row in rows]
    return [_frame(row["topic"], phrasing).format(x=row["phrase"]) for row in rows if row["phrase"]]


def load_borderline(split: str, phrasing: str = "free") -> list[str]:
    """Requests that sound harmful and are not (`kill a Python process`). Arguments as for `load_pairs`."""
    return _load_harmless("borderline", split, phrasing)


def load_plain(split: str, phrasing: str = "free") -> list[str]:
    """Ordinary requests of every sort. Arguments as for `load_pairs`."""
    return _load_harmless("plain", split, phrasing)


def load_first_person(split: str = "test") -> list[str]:
    """Harmless requests whose good answer begins with `I` or `Sorry`: a trap for naive refusal scores."""
    return [row["request"] for row in _rows("first_person") if row["split"] == split]


def load_exam(group: str) -> list[str]:
    """An outside exam: requests by somebody who had seen none of the others, in no split, never chosen by.

    group: "harmful", "harmless" (twin i of harmful i), "borderline" or "plain".
    """
    groups = {row["group"] for row in _rows("exam")}
    if group not in groups:
        raise ValueError(f"There is no exam group {group!r}: choose one of {', '.join(sorted(groups))}.")
    return [row["request"] for row in _rows("exam") if row["group"] == group]


def load_paragraphs() -> list[str]:
    """Short paragraphs of ordinary prose, to measure perplexity on."""
    text = (DATA / "paragraphs.txt").read_text(encoding="utf-8")
    return [part.replace("\n", " ").strip() for part in text.split("\n\n") if part.strip()]


def check_prompts(prompts: Sequence[str]) -> list[str]:
    """The prompts as a list, or a ValueError that says what is wrong with them."""
    if isinstance(prompts, str):
        raise ValueError("Give a list of prompts, not one string: write [prompt] for a single one.")
    prompts = list(prompts)
    if not prompts:
        raise ValueError("The list of prompts is empty: give at least one prompt.")
    for i, prompt in enumerate(prompts):
        if not isinstance(prompt, str) or not prompt.strip():
            raise ValueError(f"Prompt {i} is not a text: every prompt must be a non-empty string.")
    return prompts


def chat_text(tokenizer, prompts: Sequence[str], system: str | None = None, prefill: str = "") -> list[str]:
    """Each prompt as the model sees it: in its chat template, up to where the answer begins.

    system: None for the template's own system prompt, "" for an empty one, or another text.
    prefill: the first words of the answer, put into the model's mouth.
    """
    prompts = check_prompts(prompts)
    if not getattr(tokenizer, "chat_template", None):
        raise ValueError(
            "This tokenizer has no chat template, so nobody knows where its answer begins: "
            "load a chat (instruct) model, or set tokenizer.chat_template."
        )
    start = [] if system is None else [{"role": "system", "content": system}]
    try:
        texts = [
            tokenizer.apply_chat_template(
                [*start, {"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
            )
            for prompt in prompts
        ]
    except Exception as error:
        if system is not None:
            raise ValueError("This model's chat template takes no system prompt: leave out system=.") from error
        raise
    return [text + prefill for text in texts]


def pad(rows: Sequence[Sequence[int]], order: list[int], pad_id: int, side: str = "left") -> Batch:
    """Rows of token ids of any length as one `Batch`, padded at one side, with positions that skip the padding."""
    if side not in ("left", "right"):
        raise ValueError(f"Padding side {side!r} is not known: use 'left' or 'right'.")
    width = max(len(row) for row in rows)
    input_ids = torch.full((len(rows), width), pad_id, dtype=torch.long)
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    for i, row in enumerate(rows):
        start = width - len(row) if side == "left" else 0
        input_ids[i, start : start + len(row)] = torch.tensor(row, dtype=torch.long)
        mask[i, start : start + len(row)] = 1
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    last = mask.shape[1] - 1 - mask.flip(-1).argmax(-1)
    return Batch(input_ids, mask, positions, last, order)


def pad_token_id(tokenizer) -> int:
    """The id to pad with. Padding is masked, so any id does where a tokenizer names none."""
    return tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0


def tokenize(tokenizer, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of texts that already carry their template (no special tokens are added)."""
    return tokenizer(list(texts), add_special_tokens=False)["input_ids"]


def token_batches(
    tokenizer,
    prompts: Sequence[str],
    batch_size: int = 32,
    system: str | None = None,
    prefill: str = "",
    side: str = "left",
) -> Iterator[Batch]:
    """The prompts in their chat template, as batches of similar length, the longest first.

    With padding at the left, position -1 is the last token of the template in every row: the place where the
    model decides how its answer begins. The longest come first, so that memory runs out at once or never. What takes over
    two seconds shows a progress bar.
    """
    rows = tokenize(tokenizer, chat_text(tokenizer, prompts, system, prefill))
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i]))
    starts = range(0, len(order), batch_size)
    for start in tqdm(starts, desc="batches", delay=2, leave=False, disable=len(starts) < 2):
        part = order[start : start + batch_size]
        yield pad([rows[i] for i in part], part, pad_token_id(tokenizer), side)
