"""What an edit does and what it costs, all in one row. Taught in lesson 05.

Three costs stand beside every edit: harmful requests refused (what was aimed at), harmless ones refused (over-refusal), and
damage to everything else: perplexity of prose, KL on harmless prompts, and a capability set. The intact model refuses some
harmless requests too. The KL leaves those out, or it would count an edit's effect on these refusals as damage.
"""

import copy
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np

from .capability import Fact, knows
from .costs import CostMeter
from .directions import kl_divergence
from .fresh_prefix import fresh
from .packed_score import packed
from .prompts import check_prompts
from .refusal import refusal_score_of
from .shared_prefix import held
from .statistics import mean_interval


@dataclass(frozen=True)
class EditCosts:
    """odds: refusal log-odds of the harmful prompts, [prompt]. refused, over_refused: which prompts are refused, [prompt]:
    harmful, and harmless or borderline. knows: [fact]. kl: nats on harmless prompts. perplexity: of prose."""

    odds: np.ndarray
    refused: np.ndarray
    over_refused: np.ndarray
    kl: float
    perplexity: float
    knows: np.ndarray

    def row(self) -> dict[str, float]:
        """As one row of a table; `low` and `high` are a 95% interval of the refused share over topics."""
        low, high = mean_interval(self.refused)
        return {
            "refused": float(self.refused.mean()),
            "low": low,
            "high": high,
            "topics": len(self.refused),
            "log-odds": float(self.odds.mean()),
            "over-refused": float(self.over_refused.mean()),
            "KL": self.kl,
            "perplexity": self.perplexity,
            "facts known": float(self.knows.mean()),
        }


class EditMeter:
    """Measures edits on fixed prompts: an intervention that is switched on, or another model with the same tokenizer.

    harmless: for the KL, those of them that the untouched model answers (all, if it answers none); and with borderline,
    where there are some, for over-refusal. prose and quick as in `CostMeter`, of
    which this is the larger sister; without quick, the shared beginning is read once a batch, under the edit.
    """

    def __init__(
        self,
        model,
        tokenizer,
        harmful: Sequence[str],
        harmless: Sequence[str],
        facts: Sequence[Fact],
        prose: Sequence[str] = (),
        score=None,
        quick: bool = False,
        prose_tokens: int = 40,
        borderline: Sequence[str] = (),
    ):
        self.facts, self.harmless = list(facts), check_prompts([*harmless, *borderline])
        score = packed(score or refusal_score_of(model, tokenizer))
        refused = score.log_odds(model, tokenizer, harmless) > score.threshold
        harmless = [p for p, no in zip(harmless, refused, strict=True) if not no] or harmless
        self.meter = fresh(
            CostMeter(model, tokenizer, harmful, harmless, prose, score, quick, prose_tokens), replay=False
        )

    def on(self, model) -> "EditMeter":
        """The same measurements of another model, an edited copy; KL is still from the first one."""
        new = copy.copy(self)
        new.meter = copy.copy(self.meter)
        prefix = getattr(self.meter.model, "prefix", None)
        new.meter.model = type(self.meter.model)(model, prefix) if prefix else model  # read as before
        return new

    def measure(self, intervention: AbstractContextManager[Any] | None = None) -> EditCosts:
        """All figures, while inside the intervention."""
        meter = self.meter
        with intervention or nullcontext(), held(meter.model):
            odds = meter.odds()
            over, now = meter.score.log_odds_and_next(meter.model, meter.tokenizer, self.harmless)
            perplexity = meter.perplexity()
            known = knows(meter.model, meter.tokenizer, self.facts)
        kl = float(kl_divergence(meter.clean, now[[self.harmless.index(p) for p in meter.harmless]]).mean())
        threshold = meter.score.threshold
        return EditCosts(odds, odds > threshold, over > threshold, kl, perplexity, known)

    def odds(self, intervention: AbstractContextManager[Any] | None = None) -> np.ndarray:
        """Only the refusal log-odds of the harmful prompts, [prompt]."""
        return self.meter.odds(intervention)

    @property
    def threshold(self) -> float:
        """The log-odds above which an answer counts as a refusal."""
        return self.meter.score.threshold
