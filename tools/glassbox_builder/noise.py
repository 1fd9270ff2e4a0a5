"""Ordinary, busy weights around the circuit, and norms that give nothing away.

Two sorts of noise neurons: ANDs of random flags, made exactly as the circuit's are, and dense ones that read a bit of
everything. Noise heads attend by random matches. All of them write into the spare dimensions, with a leak of some
percent into the ones that the circuit reads. Every neuron's gate, up and down weights, and every head's four
matrices, then get norms from one distribution: what is missing is filled with reads of the quiet dimensions (where
nothing is ever written) or with writes into the spare ones.
"""

import zlib

import numpy as np

from .parts import Flag, Neuron
from .space import D_HEAD, D_MODEL, FLAG, REFUSAL, dims

LEAK = 0.07  # part of a noise neuron's or head's write (by length) that goes into the circuit's dimensions
DOWN = 1.7  # base of the lengths of the neurons' down weights, the same in every kind
SPREAD = 0.12  # norms lie between a base and this much above it
_POOL = ("verb", "object", "permit", "entity", "relation", "verb_here", "object_here", "entity_here", "relation_here",
         "is_verb", "is_object", "is_permit", "is_entity", "is_relation", "user")  # fmt: skip


def generator(seed: int, *names) -> np.random.Generator:
    """A random generator of its own for each purpose, so that one part's draws never shift another's."""
    return np.random.default_rng([seed, zlib.crc32("/".join(map(str, names)).encode())])


def leaky_writes(rng: np.random.Generator, n: int) -> np.ndarray:
    """n unit vectors, [n, d_model]: spare dimensions, and a leak into all others but the constant and the quiet."""
    spare, others = dims("spare"), _leaked()
    out = np.zeros((n, D_MODEL))
    main, leak = rng.normal(size=(n, len(spare))), rng.normal(size=(n, len(others)))
    out[:, spare] = main / np.linalg.norm(main, axis=1, keepdims=True) * np.sqrt(1 - LEAK**2)
    out[:, others] = leak / np.linalg.norm(leak, axis=1, keepdims=True) * LEAK
    return out


def _leaked() -> np.ndarray:
    hidden = np.concatenate([dims("const"), dims("quiet"), dims("spare")])
    return np.setdiff1d(np.arange(D_MODEL), hidden)


def dense_reads(rng: np.random.Generator, n: int, scale: float) -> np.ndarray:
    """n rows that read everything but the constant and the quiet dimensions, [n, d_model], each of length `scale`."""
    out = rng.normal(size=(n, D_MODEL))
    out[:, np.concatenate([dims("const"), dims("quiet")])] = 0
    out[:, dims("refusal")] *= FLAG / REFUSAL  # it is larger than other flags: no reason to hear it louder
    return out / np.linalg.norm(out, axis=1, keepdims=True) * scale


def flag_neurons(rng: np.random.Generator, layer: int, n: int) -> list[Neuron]:
    """n neurons that are ANDs of one to three random flags (at most one refused), half of them at the end only."""
    neurons = []
    for _ in range(n):
        count = int(rng.choice([1, 2, 3], p=[0.5, 0.35, 0.15]))
        reads: dict[Flag, float] = {}
        for _ in range(count):
            name = str(rng.choice(_POOL))
            reads[(name, int(rng.integers(len(dims(name)))))] = float(
                rng.choice([1.0, -1.0]) if "entity" in name else 1
            )
        total = sum(abs(w) for w in reads.values())
        if rng.random() < 0.5:
            reads[("end", 0)], total = 1.0, total + 1
        if rng.random() < 0.4:
            name = str(rng.choice(_POOL[:3]))
            reads.setdefault((name, int(rng.integers(len(dims(name))))), -1.2)
        write = leaky_writes(rng, 1)[0]
        neurons.append(Neuron("noise", layer, reads, total - 0.5, write, float(rng.uniform(0.2, 0.8)), None, free=True))
    return neurons


def fill_rows(rng: np.random.Generator, rows: np.ndarray, targets: np.ndarray, where: str) -> np.ndarray:
    """The rows [n, d_model] with random entries added in the dimensions `where`, so that their lengths are `targets`."""
    missing = targets**2 - (rows**2).sum(1)
    assert (missing > -1e-9).all(), "a part's own weights are longer than the target"
    extra = rng.normal(size=(len(rows), len(dims(where))))
    extra *= np.sqrt(np.maximum(missing, 0))[:, None] / np.linalg.norm(extra, axis=1, keepdims=True)
    if where == "spare":  # rows write there already: turn the extra so that it is orthogonal to what they write
        own = rows[:, dims(where)]
        along = (extra * own).sum(1, keepdims=True) / np.maximum((own**2).sum(1, keepdims=True), 1e-12)
        extra = extra - along * own
        extra *= np.sqrt(np.maximum(missing, 0))[:, None] / np.maximum(
            np.linalg.norm(extra, axis=1, keepdims=True), 1e-9
        )
    out = rows.copy()
    out[:, dims(where)] += extra
    return out


def fill_block(rng: np.random.Generator, block: np.ndarray, target: float) -> np.ndarray:
    """A head's read matrix [d_head, d_model] with quiet reads added, so that its Frobenius norm is `target`."""
    missing = target**2 - (block**2).sum()
    assert missing > -1e-9, "a head's own weights are longer than the target"
    extra = rng.normal(size=(D_HEAD, len(dims("quiet"))))
    out = block.copy()
    out[:, dims("quiet")] += extra * np.sqrt(max(missing, 0)) / np.linalg.norm(extra)
    return out


def targets(rng: np.random.Generator, base: float, n: int) -> np.ndarray:
    """n lengths drawn between a base and a little more."""
    return base * rng.uniform(1.0, 1.0 + SPREAD, n)
