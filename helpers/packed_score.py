"""The refusal score in one forward: the same log-odds, each beginning that openings share read only once (`answer_tree.py`).

Used in all lessons, whose controls score the same prompts a hundred times. An edit that counts in the tokens of one
forward, such as `x[:, -1]`, would take the tree's last token for the prompt's: let `erasure.edit_at` find its place.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from .answer_tree import AnswerTree
from .directions import first_token_log_probs
from .prompts import Batch, check_prompts, token_batches
from .refusal import RefusalScore
from .shared_prefix import read_ahead


@dataclass(frozen=True)
class PackedScore(RefusalScore):
    """A `RefusalScore` of the same openings and threshold, equal to it to rounding."""

    def score_batch(self, model, batch: Batch) -> torch.Tensor:
        """Log-odds, [batch]."""
        return self.score_and_next(model, batch)[0]

    @torch.inference_mode()
    def log_odds_and_next(self, model, tokenizer, prompts: Sequence[str], batch_size: int = 16):
        """(log-odds [prompt], log-probabilities of the first answer token [prompt, vocabulary]), from the same forwards."""
        model = read_ahead(model, tokenizer, check_prompts(prompts)) or model
        odds, rows = np.zeros(len(prompts)), [None] * len(prompts)
        for batch in token_batches(tokenizer, prompts, batch_size):
            scores, start = self.score_and_next(model, batch.to(model.device))
            odds[batch.order] = scores.cpu().numpy()
            for i, row in zip(batch.order, start.cpu(), strict=True):
                rows[i] = row
        return odds, torch.stack(rows)

    @torch.inference_mode()
    def score_and_next(self, model, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-odds [batch], and log-probabilities of the first answer token [batch, vocabulary], of a batch padded at the left."""
        tree, bare = AnswerTree.of(self.openings), getattr(model, "bare", model)
        whole = tree.behind(batch)
        width, count = whole.input_ids.shape[1], len(tree.nodes)
        if not tree.fits(bare, width):
            return super().score_batch(model, batch), first_token_log_probs(model, batch)
        with tree.read_by(bare, width):
            out = model(**whole.inputs(), use_cache=True, logits_to_keep=torch.arange(-count - 1, 0))
        log_probs = out.logits.float().log_softmax(-1)  # [batch, the prompt's last token and the tree, vocabulary]
        after = {node: log_probs[:, i] for i, node in enumerate([(), *tree.nodes])}  # of what follows a beginning
        terms = [sum(after[o[:i]][:, token] for i, token in enumerate(o)) for o in self.openings]
        log_p = torch.stack(terms, -1).logsumexp(-1).clamp(max=-1e-6)  # p < 1, so that the odds are finite
        return log_p - torch.log(-torch.expm1(log_p)), after[()]


def packed(score: RefusalScore) -> PackedScore:
    """The same score, faster."""
    return PackedScore(score.openings, score.threshold)
