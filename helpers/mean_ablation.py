"""Take neurons out by giving them their harmless mean, place by place in the template. Taught in lesson 01.

What a neuron does on average differs from token to token: a mean that was taken at the last token and written at
every position breaks the model (at position 0, the attention sink, most of all). So every place gets its own mean,
from harmless prompts: by its distance from the prompt's end, because the template's last tokens are the same in all
prompts. The tokens that all prompts share at the beginning are left alone: there every prompt is its own mean.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from tqdm import tqdm

from .answer_tree import answer_columns
from .hooks import check_site, edit, record, width_of
from .models import body_of, dims_of, layers_of
from .prompts import CACHE, chat_text, check_prompts, pad, pad_token_id, tokenize
from .refusal import generate
from .shared_prefix import shared_prefix
from .side_by_side import current_part, rows_of

Place = tuple[int, int]  # (layer, neuron)


@dataclass(frozen=True)
class TemplateMeans:
    """Mean activation of every neuron on harmless prompts, [place, layer, d_mlp], on the CPU.

    Place k is the k-th token from the end of the prompt (0 is the last one) for k < depth; place depth is the mean of
    everything further left, place depth + 1 that of the answer. prefix: token ids that all prompts share.
    """

    values: torch.Tensor
    prefix: tuple[int, ...]
    source: str = ""  # what the values are, for captions

    @property
    def depth(self) -> int:
        return len(self.values) - 2


def neurons_by_layer(model, neurons) -> dict[int, list[int]]:
    """{layer: neurons} from (layer, neuron) pairs or a table with these columns; each once.

    Raises ValueError, in a sentence, for what is no list of neurons, and for a neuron that is not there.
    """
    if hasattr(neurons, "columns"):
        if not {"layer", "neuron"} <= set(neurons.columns):
            raise ValueError("A table of neurons needs the columns 'layer' and 'neuron'.")
        neurons = zip(neurons["layer"].tolist(), neurons["neuron"].tolist(), strict=True)
    found: dict[int, list[int]] = {}
    width = width_of(model, "neurons")
    for place in neurons:
        try:
            layer, neuron = place
            if int(layer) != layer or int(neuron) != neuron:
                raise ValueError
            layer, neuron = int(layer), int(neuron)
        except (TypeError, ValueError):
            raise ValueError(f"{place!r} is not a (layer, neuron) pair, such as (12, 340).") from None
        if layer not in found:
            check_site(model, "neurons", layer)
        if not 0 <= neuron < width:
            raise ValueError(f"There is no neuron {neuron}: the neurons of a layer are 0 to {width - 1}.")
        found.setdefault(layer, []).append(neuron)
    return {layer: sorted(set(members)) for layer, members in sorted(found.items())}


@torch.no_grad()
def template_means(
    model, tokenizer, harmless: Sequence[str], answer_tokens: int = 8, batch_size: int = 16
) -> TemplateMeans:
    """The donors of a mean ablation: harmless prompts, each with the first tokens of the model's own answer to it.

    A place counts by itself if at least half of the prompts reach it. Sums are kept, never the activations, so
    memory does not grow with the number of prompts. Raises ValueError for fewer than two prompts.
    """
    harmless = check_prompts(harmless)
    if len(harmless) < 2:
        raise ValueError("A mean over one prompt is that prompt: give at least two harmless prompts.")
    prefix = shared_prefix(tokenizer, harmless)
    prompts = tokenize(tokenizer, chat_text(tokenizer, harmless))
    said = generate(model, tokenizer, harmless, max_new_tokens=answer_tokens, batch_size=batch_size)
    answers = [ids[:answer_tokens] for ids in tokenizer(said, add_special_tokens=False)["input_ids"]]
    lengths = sorted(len(row) - len(prefix) for row in prompts)
    depth = lengths[(len(lengths) - 1) // 2]  # at least half of the prompts are as long as this
    dims = dims_of(model)
    sums = torch.zeros(depth + 2, dims.n_layers, dims.d_mlp, dtype=torch.float64)
    counts = torch.zeros(depth + 2, dtype=torch.float64)
    for start in tqdm(range(0, len(prompts), batch_size), desc="means", delay=2, leave=False):
        part = range(start, min(start + batch_size, len(prompts)))
        batch = pad([[*prompts[i], *answers[i]] for i in part], list(part), pad_token_id(tokenizer), side="right")
        place = torch.full(batch.input_ids.shape, -1)
        for row, i in enumerate(part):
            end, first = len(prompts[i]), len(prefix)
            place[row, first:end] = torch.arange(end - first).flip(0).clamp(max=depth)
            place[row, end : end + len(answers[i])] = depth + 1
        chosen = place.flatten() >= 0
        target = place.flatten()[chosen]

        def keep(x: torch.Tensor, chosen=chosen, target=target) -> torch.Tensor:
            x = x.float().cpu().flatten(0, 1)[chosen].double()
            return torch.zeros(depth + 2, x.shape[-1], dtype=torch.float64).index_add_(0, target, x)

        with record(model, ["neurons"], keep=keep) as seen:
            body_of(model)(**batch.to(model.device).inputs(), use_cache=False)
        sums += torch.stack(list(seen["neurons"].values()), 1)
        counts += torch.bincount(target, minlength=depth + 2)
    means = sums / counts.clamp(min=1)[:, None, None]
    for empty in (counts == 0).nonzero().flatten().tolist():  # all prompts equally long, or no answer at all
        means[empty] = means[0] if empty > depth else sums[:depth].sum(0) / counts[:depth].sum()
    return TemplateMeans(means.float(), tuple(prefix), f"held at the mean of {len(harmless)} harmless prompts")


@contextmanager
def template_places(model, prefix: int, depth: int, sink: bool = False) -> Iterator[dict[str, torch.Tensor]]:
    """While inside, `now["place"]` says where in the template each token of the running forward stands.

    It is [batch, position], on the CPU (under `side_by_side` its part of the rows): the distance from the prompt's end, at most
    `depth`; depth + 1 in the answer (a forward on a cache longer than `prefix`, or the tree of `answer_tree`); -1 for tokens to be
    left alone: padding, the first `prefix` tokens, and position 0, the attention sink, unless sink=True asks for it.
    """
    now: dict[str, torch.Tensor] = {}
    part = current_part()

    def locate(_, args, kwargs) -> None:
        ids = kwargs["input_ids"] if kwargs.get("input_ids") is not None else args[0]
        cache = kwargs.get(CACHE)
        past = cache.get_seq_length() if cache is not None else 0
        mask = kwargs.get("attention_mask")
        mask = torch.ones(len(ids), past + ids.shape[1], device=ids.device, dtype=torch.long) if mask is None else mask
        if mask.dim() != 2:
            raise ValueError("Mean ablation needs the plain attention mask, [batch, position].")
        own = rows_of(part, len(ids))
        if past > prefix:
            now["place"] = torch.full(ids[own].shape, depth + 1)
            return
        after = answer_columns(mask)
        index = mask.cumsum(-1) - 1  # how many real tokens stand before each one
        from_end = mask.sum(-1, keepdim=True) - 1 - after - index  # below 0 in the tree
        touched = index >= max(prefix, 1)
        touched = (touched | (index == 0) if sink else touched) & mask.bool()
        place = torch.where(from_end < 0, depth + 1, from_end.clamp(max=depth))
        now["place"] = torch.where(touched, place, -1)[own, -ids.shape[1] :].cpu()

    layers_of(model)  # an unknown architecture is refused before any hook
    handle = body_of(model).register_forward_pre_hook(locate, with_kwargs=True)
    try:
        yield now
    finally:
        handle.remove()


@contextmanager
def mean_ablated(
    model, neurons: Iterable[Place], means: TemplateMeans, strength: float = 1.0, sink: bool = False
) -> Iterator[None]:
    """While inside, these neurons, (layer, neuron) pairs or a table, hold their harmless mean of each place.

    A forward on a cache longer than the shared beginning is taken for the answer; any other is a prompt in its
    template, without prefill, padded at either side. Position 0 (unless sink=True) and the rest of the shared beginning
    stay untouched. strength: how far towards the mean, 0 not at all, 1 all the way, 2 as far again beyond it.
    Raises ValueError before any hook: for neurons that are not there, and for means of another model.
    """
    chosen = neurons_by_layer(model, neurons)
    dims = dims_of(model)
    if tuple(means.values.shape[1:]) != (dims.n_layers, dims.d_mlp):
        raise ValueError("These means are of another model: call template_means() on the model that is ablated.")

    def replace(layer: int, now: dict[str, torch.Tensor]):
        own = torch.tensor(chosen[layer])
        table = means.values[:, layer, own]

        def function(activation: torch.Tensor) -> torch.Tensor:
            place = now["place"]
            new = table[place.clamp(min=0)].to(activation)
            at = own.to(activation.device)
            old = activation[..., at]
            new = new if strength == 1 else old + strength * (new - old)
            changed = activation.clone()
            changed[..., at] = torch.where((place >= 0).to(activation.device)[..., None], new, old)
            return changed

        return function

    with (
        template_places(model, len(means.prefix), means.depth, sink) as now,
        edit(model, [("neurons", layer, replace(layer, now)) for layer in chosen]),
    ):
        yield
