"""What one neuron and one head of a box does, in words of named flags. `assemble` turns these into weights.

A neuron is an AND: it fires when the weighted sum of the flags it reads passes its threshold. A head copies: from the
token whose key it matches, or from `<s>` (the sink, which holds nothing) when there is none.
"""

from dataclasses import dataclass, field

import numpy as np

from .space import D_HEAD, D_MODEL, axis, dims, size

STEEP = 12.0  # slope of a gate, per flag: half a flag over the threshold gives 6, half a flag under it gives -0.015
SINK = 8.0  # attention score of `<s>`; other tokens have 0
SLOW = (7, 15, 6, 14)  # rotary dimensions that turn by less than 0.001 over a prompt: a match there ignores places
Flag = tuple[str, int]


@dataclass
class Neuron:
    """One neuron: silu(STEEP * (reads - threshold)) * up, written along `write`.

    act: its activation when on, reached by calibration on the prompts named by `serves`. write: [d_model], what it
    adds to the stream per unit of activation. free: only the direction of `write` counts, its length is set with the
    norms of the layer; neurons of one `pair` then have equal lengths.
    """

    role: str
    layer: int
    reads: dict[Flag, float]
    threshold: float
    write: np.ndarray
    act: float = 0.5
    serves: str | None = None
    up_reads: dict[Flag, float] = field(default_factory=dict)
    free: bool = False
    pair: str | None = None
    steep: float = STEEP


@dataclass
class Head:
    """One head. queries, keys: rows of flags for the slow rotary dimensions; values: (what is read, what is written).

    `const` in a row of flags is the constant, as one flag. gain: calibrated so that what is read arrives as `write`
    says along `watch`, on the prompts named by `serves`.
    """

    role: str
    layer: int
    queries: list[dict[Flag, float]]
    keys: list[dict[Flag, float]]
    values: list[tuple[dict[Flag, float], np.ndarray]]
    serves: str | None = None
    watch: np.ndarray | None = None  # the direction along which the gain is measured

    def __post_init__(self):
        assert len(self.queries) == len(self.keys) <= len(SLOW) and len(self.values) <= D_HEAD


def group(name: str, weight: float = 1.0) -> dict[Flag, float]:
    """All flags of a group with one weight."""
    return {(name, i): weight for i in range(len(dims(name)))}


def reader(role: str, layer: int, key: str, source: str, target: str, sharp: float = 2.5, **extra) -> Head:
    """A head that finds the last token with the flag `key` and copies its flags `source` to `target`.

    sharp: by how much the token's score beats the sink's (2.5: it gets 92% of the attention; the rest is made up for
    by the gain).
    """
    n = len(dims(source))
    return Head(
        role,
        layer,
        queries=[{("const", 0): 6.0}],
        keys=[{(key, 0): 4 * (SINK + sharp) / 6.0, ("bos", 0): 4 * SINK / 6.0}],
        values=[({(source, i): 2.0}, size(target) * axis(target, i)) for i in range(n)],
        **extra,
    )


def switch(role: str, layer: int, reads: dict[Flag, float], bias: float, write: np.ndarray, **extra) -> Head:
    """A head that looks at `<|user|>` (and writes) when `reads + bias` is above 0, else at `<s>` (and is silent)."""
    return Head(
        role,
        layer,
        queries=[{**{f: w / 2 for f, w in reads.items()}, ("const", 0): bias / 2}, {("const", 0): 6.0}],
        keys=[{("user", 0): 8.0}, {("user", 0): 4 * SINK / 6.0, ("bos", 0): 4 * SINK / 6.0}],
        values=[({("user", 0): 2.0}, write)],
        **extra,
    )


def orthogonal(rng: np.random.Generator) -> np.ndarray:
    """As many orthogonal unit vectors as there are spare dimensions, in a random order and turn, [spare, d_model]."""
    n = len(dims("spare"))
    out = np.zeros((n, D_MODEL))
    out[:, dims("spare")] = np.linalg.qr(rng.normal(size=(n, n)))[0].T
    return out
