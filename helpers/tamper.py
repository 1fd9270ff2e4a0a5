"""Has somebody been at this model? A hash of its weights, and activations that must be as they were. Taught in lesson 07.

Three looks, each blind to something:

    weights    a hash of every parameter. Finds any edit of the weights, and no hook: hooks leave the weights alone.
    template   the tokens with which every request begins are the same, so what the model makes of them is too. Read in every
               request, for nothing. Finds hooks and edits that reach those tokens; blind to those that leave them alone.
    canaries   a few whole requests whose activations are kept. Finds what changes any of them; blind to who knows them.

A causal model reads the same tokens in the same way, up to rounding. So the range that is fitted is narrow: what other batches
and padding do, and ten times that. Free text has no such range: a direction that is cut hides among all that requests say.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from .hooks import check_site, record
from .models import body_of, dims_of
from .prompts import chat_text, check_prompts, pad, pad_token_id, tokenize
from .shared_prefix import shared_prefix

SITE = "resid_post"  # at the last layer it holds all that any layer has written
MARGIN, LEAST = 10, 1e-3  # how far beyond what rounding did an activation may lie, and the least that is allowed


def weight_hashes(model) -> dict[str, str]:
    """SHA-256 of each parameter and buffer by its name; some seconds for a billion weights."""
    found = {}
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        words = f"{tensor.dtype} {tuple(tensor.shape)} ".encode()
        found[name] = hashlib.sha256(words + raw.numpy().tobytes()).hexdigest()
    return found


def changed_weights(before: dict[str, str], model) -> list[str]:
    """The names of parameters that are not what they were when `before` was made, or are new, or gone."""
    now = weight_hashes(model)
    return sorted(name for name in {*before, *now} if before.get(name) != now.get(name))


def deviation(now: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """How far activations [..., d] are from those kept, relative to their length: the largest over all but the first axis."""
    far = (now.float() - kept).norm(dim=-1) / kept.norm(dim=-1).clamp(min=1e-6)
    return far.flatten(1).max(-1).values


@dataclass(frozen=True)
class Inspection:
    """What a look at a model found. weights: parameters that have changed. canaries: the largest relative deviation of their
    activations. tolerance: the largest that is in range."""

    weights: tuple[str, ...]
    canaries: float
    tolerance: float

    @property
    def tampered(self) -> bool:
        """Whether anything is off."""
        return bool(self.weights) or not self.canaries <= self.tolerance

    def __str__(self) -> str:
        hashes = f"{len(self.weights)} parameters changed" if self.weights else "weights as they were"
        where = "in range" if self.canaries <= self.tolerance else "off their range"
        return f"{hashes}; activations {where} ({self.canaries:.1e}, allowed {self.tolerance:.1e})"


class TamperWatch:
    """Remembers a model that is known to be sound: its weights' hashes, the template's activations, and canaries'.

    canaries: requests of both sorts, harmful ones too: a part that wakes only for harm is silent in all others. layers: where
    activations are kept, [layer]; the last one is always among them. Raises ValueError for no prompts, and unknown layers.
    """

    def __init__(self, model, tokenizer, canaries: Sequence[str], layers: Sequence[int] = ()):
        canaries = check_prompts(canaries)
        for layer in layers:
            check_site(model, SITE, layer)
        self.layers = sorted({*layers, dims_of(model).n_layers - 1})
        self.pad_id = pad_token_id(tokenizer)
        self.rows = tokenize(tokenizer, chat_text(tokenizer, canaries))
        self.prefix = shared_prefix(tokenizer, canaries)
        self.hashes = weight_hashes(model)
        self.kept = self._read(model, self.rows)
        self.template = self.kept[0][:, : len(self.prefix)]  # [layer, place, d]
        self.tolerance = max(LEAST, MARGIN * self._rounding(model))

    @torch.no_grad()
    def _read(self, model, rows: list[list[int]]) -> list[torch.Tensor]:
        """Activations of each row, [layer, place, d] in float32 on the CPU."""
        batch = pad(rows, list(range(len(rows))), self.pad_id).to(model.device)
        with record(model, [SITE], self.layers) as seen:
            body_of(model)(**batch.inputs(), use_cache=False)
        stacked = torch.stack([seen[SITE][layer].float().cpu() for layer in self.layers], 1)
        return [x[:, -len(row) :] for x, row in zip(stacked, rows, strict=True)]

    def _far(self, now: list[torch.Tensor]) -> float:
        found = [deviation(a[None], b[None]).max() for a, b in zip(now, self.kept, strict=False)]
        return float(torch.stack(found).max())  # unlike Python's max, this one keeps a nan

    def _rounding(self, model) -> float:
        """What other company in the batch does to a row: one alone, and all beside one that is much longer."""
        alone = self._read(model, self.rows[:1])
        padded = self._read(model, [*self.rows, [*self.rows[0], *self.rows[0]]])
        return max(self._far(alone), self._far(padded[:-1]))

    def inspect(self, model, weights: bool = True) -> Inspection:
        """Look at a model now, with whatever hangs on it. weights=False leaves the hashes out, which take longest."""
        changed = changed_weights(self.hashes, model) if weights else []
        return Inspection(tuple(changed), self._far(self._read(model, self.rows)), self.tolerance)

    def template_deviation(self, seen: dict[int, torch.Tensor], batch) -> torch.Tensor:
        """[row]: how far the template's tokens are off, from activations {layer: [row, place, d]} that were read anyhow.

        nan where a row begins with other tokens, such as another system prompt: there is nothing to compare it with.
        """
        p = len(self.prefix)
        if p == 0 or batch.input_ids.shape[1] < p:
            return torch.full((len(batch.input_ids),), float("nan"))
        columns = batch.attention_mask.argmax(-1)[:, None] + torch.arange(p, device=batch.input_ids.device)
        columns = columns.clamp(max=batch.input_ids.shape[1] - 1)
        same = (batch.input_ids.gather(1, columns) == torch.tensor(self.prefix, device=columns.device)).all(-1).cpu()
        rows = torch.arange(len(columns))[:, None]
        columns = columns.cpu()
        read = [(seen[layer], seen[layer].device) for layer in self.layers]
        now = torch.stack([x[rows.to(where), columns.to(where)].float().cpu() for x, where in read], 1)
        far = deviation(now, self.template[None]).nan_to_num(nan=torch.inf)  # broken activations are far off, too
        return torch.where(same, far, float("nan"))
