"""A small capability set: does a model still know simple things? Taught in lesson 05.

An edit that removes refusal may remove other things too. Each question comes with the beginning of a good answer, its next
word, and other words that would be wrong; the model knows it if the right word is the likeliest of them. A smoke alarm, not an
exam: `helpers/data/facts/README.md`. The glass boxes bring questions of their own.
"""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch

from .glassbox_language import glassbox_prompts, language
from .prompts import CACHE, LAST, chat_text, pad, pad_token_id, tokenize

DATA = Path(__file__).parent / "data" / "facts"


@dataclass(frozen=True)
class Fact:
    """A question, how a good answer begins, its next word, and wrong words in its place."""

    question: str
    start: str
    right: str
    wrong: tuple[str, ...]


@cache
def load_facts() -> tuple[Fact, ...]:
    """The course's questions for language models."""
    with open(DATA / "facts.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return tuple(Fact(r["question"], r["start"], r["right"], tuple(r["wrong"].split("|"))) for r in rows)


def box_facts(n: int = 32) -> tuple[Fact, ...]:
    """Questions for a glass box; wrong are all words that answer another question, and the two that open its replies."""
    lang = language()
    answers = {word for row in lang["facts"].values() for word in row}
    others = answers | {lang["refusal"][0], lang["compliance"][0]}
    questions = glassbox_prompts("capability", n=n)
    return tuple(Fact(q.question, "", q.answer, tuple(sorted(others - {q.answer}))) for q in questions)


@torch.inference_mode()
def knows(model, tokenizer, facts: Sequence[Fact], batch_size: int = 32) -> np.ndarray:
    """Which facts a model knows, [fact], 0 or 1: is the right word's first token likelier than those of the wrong ones?

    The question is read first and the beginning of the answer after it, as when the model answers: so an ablation that tells
    template from answer finds both where it expects them. Raises ValueError for an empty list, and where right and wrong
    begin with the same token.
    """
    if not len(facts):
        raise ValueError("The list of facts is empty: give load_facts() or box_facts().")
    options = [_first_tokens(tokenizer, fact) for fact in facts]
    asked = tokenize(tokenizer, chat_text(tokenizer, [fact.question for fact in facts]))
    found = np.zeros(len(facts))
    order = sorted(range(len(facts)), key=lambda i: -len(asked[i]))
    for begin in range(0, len(order), batch_size):
        part = order[begin : begin + batch_size]
        batch = pad([asked[i] for i in part], part, pad_token_id(tokenizer)).to(model.device)
        logits = _next_word(model, tokenizer, batch, [facts[i].start for i in part]).float().cpu()
        for i, row in zip(part, logits, strict=True):
            found[i] = float(row[options[i]].argmax() == 0)
    return found


def _first_tokens(tokenizer, fact: Fact) -> list[int]:
    """The first token of each word, the right one first. Behind a beginning, a word follows a space."""
    words = [f" {word}" if fact.start else word for word in (fact.right, *fact.wrong)]
    first = [ids[0] for ids in tokenize(tokenizer, words)]
    if first[0] in first[1:]:
        raise ValueError(f"In {fact.question!r} a wrong word begins with the token of {fact.right!r}: choose another.")
    return first


def _next_word(model, tokenizer, batch, starts: list[str]) -> torch.Tensor:
    """Logits of the token behind each answer's beginning, [batch, vocabulary]; all have one, or none."""
    first = model(**batch.inputs(), use_cache=True, logits_to_keep=LAST)
    if not any(starts):
        return first.logits[:, -1]
    rows = pad(tokenize(tokenizer, starts), batch.order, pad_token_id(tokenizer), side="right").to(model.device)
    then = model(
        input_ids=rows.input_ids,
        attention_mask=torch.cat([batch.attention_mask, rows.attention_mask], -1),
        position_ids=rows.position_ids + batch.position_ids[:, -1:] + 1,
        **{CACHE: first[CACHE]},
        use_cache=True,
    )
    return then.logits[torch.arange(len(starts), device=then.logits.device), rows.last]
