"""Watch a model while it answers: is harm being asked for, and is this still the model that was watched? Taught in lesson 07.

`SafetyMonitor` reads a few layers with linear probes, at every token. What counts is the reading at the template's last token,
before the answer begins: words that an attacker puts into the model's mouth come after it. The probes learn from prompts whose
label is *known*, never from what the model does with them: a model that was made to comply would teach them to keep silent.

Fit on the split "method", set the threshold on "validation", report on "test". On an alarm the answer is stopped, and a refusal
stands in its place. `tamper.py` is the other half: has somebody been at the model?
"""

import copy
import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
import torch
from transformers import StoppingCriteria, StoppingCriteriaList

from .fresh_prefix import headless_of, in_context
from .hooks import check_site, edit, record
from .models import dims_of
from .probing import fit_probe
from .prompts import chat_text, check_prompts, pad_token_id, token_batches, tokenize
from .refusal import end_tokens
from .tamper import SITE, Inspection, TamperWatch

REFUSAL = "I'm sorry, but I can't help with that."
HARM, TAMPERED = "harmful request", "tampered model"
RATE, STRICT_RATE, MANY = 0.05, 0.01, 500  # false alarms: 5%, and 1% where there are many harmless prompts
CANARIES = 2  # of each sort


@dataclass(frozen=True)
class Watched:
    """One answer under watch. text: what the user gets. alarm: HARM, TAMPERED, or None. tokens, scores: every token that the
    model read, [token], the request and the answer so far, with the monitor's log-odds of harm at each; start: the place of the
    answer's first token among them. score: the reading that counts, at the token before `start` (before a prefill, if any)."""

    text: str
    alarm: str | None
    score: float
    tokens: tuple[str, ...]
    scores: np.ndarray
    start: int


class SafetyMonitor:
    """A monitor of one model: `SafetyMonitor(model, tokenizer).fit(harmful, harmless)`, then `.set_threshold(...)`.

    layers: whose output is read; None for three, from the middle to two thirds of the way up, where lesson 03 found harm to be
    readable. Raises ValueError for layers that are not there.
    """

    def __init__(self, model, tokenizer, layers: Sequence[int] | None = None):
        n = dims_of(model).n_layers
        layers = sorted({n // 2 - 2, n * 16 // 30, n * 19 // 30}) if layers is None else list(layers)
        if not layers:
            raise ValueError("A monitor has to read something: give at least one layer.")
        for layer in layers:
            check_site(model, SITE, layer)
        self.model, self.tokenizer, self.layers = model, tokenizer, layers
        self.weights = self.bias = self.threshold = self.tamper = None
        self._learned_from: frozenset[str] = frozenset()

    # --- learning ------------------------------------------------------------------------------------------

    def fit(
        self,
        harmful: Sequence[str],
        harmless: Sequence[str],
        also: Iterable[Callable[[], AbstractContextManager]] = (),
        C: float = 0.01,
    ) -> "SafetyMonitor":
        """Learn from prompts of the split "method", and remember the model as it is now. Returns the monitor.

        also: attacks to be ready for, such as `lambda: ablate_direction(model, direction)`: the same prompts with the same
        labels are read once more under each. Raises ValueError for a prompt that stands in both lists.
        """
        harmful, harmless = check_prompts(harmful), check_prompts(harmless)
        if both := set(harmful) & set(harmless):
            raise ValueError(
                f"{min(both)!r} stands among the harmful and the harmless prompts: take it out of one list."
            )
        prompts = [*harmless, *harmful]
        labels = torch.cat([torch.zeros(len(harmless)), torch.ones(len(harmful))])
        x = [self.activations(prompts)]
        for attack in also:
            with attack():
                x.append(self.activations(prompts))
        self.weights, self.bias = fit_probe(
            torch.cat(x).transpose(0, 1), labels.repeat(len(x)), C
        )  # [layer, d], [layer]
        self.tamper = TamperWatch(self.model, self.tokenizer, [*harmful[:CANARIES], *harmless[:CANARIES]], self.layers)
        self.threshold, self._learned_from = None, frozenset(prompts)
        return self

    def set_threshold(self, harmless: Sequence[str], rate: float | None = None) -> float:
        """The lowest threshold that at most `rate` of these harmless prompts pass, from the split "validation".

        rate: None for 5%, and for 1% where there are 500 prompts or more. Raises ValueError for prompts that the monitor
        has learned from, a rate that is no share, and too few prompts to tell it from zero.
        """
        self._need("weights", "fit(harmful, harmless)")
        harmless = check_prompts(harmless)
        rate = (STRICT_RATE if len(harmless) >= MANY else RATE) if rate is None else rate
        if not 0 < rate < 1:
            raise ValueError(f"The rate of false alarms is a share between 0 and 1; {rate!r} is not.")
        if known := self._learned_from & set(harmless):
            raise ValueError(
                f"The monitor has learned from {min(known)!r}: set its threshold on prompts of another split."
            )
        if len(harmless) * rate < 1:
            raise ValueError(
                f"Among {len(harmless)} prompts a rate of {rate:g} cannot be told from 0: give at least {math.ceil(1 / rate)}."
            )
        self.threshold = threshold_at(self.scores(harmless), rate)
        return self.threshold

    def on(self, model) -> "SafetyMonitor":
        """The same monitor, what it has learned and its threshold, on another model: an edited copy, say."""
        if dims_of(model) != dims_of(self.model):
            raise ValueError("This monitor was made for a model of other sizes: fit a new one.")
        new = copy.copy(self)
        new.model = model
        return new

    # --- reading -------------------------------------------------------------------------------------------

    def scores(self, prompts: Sequence[str], system: str | None = None, prefill: str = "") -> np.ndarray:
        """Log-odds of harm at the template's last token, [prompt], without generating anything."""
        self._need("weights", "fit(harmful, harmless)")
        return self.score_of(self.activations(prompts, system, prefill))

    def score_of(self, activations: torch.Tensor) -> np.ndarray:
        """The scores, [prompt], of activations that were read before, [prompt, layer, d]: another monitor's, too."""
        return (torch.einsum("nld,ld->nl", activations, self.weights) + self.bias).mean(-1).double().numpy()

    def alarms(self, prompts: Sequence[str], **context) -> np.ndarray:
        """Which prompts it would stop, [prompt]. context: system, prefill."""
        self._need("threshold", "set_threshold(harmless)")
        return self.scores(prompts, **context) > self.threshold

    def inspect(self, weights: bool = True) -> Inspection:
        """Has somebody been at the model since `fit`? See `tamper.py`."""
        self._need("weights", "fit(harmful, harmless)")
        return self.tamper.inspect(self.model, weights)

    def activations(self, prompts: Sequence[str], system: str | None = None, prefill: str = "") -> torch.Tensor:
        """What the probes read, [prompt, layer, d]: the template's last token, in front of any prefill."""
        prompts, model = check_prompts(prompts), self.model
        after, found = self._prefilled(system, prefill), [None] * len(prompts)
        reader = headless_of(in_context(model, self.tokenizer, prompts, system))

        def keep(x: torch.Tensor) -> torch.Tensor:
            return x[:, -min(1 + after, x.shape[1])].float().cpu()  # the common beginning alone may be shorter

        for batch in token_batches(self.tokenizer, prompts, 32, system, prefill):
            batch = batch.to(model.device)
            with torch.no_grad(), record(model, [SITE], self.layers, keep) as seen:
                reader(**batch.inputs(), use_cache=True)
            x = torch.stack([seen[SITE][layer] for layer in self.layers], 1)
            for place, row in zip(batch.order, x, strict=True):
                found[place] = row
        return torch.stack(found)

    def _prefilled(self, system: str | None, prefill: str) -> int:
        """How many tokens a prefill has, behind the template."""
        with_it, without = (chat_text(self.tokenizer, ["x"], system, words) for words in (prefill, ""))
        return len(tokenize(self.tokenizer, with_it)[0]) - len(tokenize(self.tokenizer, without)[0])

    def _need(self, name: str, call: str) -> None:
        if getattr(self, name) is None:
            raise ValueError(f"This monitor is not ready: call {call} first.")

    # --- answering under watch -----------------------------------------------------------------------------

    @torch.inference_mode()
    def generate(
        self,
        prompts: Sequence[str],
        max_new_tokens: int = 32,
        system: str | None = None,
        prefill: str = "",
        refusal: str = REFUSAL,
        stop: bool = True,
        batch_size: int = 32,
    ) -> list[Watched]:
        """Greedy answers under watch, in the order of the prompts. On an alarm the answer stops and `refusal` takes its place.

        stop=False lets the model go on: for pictures of the scores, and to measure. The hooks go when this ends, however.
        """
        self._need("threshold", "set_threshold(harmless)")
        prompts = check_prompts(prompts)
        if max_new_tokens < 1:
            raise ValueError(f"An answer has at least one token: max_new_tokens={max_new_tokens!r} is too few.")
        after = self._prefilled(system, prefill)
        answers: list[Watched | None] = [None] * len(prompts)
        for batch in token_batches(self.tokenizer, prompts, batch_size, system, prefill):
            batch = batch.to(self.model.device)
            reader = _Reader(self, batch, after, stop)
            with edit(self.model, reader.hooks()):
                out = self.model.generate(
                    input_ids=batch.input_ids,
                    attention_mask=batch.attention_mask,
                    max_new_tokens=max_new_tokens,
                    do_sample=False,
                    pad_token_id=pad_token_id(self.tokenizer),
                    stopping_criteria=StoppingCriteriaList([reader]),
                )
            for row, i in enumerate(batch.order):
                answers[i] = reader.watched(row, out[row], refusal)
        return answers


def threshold_at(scores: Sequence[float] | np.ndarray, rate: float) -> float:
    """The lowest of these scores, [prompt], that at most a share `rate` of them lies above."""
    ordered = np.sort(np.asarray(scores, dtype=float))[::-1]
    return float(ordered[min(int(rate * len(ordered) + 1e-9), len(ordered) - 1)])


class _Reader(StoppingCriteria):
    """Reads along while a batch is generated, and stops the rows that raise an alarm. Called after every new token."""

    def __init__(self, monitor: SafetyMonitor, batch, after: int, stop: bool):
        self.monitor, self.batch, self.after, self.stop = monitor, batch, after, stop
        self.width = batch.input_ids.shape[1]
        self.layers = sorted({*monitor.layers, *monitor.tamper.layers})
        device = batch.input_ids.device
        self.weights = monitor.weights.to(device)
        self.ends = set(end_tokens(monitor.model, monitor.tokenizer))
        self.bias = float(monitor.bias.mean())
        self.seen: dict[int, torch.Tensor] = {}  # of the forward that runs
        self.steps: list[torch.Tensor] = []  # [row, place] scores: the prompt's, then one token each
        self.alarm: list[str | None] = [None] * len(batch.order)
        self.stopped = torch.zeros(len(batch.order), dtype=torch.bool, device=device)

    def hooks(self) -> list:
        """Edits that change nothing: they take a look."""

        def look(layer: int):
            def function(x: torch.Tensor) -> None:
                self.seen[layer] = x

            return function

        return [(SITE, layer, look(layer)) for layer in self.layers]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **_) -> torch.Tensor:
        parts = [
            self.seen[layer].float() @ w.to(self.seen[layer].device)
            for layer, w in zip(self.monitor.layers, self.weights.unbind(), strict=True)
        ]
        self.steps.append(sum(part.to(input_ids.device) for part in parts) / len(parts) + self.bias)
        if len(self.steps) == 1:
            self._judge()
        self.seen.clear()
        return self.stopped if self.stop else torch.zeros_like(self.stopped)

    def _judge(self) -> None:
        """After the prompt: the request, at the template's last token; the model, at the template's first ones."""
        off = self.monitor.tamper.template_deviation(self.seen, self.batch) > self.monitor.tamper.tolerance
        harm = self.steps[0][:, -1 - self.after] > self.monitor.threshold
        for row in range(len(self.alarm)):
            self.alarm[row] = TAMPERED if off[row] else HARM if harm[row] else None
        self.stopped = harm | off.to(harm.device)

    def watched(self, row: int, ids: torch.Tensor, refusal: str) -> Watched:
        """What came of a row of the batch; ids: its prompt and answer."""
        tokenizer, first = self.monitor.tokenizer, int(self.batch.attention_mask[row].argmax())
        said = ids[self.width :].tolist()
        end = next((i for i, token in enumerate(said) if token in self.ends), None)
        ended, said = end is not None, said[:end]
        scores = torch.cat([self.steps[0][row, first:], *(step[row, -1:] for step in self.steps[1:])]).cpu().numpy()
        stopped = self.stop and self.alarm[row] is not None
        text = refusal if stopped else tokenizer.decode(said, skip_special_tokens=True).strip()
        read = self.batch.input_ids[row, first:].tolist() + (
            [] if stopped else said if ended else said[:-1]
        )  # nobody reads the last one
        scores = scores[: len(read)]
        start = self.width - first - self.after
        tokens = tuple(tokenizer.decode([i]) for i in read[: len(scores)])
        return Watched(text, self.alarm[row], float(scores[start - 1]), tokens, scores, start)
