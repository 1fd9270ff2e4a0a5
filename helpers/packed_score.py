"""The refusal score with fewer tokens: the same log-odds, each beginning that openings share read only once.

Openings such as `I can`, `I won` and `I must` ask for the next token after one and the same `I`; and after `I'm` the
model has passed `I` already. So only the longest different stems are run, the short ones apart from the long ones.
Used in lesson 01, whose controls score the same prompts a hundred times.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from .prompts import CACHE, LAST, Batch, check_prompts, token_batches
from .refusal import RefusalScore


@dataclass(frozen=True)
class PackedScore(RefusalScore):
    """A `RefusalScore` of the same openings and threshold, equal to it to rounding."""

    def _stems(self) -> list[tuple[int, ...]]:
        """What has to be run: the stems of the openings, without those that another one begins with."""
        stems = {opening[:-1] for opening in self.openings}
        return sorted(s for s in stems if not any(t != s and t[: len(s)] == s for t in stems))

    def _score_batch(self, model, batch: Batch) -> torch.Tensor:
        """[batch]: the prompts once, then the stems on top of their keys and values."""
        return self._scored(model, batch)[0]

    @torch.inference_mode()
    def log_odds_and_next(self, model, tokenizer, prompts: Sequence[str], batch_size: int = 16):
        """(log-odds [prompt], log-probabilities of the first answer token [prompt, vocabulary]), from the same forwards."""
        odds, rows = np.zeros(len(prompts)), [None] * len(prompts)
        for batch in token_batches(tokenizer, check_prompts(prompts), batch_size):
            scores, start = self._scored(model, batch.to(model.device))
            odds[batch.order] = scores.cpu().numpy()
            for i, row in zip(batch.order, start.cpu(), strict=True):
                rows[i] = row
        return odds, torch.stack(rows)

    def _scored(self, model, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-odds [batch], and log-probabilities of the first answer token [batch, vocabulary]."""
        first = model(**batch.inputs(), use_cache=True, logits_to_keep=LAST)
        start = first.logits[:, -1].float().log_softmax(-1)
        after: dict[tuple[int, ...], torch.Tensor] = {(): start}  # log-probabilities of what follows a stem
        short = [stem for stem in self._stems() if len(stem) == 1]
        long = [stem for stem in self._stems() if len(stem) > 1]
        groups = [stems for stems in (long, short) if stems]
        for stems in groups:  # the last one may use up the cache
            cache = first[CACHE] if stems is groups[-1] else copy.deepcopy(first[CACHE])
            after |= self._after(model, batch, cache, stems)
        terms = []
        for opening in self.openings:
            terms.append(sum(after[opening[:i]][:, token] for i, token in enumerate(opening)))
        log_p = torch.stack(terms, -1).logsumexp(-1).clamp(max=-1e-6)  # p < 1, so that the odds are finite
        return log_p - torch.log(-torch.expm1(log_p)), start

    @staticmethod
    def _after(model, batch: Batch, cache, stems: list[tuple[int, ...]]) -> dict[tuple[int, ...], torch.Tensor]:
        """Log-probabilities of the token after each beginning of the stems, {beginning: [batch, vocabulary]}."""
        n, k, width = len(batch.order), len(stems), max(map(len, stems))
        device = batch.input_ids.device
        ids = torch.tensor([[*stem, *[0] * (width - len(stem))] for stem in stems], device=device)
        real = torch.tensor([[1] * len(stem) + [0] * (width - len(stem)) for stem in stems], device=device)
        cache.batch_repeat_interleave(k)
        position = batch.position_ids.gather(1, batch.last[:, None]) + 1 + torch.arange(width, device=device)
        out = model(
            input_ids=ids.repeat(n, 1),
            attention_mask=torch.cat([batch.attention_mask.repeat_interleave(k, 0), real.repeat(n, 1)], -1),
            position_ids=position.repeat_interleave(k, 0),
            **{CACHE: cache},
            use_cache=True,
        )
        log_probs = out.logits.float().log_softmax(-1).view(n, k, width, -1)
        return {stem[: i + 1]: log_probs[:, j, i] for j, stem in enumerate(stems) for i in range(len(stem))}


def packed(score: RefusalScore) -> PackedScore:
    """The same score, faster."""
    return PackedScore(score.openings, score.threshold)
