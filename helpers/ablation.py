"""Take parts out of a model while it runs: neurons in three ways and at any strength, heads by a factor.

What stands in the place of a neuron that is taken out? Each answer is a kind of ablation, and has to be named:

    zero       nothing: far from what most neurons ever do
    mean       what it does on average on harmless prompts, place by place in the template
    resample   what it does on *one* harmless prompt, the donor, place by place

All leave position 0 alone, the attention sink, unless they are told not to. Strength moves the neuron part of the way
(0 to 1) or beyond. Taught in lesson 05; the means are lesson 01's.
"""

import math
from collections.abc import Iterable, Sequence
from contextlib import ExitStack, contextmanager
from weakref import WeakKeyDictionary

import torch

from .hooks import edit
from .mean_ablation import Place, TemplateMeans, mean_ablated, neurons_by_layer, template_means, template_places
from .models import dims_of
from .prompts import check_prompts

_active: WeakKeyDictionary = WeakKeyDictionary()  # what is hung on each model, until it is removed


class Ablation:
    """What `ablate_safety_neurons` gives: hooks that work from now on, until `remove()` or the end of a `with` block.

    `str(ablation)` names its kind, its donors and its strength, for the caption of a figure.
    """

    def __init__(self, model, context, words: str):
        self.model, self.words = model, words
        self._stack = ExitStack()
        self._stack.enter_context(context)
        _active.setdefault(model, []).append(self)

    def __str__(self) -> str:
        return self.words

    def __repr__(self) -> str:
        return f"<Ablation: {self.words}{'' if self.active else ', removed'}>"

    @property
    def active(self) -> bool:
        """Whether it still works."""
        return self in _active.get(self.model, [])

    def remove(self) -> None:
        """Take the hooks off; a second time does nothing."""
        if self.active:
            _active[self.model].remove(self)
        self._stack.close()

    def __enter__(self) -> "Ablation":
        return self

    def __exit__(self, *_) -> None:
        self.remove()


def remove_ablations(model) -> int:
    """Take everything off a model that an `Ablation` has hung on it; returns how many there were."""
    left = list(_active.get(model, []))
    for ablation in left:
        ablation.remove()
    return len(left)


def ablate_safety_neurons(
    model,
    neurons: Iterable[Place],
    strength: float = 1.0,
    donors: TemplateMeans | None = None,
    kind: str | None = None,
    sink: bool = False,
) -> Ablation:
    """Take neurons, (layer, neuron) pairs or a table, out of a model: a handle that is a context manager as well.

    Each activation moves from `a` to `a + strength * (target - a)`: 0 leaves it, 1 replaces it, 2 puts it as far on the
    other side. donors: None for a target of zero at every position but the first; `template_means` of harmless prompts
    (mean); one of `resample_donors` (resample). The shared beginning of the donors' prompts is left alone. kind: a check
    on what you meant, or "zero" with donors given: then zero is written where the donors would be, to compare the two.
    sink: position 0 too; only for zero, since there every prompt is its own mean. Raises ValueError, before any
    hook, for neurons that are not there, a strength that is no number, and kinds and donors that do not fit.
    """
    neurons = neurons_by_layer(model, neurons)
    count = sum(map(len, neurons.values()))
    if count == 0:
        raise ValueError("There are no neurons to ablate: give at least one (layer, neuron) pair.")
    if isinstance(strength, bool) or not isinstance(strength, int | float) or not math.isfinite(strength):
        raise ValueError(f"strength says how far to go, 0 to 1 or beyond; {strength!r} is not such a number.")
    kind = _checked_kind(kind, donors)
    if sink and kind != "zero":
        raise ValueError("At position 0 every prompt is its own mean: sink=True goes with zero ablation only.")
    target = zeros(model, donors) if kind == "zero" else donors
    flat = [(layer, neuron) for layer, members in neurons.items() for neuron in members]
    words = f"{count:,} neurons, {target.source or kind}, strength {strength:g}" + (", position 0 too" if sink else "")
    return Ablation(model, mean_ablated(model, flat, target, float(strength), sink), words)


def _checked_kind(kind: str | None, donors: TemplateMeans | None) -> str:
    """The kind that is meant, or a ValueError if the donors are of another one."""
    if donors is not None and not isinstance(donors, TemplateMeans):
        raise ValueError(
            f"donors are `template_means(...)` or one of `resample_donors(...)`, not {type(donors).__name__}: "
            "of a list of donors, take one at a time."
        )
    given = "zero" if donors is None else "resample" if isinstance(donors, Donor) else "mean"
    if kind is None or kind == given or kind == "zero":
        return kind or given
    if kind not in ("mean", "resample"):
        raise ValueError(f"There is no ablation {kind!r}: choose zero, mean or resample.")
    maker = {"mean": "template_means(model, tokenizer, harmless)", "resample": "one of resample_donors(...)"}[kind]
    raise ValueError(f"A {kind} ablation needs its donors: give donors={maker}.")


class Donor(TemplateMeans):
    """The activations of one harmless prompt, place by place; `source` names it."""


def zeros(model, like: TemplateMeans | None = None) -> TemplateMeans:
    """The target of a zero ablation: everywhere but at position 0, or where `like` would be written."""
    dims = dims_of(model)
    if like is None:
        return TemplateMeans(torch.zeros(2, dims.n_layers, dims.d_mlp), (), "zero")
    return TemplateMeans(torch.zeros_like(like.values), like.prefix, "zero")


def resample_donors(model, tokenizer, harmless: Sequence[str], answer_tokens: int = 8) -> list[Donor]:
    """A donor from each harmless prompt, for resample ablation. One donor serves all prompts of a measurement.

    Prompts longer than a donor hold, further left than it reaches, the mean of its places. With only one donor a result
    is that donor's: take several, and look at the spread.
    """
    donors = []
    for prompt in check_prompts(harmless):
        one = template_means(model, tokenizer, [prompt, prompt], answer_tokens)  # the mean of a prompt with itself
        donors.append(Donor(one.values, one.prefix, "resampled from one harmless prompt"))
    return donors


@contextmanager
def heads_scaled(model, heads: Iterable[Place], factor: float = 0.0):
    """While inside, these heads, (layer, head) pairs, write `factor` times what they would; 0 is zero ablation.

    At every position but the first. Raises ValueError for a head that is not there, before any hook.
    """
    dims, chosen = dims_of(model), heads_by_layer(model, heads)
    with template_places(model, 0, 0) as now:

        def scale(members: list[int]):
            def function(z: torch.Tensor) -> torch.Tensor:
                new = z.clone().view(*z.shape[:-1], dims.n_heads, dims.d_head)
                touched = (now["place"] >= 0).to(z.device)[..., None, None]
                new[..., members, :] = torch.where(touched, factor, 1.0).to(z) * new[..., members, :]
                return new.view(z.shape)

            return function

        with edit(model, [("z", layer, scale(members)) for layer, members in chosen.items()]):
            yield


def heads_by_layer(model, heads: Iterable[Place]) -> dict[int, list[int]]:
    """{layer: heads} from (layer, head) pairs, each once, or a ValueError for one that is not there."""
    dims, found = dims_of(model), {}
    for place in heads:
        try:
            layer, head = map(int, place)
        except (TypeError, ValueError):
            raise ValueError(f"{place!r} is not a (layer, head) pair, such as (12, 3).") from None
        if not (0 <= layer < dims.n_layers and 0 <= head < dims.n_heads):
            raise ValueError(
                f"There is no head ({layer}, {head}): layers are 0 to {dims.n_layers - 1}, heads 0 to {dims.n_heads - 1}."
            )
        found.setdefault(layer, set()).add(head)
    return {layer: sorted(members) for layer, members in sorted(found.items())}
