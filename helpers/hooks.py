"""Read and change activations while a model runs. Taught in lesson 00; used by every lesson after it.

Everything rests on one context manager, `edit`: it hangs functions on places of the model and takes them off again,
also after an error or an interrupted cell. A *site* names a place in each layer by its role:

    resid_pre   what enters a block            [batch, position, d_model]
    resid_post  what leaves it                 [batch, position, d_model]
    attn_out    what attention adds            [batch, position, d_model]
    mlp_out     what the MLP adds              [batch, position, d_model]
    z           the heads' outputs, in a row   [batch, position, n_heads * d_head]
    neurons     input of the down projection   [batch, position, d_mlp]
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch

from .batching import in_batches
from .models import (
    attention_write_of,
    dims_of,
    down_projection_of,
    layers_of,
    mlp_write_of,
    out_projection_of,
)
from .prompts import chat_text, pad, pad_token_id, tokenize
from .shared_prefix import reader
from .side_by_side import on_its_part

# Where each site is found: the module for a layer, and whether the activation is its "input" or its "output".
_PLACES = {
    "resid_pre": (lambda layer: layer, "input"),
    "resid_post": (lambda layer: layer, "output"),
    "attn_out": (attention_write_of, "output"),
    "mlp_out": (mlp_write_of, "output"),
    "z": (out_projection_of, "input"),
    "neurons": (down_projection_of, "input"),
}
SITES = tuple(_PLACES)

Edit = Callable[[torch.Tensor], torch.Tensor | None]


def check_site(model, site: str, layer: int) -> None:
    """Raises ValueError if there is no such site or layer."""
    if site not in _PLACES:
        raise ValueError(f"There is no site {site!r}: choose one of {', '.join(SITES)}.")
    count = len(layers_of(model))
    if isinstance(layer, bool) or not isinstance(layer, int) or not 0 <= layer < count:
        raise ValueError(f"There is no layer {layer!r}: this model's layers are 0 to {count - 1}.")


def width_of(model, site: str) -> int:
    """How many channels a site has."""
    dims = dims_of(model)
    return {"z": dims.n_heads * dims.d_head, "neurons": dims.d_mlp}.get(site, dims.d_model)


def _changed(function: Edit, activation: torch.Tensor) -> torch.Tensor:
    """What the function makes of an activation; None leaves it as it was."""
    new = function(activation)
    if new is None:
        return activation
    if not isinstance(new, torch.Tensor) or new.shape != activation.shape:
        got = tuple(new.shape) if isinstance(new, torch.Tensor) else type(new).__name__
        raise ValueError(f"An edit must return a tensor of shape {tuple(activation.shape)}, not {got}.")
    return new.to(activation.dtype)


def _hang(module: torch.nn.Module, side: str, function: Callable[[torch.Tensor], torch.Tensor]):
    """Register one hook; returns its handle. A block's and an attention's output may be the first of a tuple."""
    if side == "input":

        def before(_, args, kwargs):
            if args:
                return (function(args[0]), *args[1:]), kwargs
            return args, {**kwargs, "hidden_states": function(kwargs["hidden_states"])}

        return module.register_forward_pre_hook(before, with_kwargs=True)

    def after(_, args, output):
        if isinstance(output, tuple):
            return (function(output[0]), *output[1:])
        return function(output)

    return module.register_forward_hook(after)


@contextmanager
def edit(model, edits: Iterable[tuple[str, int, Edit]]) -> Iterator[None]:
    """While inside, each (site, layer, function) may replace an activation.

    function: takes the activation [batch, position, width], returns another of its shape, or None to leave it.
    Several edits of one place run in their order. Raises ValueError for an unknown site or layer, before any hook.
    """
    layers, edits = layers_of(model), list(edits)
    for site, layer, _ in edits:
        check_site(model, site, layer)
    handles = []
    try:
        for site, layer, function in edits:
            module_of, side = _PLACES[site]
            handles.append(_hang(module_of(layers[layer]), side, on_its_part(partial(_changed, function))))
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def forward_as(replaced: Iterable[tuple[torch.nn.Module, Callable]]) -> Iterator[None]:
    """While inside, each module's forward is the function beside it; then again what it was (accelerate sets one, too)."""
    replaced = list(replaced)
    before = [vars(module).get("forward") for module, _ in replaced]
    try:
        for module, function in replaced:
            module.forward = function
        yield
    finally:
        for (module, _), was in zip(replaced, before, strict=True):
            vars(module).pop("forward", None) if was is None else setattr(module, "forward", was)


def _check_sites(model, sites: Sequence[str], layers: Iterable[int] | None) -> tuple[list[str], list[int]]:
    """The sites and layers as lists (all layers for None), or a ValueError."""
    if isinstance(sites, str):
        raise ValueError(f"Give a list of sites, not one string: write [{sites!r}].")
    sites = list(sites)
    layers = list(range(len(layers_of(model))) if layers is None else layers)
    if not sites or not layers:
        raise ValueError("There is nothing to read: give at least one site and one layer.")
    for site in sites:
        for layer in layers:
            check_site(model, site, layer)
    return sites, layers


@contextmanager
def record(
    model, sites: Sequence[str], layers: Iterable[int] | None = None, keep: Edit | None = None
) -> Iterator[dict[str, dict[int, torch.Tensor]]]:
    """Everything that passes the sites while inside: `seen[site][layer]`, [batch, position, width].

    keep: takes an activation and returns the part to keep, such as `lambda x: x[:, -1]`. One forward at a time:
    a second one overwrites what the first one left.
    """
    sites, layers = _check_sites(model, sites, layers)
    seen: dict[str, dict[int, torch.Tensor]] = {site: {} for site in sites}

    def store(site: str, layer: int) -> Edit:
        def function(activation: torch.Tensor) -> None:
            kept = activation.detach() if keep is None else keep(activation.detach())
            seen[site][layer] = kept.clone()  # a later edit in place must not reach what was read

        return function

    with edit(model, [(site, layer, store(site, layer)) for site in sites for layer in layers]):
        yield seen


@torch.no_grad()  # not inference_mode: what is read may be changed in place, or used in training, later
def read(
    model,
    tokenizer,
    prompts: Sequence[str],
    sites: Sequence[str],
    layers: Iterable[int] | None = None,
    positions: int | Sequence[int] = -1,
    system: str | None = None,
    prefill: str = "",
    batch_size: int = 32,
    side: str = "left",
) -> dict[str, torch.Tensor]:
    """Activations of many prompts in their chat template, one forward a batch, all sites and layers at once.

    positions: one token, or several, counted from the end of each prompt's real tokens (-1 is the last) or, if not
    negative, from its start. Returns for each site [prompt, layer, width], or [prompt, layer, position, width] when
    positions is a list; on the CPU, in float32, in the order of the prompts.
    """
    sites, layers = _check_sites(model, sites, layers)
    single = isinstance(positions, int)
    wanted = torch.tensor([positions] if single else list(positions))
    rows = tokenize(tokenizer, chat_text(tokenizer, prompts, system, prefill))
    shortest = min(map(len, rows))
    if not len(wanted) or int(wanted.max()) >= shortest or int(wanted.min()) < -shortest:
        raise ValueError(f"Positions must lie within the shortest prompt, which has {shortest} tokens: {positions}.")

    call, already = reader(model, rows, min(int(x) if x >= 0 else shortest + int(x) for x in wanted))

    def run(part: list[int]) -> list[dict[str, torch.Tensor]]:
        batch = pad([rows[i] for i in part], part, pad_token_id(tokenizer), side).to(model.device)
        first = batch.attention_mask.argmax(-1)
        place = wanted.to(first.device)
        index = torch.where(place < 0, batch.last[:, None] + 1 + place, first[:, None] + place)

        def keep(activation: torch.Tensor) -> torch.Tensor:
            at = index.to(activation.device) - already
            return activation[torch.arange(len(part), device=at.device)[:, None], at].float().cpu()

        with record(model, sites, layers, keep) as seen:
            call(**batch.inputs())  # without the unembedding: nobody reads the logits
        stacked = {site: torch.stack([seen[site][layer] for layer in layers], 1) for site in sites}
        return [{site: stacked[site][i] for site in sites} for i in range(len(part))]

    order = sorted(range(len(rows)), key=lambda i: -len(rows[i]))  # similar lengths together
    results = in_batches(run, order, batch_size)
    out = {site: torch.empty(len(rows), *results[0][site].shape) for site in sites}
    for i, result in zip(order, results, strict=True):
        for site in sites:
            out[site][i] = result[site]
    return {site: x[:, :, 0] if single else x for site, x in out.items()}


def patch(model, site: str, layer: int, value, positions=None, channels=None):
    """While inside, a place holds `value` instead of its own activation.

    value: a number or tensor, broadcast to [batch, position, channel] of what is replaced. positions, channels: only
    these (indices into the padded batch, so -1 is the last position when padded at the left); None for all.
    Raises ValueError for a channel that is not there or a value of another width, before any hook.
    """
    check_site(model, site, layer)
    value = torch.as_tensor(value).detach()
    width = width_of(model, site)
    chosen = list(range(width)) if channels is None else torch.as_tensor(channels).reshape(-1).tolist()
    for channel in chosen:
        if not -width <= channel < width:
            raise ValueError(f"There is no channel {channel} in {site}: its channels are 0 to {width - 1}.")
    if value.dim() > 3 or value.dim() and value.shape[-1] not in (1, len(chosen)):
        raise ValueError(
            f"The value has shape {tuple(value.shape)}, but {len(chosen)} channels of {site} are to be replaced: "
            f"give a number, or a tensor of shape [batch, position, {len(chosen)}] or [{len(chosen)}]."
        )

    rows = slice(None) if positions is None else torch.as_tensor(positions).reshape(-1)
    columns = slice(None) if channels is None else torch.tensor(chosen)

    def function(activation: torch.Tensor) -> torch.Tensor:
        length = activation.shape[1]
        if positions is not None and not all(-length <= row < length for row in rows.tolist()):
            raise ValueError(f"Positions {rows.tolist()} are not all in this forward, which has {length}.")
        # Chosen positions times chosen channels, not one channel for each position.
        both = positions is not None and channels is not None
        place = (slice(None), rows[:, None] if both else rows, columns)
        new = activation.clone()
        try:
            new[place] = value.to(new)
        except RuntimeError:
            raise ValueError(
                f"The value has shape {tuple(value.shape)}, which does not fit the [batch, position, channel] "
                f"that it replaces, {tuple(new[place].shape)}."
            ) from None
        return new

    return edit(model, [(site, layer, function)])


def check_direction(model, direction: torch.Tensor, length: float | None = 1.0) -> torch.Tensor:
    """The direction as float32, or a ValueError: wrong shape, not finite, or (unless length is None) not a unit."""
    width = dims_of(model).d_model
    if not isinstance(direction, torch.Tensor) or direction.shape != (width,):
        got = tuple(direction.shape) if isinstance(direction, torch.Tensor) else type(direction).__name__
        raise ValueError(f"A direction of this model is a tensor of shape ({width},), not {got}.")
    direction = direction.detach().float()
    if not torch.isfinite(direction).all():
        raise ValueError("This direction holds numbers that are not finite: look where it was divided by zero.")
    if length is not None and abs(float(direction.norm()) - length) > 1e-3:
        raise ValueError(
            f"A direction that is ablated must have length 1, this one has {float(direction.norm()):.3f}: "
            "divide it by direction.norm()."
        )
    return direction


def ablate_direction(model, direction: torch.Tensor, layers: Iterable[int] | None = None):
    """While inside, nothing can write along a unit direction [d_model]: x - (x . r) r after the embedding and after
    every attention and MLP (Arditi et al. 2024, section 2.4). layers: only these layers' writes, and no embedding.

    At every write, not at block outputs: there, a block's MLP still reads what its attention has just written.
    """
    direction = check_direction(model, direction)

    def remove(activation: torch.Tensor) -> torch.Tensor:
        r, x = direction.to(activation.device), activation.float()  # in 16 bits, r would not have length 1
        return x - (x @ r)[..., None] * r

    chosen = range(len(layers_of(model))) if layers is None else list(layers)
    writes = [(site, layer, remove) for layer in chosen for site in ("attn_out", "mlp_out")]
    # What enters the first block is all that the embeddings write, those of positions (GPT-2) among them.
    embedding = [("resid_pre", 0, remove)] if layers is None else []
    return edit(model, embedding + writes)


def add_direction(model, direction: torch.Tensor, layer: int, strength: float = 1.0):
    """While inside, `strength * direction` [d_model], of any length, is added before a layer, at every position."""
    direction = check_direction(model, direction, length=None)
    return edit(model, [("resid_pre", layer, lambda x: x + strength * direction.to(x))])
