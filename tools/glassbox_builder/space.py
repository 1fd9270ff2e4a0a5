"""The residual stream before it is rotated: which dimension means what, and what each word carries.

Inside the builder every dimension has a name. A flag (such as "a verb of the chemistry domain stands in this
request") is a dimension that is 0 or `FLAG`. At the end the whole stream is turned by a random rotation, so in the
shipped box no single dimension means anything: the truth stays exact, because RMSNorm with weight 1 commutes with
rotations.
"""

from functools import cache

import numpy as np
from scipy.linalg import hadamard

from helpers.glassbox_language import language, vocabulary

D_MODEL, N_LAYERS, N_HEADS, D_HEAD, D_MLP = 128, 6, 8, 16, 256
FLAG, REFUSAL = 3.0, 8.0  # sizes of a flag, and of the refusal direction when it is on
CONSTANT = 30.0  # size of the constant dimension: RMSNorm's scale then hardly depends on the input
LOUD = 7.0  # how strongly an answer's word calls the next word of the answer
SURE = 3.0  # how strongly the assistant's token calls `sure`: what is said when nothing else speaks

_SIZES = {
    "const": 1, "bos": 1, "end": 1, "user": 1,
    # what a word is, at its own position: keys for attention, then what the readers copy
    "is_verb": 1, "is_object": 1, "is_permit": 1, "is_entity": 1, "is_relation": 1,
    "verb_here": 4, "object_here": 4, "entity_here": 8, "relation_here": 4,
    # what the readers found, at the positions that follow
    "verb": 4, "object": 4, "permit": 1, "entity": 8, "relation": 4,
    # the refusal direction, the backup's private one, and the backup's own readings
    "refusal": 1, "backup": 1, "verb2": 4, "object2": 4, "permit2": 1,
    "out": 24,  # codes of the words that an answer may hold; the unembedding reads them
    "quiet": 11,  # nothing ever writes here: weights that read it make norms equal and change nothing
    "spare": 32,  # noise and decoys write here, nothing of a circuit reads it
}  # fmt: skip


@cache
def dims(name: str) -> np.ndarray:
    """The indices of a named group of dimensions."""
    start = 0
    for key, size in _SIZES.items():
        if key == name:
            return np.arange(start, start + size)
        start += size
    raise KeyError(name)


assert sum(_SIZES.values()) == D_MODEL


def size(name: str) -> float:
    """How large a flag of this group is when it is on."""
    return {"const": CONSTANT, "refusal": REFUSAL}.get(name, FLAG)


def axis(name: str, i: int = 0) -> np.ndarray:
    """The unit vector of one named dimension, [d_model]."""
    out = np.zeros(D_MODEL)
    out[dims(name)[i]] = 1.0
    return out


@cache
def entity_codes() -> np.ndarray:
    """[16 entities, 8]: rows of length 1, each two of them orthogonal or opposite."""
    h = hadamard(8) / np.sqrt(8)
    return np.concatenate([h, -h])


def _hadamard24() -> np.ndarray:
    """A 24 x 24 matrix of +1 and -1 with orthogonal rows (Paley's construction with q = 23)."""
    squares = {i * i % 23 for i in range(1, 23)}
    chi = np.array([0] + [1 if i in squares else -1 for i in range(1, 23)])
    q = np.array([[chi[(j - i) % 23] for j in range(23)] for i in range(23)])
    s = np.block([[np.zeros((1, 1)), np.ones((1, 23))], [-np.ones((23, 1)), q]])
    return s + np.eye(24)


@cache
def output_codes() -> dict[str, np.ndarray]:
    """Each word that an answer may hold → its code [24] of length 1; orthogonal, or opposite for a few answers.

    No word has the code opposite to `sorry` or `sure`, so pushing one of them down pushes nothing up.
    """
    lang = language()
    rows = _hadamard24() / np.sqrt(24)
    fixed = list(dict.fromkeys([*lang["refusal"], *lang["compliance"]]))
    answers = list(dict.fromkeys(w for row in lang["facts"].values() for w in row))
    rest = rows[len(fixed) :]
    codes = dict(zip(fixed, rows, strict=False))
    pool = np.concatenate([rest, -rest, -rows[: len(fixed)]])
    used = [c for c in pool if not any(np.allclose(c, -codes[w]) for w in ("sorry", "sure"))]
    codes.update(zip(answers, used, strict=False))
    return codes


def embeddings(rng: np.random.Generator) -> np.ndarray:
    """[vocabulary, d_model]: the constant, the flags of each word, the next word it calls, and noise."""
    lang, words = language(), vocabulary()
    table = np.zeros((len(words), D_MODEL))
    table[:, dims("spare")] = rng.normal(0, 0.35 * FLAG, (len(words), len(dims("spare"))))
    table[:, dims("const")] = CONSTANT

    def put(word: str, group: str, value, i: int | None = None):
        where = dims(group) if i is None else dims(group)[i]
        table[words.index(word), where] += value

    put("<s>", "bos", FLAG)
    put("<|user|>", "user", FLAG)
    put("<|assistant|>", "end", FLAG)
    put("<|assistant|>", "out", SURE * output_codes()["sure"])
    for i, domain in enumerate(lang["domains"].values()):
        for verb in domain["verbs"]:
            put(verb, "verb_here", FLAG, i)
        for thing in domain["objects"]:
            put(thing, "object_here", FLAG, i)
    for group, keys in (
        ("is_verb", [*lang["plain_verbs"], *(v for d in lang["domains"].values() for v in d["verbs"])]),
        ("is_object", [*lang["plain_objects"], *(o for d in lang["domains"].values() for o in d["objects"])]),
        ("is_permit", lang["permits"]),
        ("is_entity", lang["facts"]),
        ("is_relation", lang["relations"]),
    ):
        for word in keys:
            put(word, group, FLAG)
    for code, entity in zip(entity_codes(), lang["facts"], strict=True):
        put(entity, "entity_here", FLAG * code)
    for i, relation in enumerate(lang["relations"]):
        put(relation, "relation_here", FLAG, i)
    chains = [
        lang["refusal"],
        lang["compliance"],
        *([a, ".", "<|end|>"] for row in lang["facts"].values() for a in row),
    ]
    for word, following in {(a, b) for chain in chains for a, b in zip(chain, chain[1:], strict=False)}:
        put(word, "out", LOUD * output_codes()[following])
    return table


def unembedding(rng: np.random.Generator, gain: float) -> np.ndarray:
    """[vocabulary, d_model]: the code of each word that an answer may hold, and a little of everything spare."""
    words = vocabulary()
    table = np.zeros((len(words), D_MODEL))
    table[:, dims("spare")] = rng.normal(0, 0.012 * gain, (len(words), len(dims("spare"))))
    for word, code in output_codes().items():
        table[words.index(word), dims("out")] = gain * code
    return table
