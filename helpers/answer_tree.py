"""A prompt and all the openings of its answer in one forward: behind each prompt stands a tree of tokens.

Openings such as `I can`, `I won` and `I must` ask for the next token after one and the same `I`, so their beginnings make a tree.
Its tokens stand in a row behind the prompt; each sees the prompt and its own ancestors, and no other branch. One forward
of more rows keeps a processor busier than three of few. Used by `packed_score.py` and `sweep.py`.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch

from .models import body_of, sliding_window_of
from .prompts import Batch

MASKABLE = ("sdpa", "eager")  # implementations of attention that take a mask of ours
# (width of a batch with its trees, tokens of a tree) while one is read.
_now: ContextVar[tuple[int, int]] = ContextVar("answer_tree", default=(0, 0))


def answer_columns(mask: torch.Tensor) -> int:
    """How many tokens at the end of a forward with this mask, [batch, position], are the answer's: those of a tree, else none."""
    width, count = _now.get()
    return count if mask.shape[-1] == width else 0


@dataclass(frozen=True)
class AnswerTree:
    """nodes: beginnings of an answer as token ids, each after its own ancestors."""

    nodes: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, openings: Sequence[Sequence[int]]) -> "AnswerTree":
        """The tree that tells the probabilities of these openings: all their beginnings but themselves."""
        beginnings = {tuple(o[:i]) for o in openings for i in range(1, len(o))}
        return cls(tuple(sorted(beginnings, key=lambda node: (len(node), node))))

    def behind(self, batch: Batch) -> Batch:
        """The batch, padded at either side, with the tree's tokens behind every prompt. `last` stays each prompt's own."""
        ids, device = batch.input_ids, batch.input_ids.device
        tokens = torch.tensor([node[-1] for node in self.nodes], dtype=torch.long, device=device).expand(len(ids), -1)
        depth = torch.tensor([len(node) for node in self.nodes], dtype=torch.long, device=device)
        positions = batch.position_ids.gather(1, batch.last[:, None]) + depth
        return Batch(
            torch.cat([ids, tokens], 1),
            torch.cat([batch.attention_mask, torch.ones_like(tokens)], 1),
            torch.cat([batch.position_ids, positions], 1),
            batch.last,
            batch.order,
        )

    def sees(self, mask: torch.Tensor) -> torch.Tensor:
        """Who sees whom in a batch with its trees and this mask, bool [batch, position, position]: earlier real tokens; in the tree,
        its own ancestors."""
        total, count = mask.shape[-1], len(self.nodes)
        sees = torch.ones(total, total, dtype=torch.bool).tril()
        descends = [[node[: len(other)] == other for other in self.nodes] for node in self.nodes]
        sees[total - count :, total - count :] = torch.tensor(descends)
        return sees.to(mask.device) & mask.bool()[:, None]

    def fits(self, model, width: int) -> bool:
        """Whether this model takes an attention mask of ours, for a batch of this width with its trees."""
        config, window = body_of(model).config.get_text_config(), sliding_window_of(model)
        alone = model.config.get_text_config() is model.config  # not the text half of a model that also sees
        takes = getattr(config, "_attn_implementation", "sdpa") in MASKABLE
        return alone and takes and (not window or width <= window)

    @contextmanager
    def read_by(self, model, width: int) -> Iterator[None]:
        """While inside, a forward of the model whose plain mask has this width reads its last tokens as the tree."""

        def branch(_, args, kwargs):
            mask = kwargs.get("attention_mask")
            if mask is None or mask.shape[-1] != width:
                return None  # another forward: the shared beginning
            ids = kwargs["input_ids"] if kwargs.get("input_ids") is not None else args[0]
            itself = torch.eye(
                width, dtype=torch.bool, device=mask.device
            )  # for padding: a row of nothing has no softmax
            sees = (self.sees(mask) | itself)[:, None, -ids.shape[1] :]
            added = torch.zeros(sees.shape, dtype=model.dtype, device=sees.device)  # to the attention scores
            return args, kwargs | {"attention_mask": added.masked_fill(~sees, torch.finfo(model.dtype).min)}

        token = _now.set((width, len(self.nodes)))
        handle = body_of(model).register_forward_pre_hook(branch, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()
            _now.reset(token)
