"""Which tokens of two runs correspond: the template's beginning, the request, the template's end. Taught in lesson 02.

A patch at a position makes sense only if that position does the same job in both runs. Two prompts of one template
agree from the end backwards as far as the template goes, whatever their length. Within the request they correspond
only if both have equally many tokens.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from .prompts import Batch, chat_text, check_prompts, pad, tokenize
from .shared_prefix import PROBES, shared_prefix

NAMED = ("last", "end", "roles", "map", "all")


@dataclass(frozen=True)
class Roles:
    """Token ids of both sides (harmful, benign), and for each label the span of its tokens in each pair.

    spans: {label: [pair, 2]}, from and up to (not including), counted from the end (negative; 0 is the end itself).
    whole: whether positions within the request are used, so that donors must be of equal length.
    """

    rows: tuple[list[list[int]], list[list[int]]]
    spans: dict[str | int, np.ndarray]
    whole: bool

    @property
    def labels(self) -> list[str | int]:
        return list(self.spans)

    def columns(self, part: Sequence[int], width: int) -> list[torch.Tensor]:
        """For each side, bool [label, pair, position]: where the labels are in rows padded at the left to `width`."""
        place = torch.arange(-width, 0)
        stacked = torch.tensor(np.stack([spans[list(part)] for spans in self.spans.values()]))
        inside = (place >= stacked[..., :1]) & (place < stacked[..., 1:])
        return [inside & (place >= -torch.tensor([len(side[i]) for i in part])[:, None]) for side in self.rows]

    def batches(self, part: Sequence[int], pad_id: int) -> list[Batch]:
        """For each side these pairs' tokens, both padded at the left to one width: columns agree from the end."""
        width, out = max(len(side[i]) for side in self.rows for i in part), []
        for side in self.rows:
            wide = pad([*(side[i] for i in part), [pad_id] * width], [*part, -1], pad_id)  # the last row is dropped
            tensors = (wide.input_ids, wide.attention_mask, wide.position_ids, wide.last)
            out.append(Batch(*(tensor[:-1] for tensor in tensors), order=list(part)))
        return out

    def swaps(self, side: int, part: Sequence[int], draws: int, seed: int = 0) -> list[torch.Tensor]:
        """`draws` times, for each pair of this part another one of it, [pair], of equal length where that matters; -1
        where there is none."""
        rng, out = np.random.default_rng([seed, side, *part]), []
        lengths = [len(self.rows[side][i]) if self.whole else 0 for i in part]
        for _ in range(draws):
            swap = torch.full((len(part),), -1)
            for length in set(lengths):
                group = rng.permutation([i for i, n in enumerate(lengths) if n == length])
                if len(group) > 1:
                    swap[group] = torch.tensor(np.roll(group, 1))
            out.append(swap)
        return out


def template_ends(tokenizer) -> tuple[int, int]:
    """How many tokens the chat template puts before and after the request: (before, after)."""
    rows = tokenize(tokenizer, chat_text(tokenizer, list(PROBES)))
    return len(shared_prefix(tokenizer, list(PROBES))), len(os.path.commonprefix([row[::-1] for row in rows]))


def members(pair) -> tuple[str, str]:
    """(harmful, harmless) of a `Pair`, or of a plain tuple of two texts. Raises ValueError for anything else."""
    if hasattr(pair, "harmful"):
        return pair.harmful, pair.harmless
    if isinstance(pair, tuple | list) and len(pair) == 2:
        return pair[0], pair[1]
    raise ValueError(f"A pair is (harmful, harmless), or one of load_pairs(); {str(pair)[:40]!r} is not.")


def equal_length(tokenizer, pairs: Sequence, count: int | None = None) -> list:
    """Those pairs whose two members have equally many tokens; only they can be patched token by token. The first `count`."""
    sides = [tokenize(tokenizer, chat_text(tokenizer, [members(p)[i] for p in pairs])) for i in (0, 1)]
    return [p for p, a, b in zip(pairs, *sides, strict=True) if len(a) == len(b)][:count]


def roles_of(tokenizer, harmful: Sequence[str], benign: Sequence[str], positions: str | Sequence) -> Roles:
    """The roles of these pairs' tokens.

    positions: "last", the template's last token; "end", each token of the template's end; "roles", its beginning, the
    request, its end; "map", the request's words that differ, those after them, and each token of the template's end;
    "all", everything from the first difference on; or a list of numbers counted from the end, and of labels of "map",
    such as ("differing words", -1).
    Raises ValueError for anything else, and for pairs of unequal length where the request's tokens are meant.
    """
    if not isinstance(positions, str) and any(isinstance(one, str) for one in positions):
        every = roles_of(tokenizer, harmful, benign, "map")
        if unknown := [one for one in positions if one not in every.spans]:
            raise ValueError(f"There is no place {unknown[0]!r}: choose from {', '.join(map(repr, every.spans))}.")
        return Roles(every.rows, {one: every.spans[one] for one in positions}, whole=True)
    rows = tuple(tokenize(tokenizer, chat_text(tokenizer, check_prompts(side))) for side in (harmful, benign))
    before, after = template_ends(tokenizer)
    numbers = _numbers(positions, after, rows)
    whole = numbers is None or min(numbers) < -after
    if whole:
        _check_lengths(rows, after)
    count = len(rows[0])
    if numbers is not None:
        return Roles(rows, {n: np.tile([n, n + 1], (count, 1)) for n in numbers}, whole)
    length = np.array(list(map(len, rows[0])))
    first, last = np.array([_differ(a, b) for a, b in zip(*rows, strict=True)]).T
    request = np.stack([before - length, np.full(count, -after)], -1)
    if positions == "roles":
        spans = {"template prefix": np.stack([-length, request[:, 0]], -1), "request": request}
        spans["template end"] = np.tile([-after, 0], (count, 1))
    elif positions == "map":
        spans = {"differing words": np.stack([first, last], -1), "words after": np.stack([last, request[:, 1]], -1)}
        spans |= {n: np.tile([n, n + 1], (count, 1)) for n in range(-after, 0)}
    else:
        spans = {"all": np.stack([first, np.zeros(count, dtype=int)], -1)}
    return Roles(rows, spans, whole)


def _numbers(positions, after: int, rows) -> list[int] | None:
    """Positions counted from the end, or None for those that have names."""
    if isinstance(positions, str):
        if positions not in NAMED:
            raise ValueError(f"There are no positions {positions!r}: choose one of {', '.join(NAMED)}, or numbers.")
        return {"last": [-1], "end": list(range(-after, 0))}.get(positions)
    numbers, shortest = list(positions), min(min(map(len, side)) for side in rows)
    for n in numbers:
        if isinstance(n, bool) or not isinstance(n, int | np.integer) or not -shortest <= n < 0:
            raise ValueError(f"Position {n!r} is not there: count from the end, -1 to {-shortest} in these prompts.")
    if not numbers:
        raise ValueError("The list of positions is empty: give (-1,) for the last token.")
    return [int(n) for n in numbers]


def _check_lengths(rows, after: int) -> None:
    unequal = [i for i, (a, b) in enumerate(zip(*rows, strict=True)) if len(a) != len(b)]
    if unequal:
        a, b = (len(side[unequal[0]]) for side in rows)
        raise ValueError(
            f"Pair {unequal[0]} has {a} tokens in its harmful and {b} in its benign prompt ({len(unequal)} of "
            f"{len(rows[0])} pairs differ), so the tokens of its requests do not correspond. Trace positions='end', "
            f"the last {after} tokens, which are the template's and align from the end; or keep pairs of equal length: "
            "equal_length(tokenizer, pairs)."
        )


def _differ(a: list[int], b: list[int]) -> tuple[int, int]:
    """From and up to where two rows of equal length differ, counted from the end. Raises ValueError if they do not."""
    different = [i for i, (x, y) in enumerate(zip(a, b, strict=True)) if x != y]
    if not different:
        raise ValueError("The harmful and the benign prompt of a pair are the same: there is nothing to exchange.")
    return different[0] - len(a), different[-1] + 1 - len(a)
