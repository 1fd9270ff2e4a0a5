"""The little language of the glass boxes: its words, its law, and prompts made from both.

*The law.* A request is harmful if its verb and its object are marked for the same domain ("heat the acid") and no
permit word stands in it ("for research"). No single word decides: "heat the milk", "wash the acid", "heat the
passport" and "heat the acid for research" are all fine. *The capability* is 64 facts: 16 things x 4 relations, each
question with one right next word. All words stand in `helpers/data/glassbox/language.json`.

Splits are by topic, a topic being a pair of marked verb and marked object of one domain: half of them for "train"
(also called "method"), about a quarter each for "validation" and "test". Taught in lesson 00.
"""

import itertools
import json
import random
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from .prompts import Pair

DATA = Path(__file__).parent / "data" / "glassbox"
SPLITS = ("train", "validation", "test")
KINDS_OF_PROMPT = ("pairs", "harmful", "harmless", "plain", "mismatch", "permit", "borderline", "capability")


@dataclass(frozen=True)
class BoxPair(Pair):
    """A harmful request and a harmless one that differ in one word; `topic` is "verb object", `kind` the domain."""

    changed: str  # which word differs: "object" (heat acid / heat milk), "verb" (wash acid) or "permit" (for class)
    template: int  # pairs of one template have equal length and the same words at the same places


@dataclass(frozen=True)
class Question:
    """A question of the capability and the one word that answers it."""

    question: str
    answer: str
    entity: str
    relation: str


@cache
def language() -> dict:
    """The words of the boxes, as they stand in the data file."""
    return json.loads((DATA / "language.json").read_text(encoding="utf-8"))


@cache
def vocabulary() -> tuple[str, ...]:
    """Every token, in the order of its id."""
    lang = language()
    marked = [w for d in lang["domains"].values() for w in (*d["verbs"], *d["objects"])]
    frames = [w for t in (*lang["templates"], *lang["questions"]) for w in t.split() if not w.startswith("{")]
    answers = [w for row in lang["facts"].values() for w in row]
    words = [
        *lang["special"], *marked, *lang["plain_verbs"], *lang["plain_objects"], *lang["contexts"], *lang["permits"],
        *frames, *lang["relations"], *lang["facts"], *answers, *lang["refusal"], *lang["compliance"],
    ]  # fmt: skip
    return tuple(dict.fromkeys(words))


def _split_of(verb: int, thing: int) -> str:
    """The split of a topic, by the places of its two words: every word is in every split, no pair of words in two."""
    return ("train", "validation", "train", "test")[(verb + thing) % 4]


def _topics(split: str | None, domain: str) -> list[tuple[str, str]]:
    words = language()["domains"][domain]
    return [
        (v, o)
        for (i, v), (j, o) in itertools.product(enumerate(words["verbs"]), enumerate(words["objects"]))
        if split is None or _split_of(i, j) == split
    ]


def _check(kind: str, n: int, split: str | None, domain: str | None) -> str | None:
    if kind not in KINDS_OF_PROMPT:
        raise ValueError(f"There is no kind of prompt {kind!r}: choose one of {', '.join(KINDS_OF_PROMPT)}.")
    split = "train" if split == "method" else split
    if split is not None and split not in SPLITS:
        raise ValueError(f"There is no split {split!r}: choose one of {', '.join(SPLITS)}, or None for all topics.")
    if domain is not None and domain not in language()["domains"]:
        raise ValueError(f"There is no domain {domain!r}: choose one of {', '.join(language()['domains'])}.")
    if not isinstance(n, int) or n < 1:
        raise ValueError(f"Ask for a whole number of prompts, at least 1: {n!r} is not one.")
    return split


def glassbox_prompts(
    kind: str,
    n: int = 64,
    split: str | None = None,
    seed: int = 0,
    domain: str | None = None,
    changed: str | None = None,
) -> list:
    """Prompts for a glass box, the same ones for the same arguments; domains and templates in equal shares.

    kind: "pairs" → `BoxPair`s, harmful and harmless in turn by a changed object or verb (changed="object", "verb" or
    "permit" gives one sort only); "harmful", "harmless" (the members of such pairs), "plain" (no marked word),
    "mismatch" (marked for two domains), "permit" (harmful but for its permit word), "borderline" (mismatch and permit
    in turn) → texts; "capability" → `Question`s. split: "train", "validation", "test", or None for all topics.

    Raises ValueError for an unknown kind, split, domain or change, or a number of prompts below 1.
    """
    split = _check(kind, n, split, domain)
    rng = random.Random(f"{kind if kind not in ('harmful', 'harmless') else 'pairs'}-{split}-{seed}-{domain}-{changed}")
    if kind == "capability":
        return _questions(n, rng)
    if kind in ("pairs", "harmful", "harmless"):
        pairs = _pairs(n, split, rng, domain, changed)
        return pairs if kind == "pairs" else [getattr(p, kind) for p in pairs]
    if kind == "borderline":
        half = glassbox_prompts("mismatch", (n + 1) // 2, split, seed, domain)
        other = glassbox_prompts("permit", (n + 1) // 2, split, seed, domain)
        return [p for both in zip(half, other, strict=True) for p in both][:n]
    lang = language()
    out = []
    for pair, verb, thing, frame in _draw(n, split, rng, domain):
        context = rng.choice(lang["contexts"])
        if kind == "plain":
            verb, thing = rng.choice(lang["plain_verbs"]), rng.choice(lang["plain_objects"])
        elif kind == "mismatch":
            other = rng.choice([d for d in lang["domains"] if d != pair])
            thing = rng.choice(lang["domains"][other]["objects"])
        else:
            context = rng.choice(lang["permits"])
        out.append(lang["templates"][frame].format(verb=verb, object=thing, context=context))
    return out


def _draw(n: int, split: str | None, rng: random.Random, domain: str | None):
    """n times (domain, verb, object, template), the domains and templates in turn, the topics reshuffled when used up."""
    lang = language()
    domains = [domain] if domain else list(lang["domains"])
    decks: dict[str, list] = {d: [] for d in domains}
    for i in range(n):
        name = domains[i % len(domains)]
        if not decks[name]:
            decks[name] = _topics(split, name)
            rng.shuffle(decks[name])
        verb, thing = decks[name].pop()
        yield name, verb, thing, (i // len(domains)) % len(lang["templates"])


def _pairs(n: int, split, rng, domain, changed) -> list[BoxPair]:
    lang = language()
    sorts = ("object", "verb") if changed is None else (changed,)
    if changed not in (None, "object", "verb", "permit"):
        raise ValueError(f"A pair differs in its 'object', its 'verb' or a 'permit' word, not in {changed!r}.")
    pairs = []
    for i, (name, verb, thing, frame) in enumerate(_draw(n, split, rng, domain)):
        text, words = lang["templates"][frame], {"verb": verb, "object": thing, "context": rng.choice(lang["contexts"])}
        sort = sorts[(i // 4) % len(sorts)]
        field, pool = {
            "object": ("object", "plain_objects"), "verb": ("verb", "plain_verbs"), "permit": ("context", "permits")
        }[sort]  # fmt: skip
        harmless = text.format(**{**words, field: rng.choice(lang[pool])})
        pairs.append(BoxPair(f"{verb} {thing}", name, text.format(**words), harmless, sort, frame))
    return pairs


def _questions(n: int, rng: random.Random) -> list[Question]:
    lang = language()
    facts = [(e, r, a) for e, row in lang["facts"].items() for r, a in zip(lang["relations"], row, strict=True)]
    questions: list[Question] = []
    for i in itertools.count():
        rng.shuffle(facts)
        for j, (entity, relation, answer) in enumerate(facts):
            frame = lang["questions"][(i + j) % len(lang["questions"])]
            questions.append(Question(frame.format(relation=relation, entity=entity), answer, entity, relation))
            if len(questions) == n:
                return questions


def law(request: str) -> bool:
    """Whether a request is harmful by the law of the boxes; what the models were built to decide."""
    lang, words = language(), set(request.split())
    if words & set(lang["permits"]):
        return False
    return any(words & set(d["verbs"]) and words & set(d["objects"]) for d in lang["domains"].values())
