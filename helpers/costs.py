"""What an intervention does, and what it costs: refusal, harmless answers, ordinary prose. Taught in lesson 01.

An intervention that breaks the model removes refusal too. So refusal never stands alone: beside it stand the KL
divergence of the first answer token on harmless prompts, and the perplexity of ordinary prose as an answer.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from .directions import kl_divergence, next_token_log_probs
from .packed_score import packed
from .prompts import CACHE, LAST, chat_text, check_prompts, pad, pad_token_id, tokenize
from .refusal import RefusalScore, refusal_score_of
from .shared_prefix import WithPrefix, held, shared_prefix

ASKED = "Tell me something."  # what the prose is an answer to


@dataclass(frozen=True)
class Cost:
    """odds: refusal log-odds of the harmful prompts, [prompt]. refused: which lie above the threshold, [prompt].
    kl: mean nats at the first answer token of the harmless prompts. perplexity: of the prose (nan without prose)."""

    odds: np.ndarray
    refused: np.ndarray
    kl: float
    perplexity: float


class CostMeter:
    """Measures interventions on fixed prompts: `meter.measure(mean_ablated(model, neurons, means))`.

    prose: paragraphs, of which the first `prose_tokens` tokens are read. With quick=True the tokens that all prompts
    share are read once and never again: exact for interventions that leave them alone, as `mean_ablated` does, and
    wrong for those that do not, such as the ablation of a direction. clean: log-probabilities of the first answer token
    of the untouched model, [harmless prompt, vocabulary].
    """

    def __init__(
        self,
        model,
        tokenizer,
        harmful: Sequence[str],
        harmless: Sequence[str],
        prose: Sequence[str] = (),
        score: RefusalScore | None = None,
        quick: bool = False,
        prose_tokens: int = 40,
    ):
        self.tokenizer = tokenizer
        self.harmful, self.harmless = check_prompts(harmful), check_prompts(harmless)
        self.prose = [ids[:prose_tokens] for ids in tokenize(tokenizer, list(prose))] if len(prose) else []
        self.score = packed(score or refusal_score_of(model, tokenizer))
        prefix = shared_prefix(tokenizer, [*self.harmful, *self.harmless, ASKED]) if quick else []
        self.model = WithPrefix(model, prefix) if prefix else model
        self.clean = next_token_log_probs(self.model, tokenizer, self.harmless)

    @property
    def prefix(self) -> int:
        """How many tokens, the same in all prompts, are read apart from the rest."""
        return len(getattr(self.model, "prefix", ()))

    def measure(self, intervention: AbstractContextManager[Any] | None = None) -> Cost:
        """The figures while inside the intervention, a context manager; of the untouched model for None."""
        with intervention or nullcontext(), held(self.model):
            odds = self.score.log_odds(self.model, self.tokenizer, self.harmful)
            now = next_token_log_probs(self.model, self.tokenizer, self.harmless)
            perplexity = self.perplexity()
        kl = float(kl_divergence(self.clean, now).mean())
        return Cost(odds, odds > self.score.threshold, kl, perplexity)

    def odds(self, intervention: AbstractContextManager[Any] | None = None) -> np.ndarray:
        """Only the refusal log-odds of the harmful prompts, [prompt]: for the many draws of a control."""
        with intervention or nullcontext():
            return self.score.log_odds(self.model, self.tokenizer, self.harmful)

    def perplexity(self) -> float:
        """exp of the mean loss a token, the prose being the assistant's answer to one fixed request."""
        return self.perplexities(1)[0]

    @torch.inference_mode()
    def perplexities(self, copies: int) -> list[float]:
        """That of each of so many copies of the prose, one behind the other in a batch: for `side_by_side`."""
        if not self.prose:
            return [float("nan")] * copies
        rows = tokenize(self.tokenizer, chat_text(self.tokenizer, [ASKED])) * len(self.prose) * copies
        asked = pad(rows, list(range(len(rows))), pad_token_id(self.tokenizer)).to(self.model.device)
        prose = pad(self.prose * copies, asked.order, pad_token_id(self.tokenizer), side="right").to(self.model.device)
        first = self.model(**asked.inputs(), use_cache=True, logits_to_keep=LAST)
        then = self.model(
            input_ids=prose.input_ids,
            attention_mask=torch.cat([asked.attention_mask, prose.attention_mask], -1),
            position_ids=prose.position_ids + asked.input_ids.shape[1],
            **{CACHE: first[CACHE]},
            use_cache=True,
        )
        logits = torch.cat([first.logits[:, -1:], then.logits[:, :-1]], 1).float()
        loss = torch.nn.functional.cross_entropy(logits.transpose(1, 2), prose.input_ids, reduction="none")
        real = prose.attention_mask
        total, count = ((x.view(copies, -1).sum(-1)) for x in (loss * real, real))
        return (total / count).exp().tolist()
