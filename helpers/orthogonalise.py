"""Take a direction out of the weights for good, so that nothing can write along it. Taught in lesson 05.

Ablating a direction while the model runs subtracts, at every write, what lies along it: x - (x . r) r. A write is a
matrix times something, plus a bias; so the same can be done once, to the matrix and the bias (Arditi et al. 2024,
section 4.1): W - r (r . W). What writes: the token embedding, the embedding of positions where there is one (GPT-2), and in each
block the output projection and the down projection, with their biases.
"""

import copy
from collections.abc import Iterable

import torch
from torch import nn

from .hooks import check_direction, check_site
from .models import (
    UnknownArchitecture,
    attention_of,
    attention_write_of,
    body_of,
    down_projection_of,
    embedding_of,
    layers_of,
    mlp_of,
    mlp_write_of,
    out_projection_of,
    unembedding_of,
    weight_of,
)


@torch.no_grad()
def orthogonalised(model: nn.Module, direction: torch.Tensor, layers: Iterable[int] | None = None) -> nn.Module:
    """A copy of the model that cannot write along a unit direction, [d_model]; the given one is untouched.

    layers: only these layers lose it, and no embedding; None for all that writes. Equal to `ablate_direction` of the
    same arguments at run time, up to rounding. A head tied to the embedding gets weights of its own first:
    it reads the stream, and must go on reading it as before. Raises ValueError for a direction that is not of length 1,
    and UnknownArchitecture where a norm stands between the projections and the stream (Gemma 2 and 3, OLMo 2 and 3).
    """
    direction = check_direction(model, direction)
    for layer in layers_of(model):
        if attention_write_of(layer) is not attention_of(layer) or mlp_write_of(layer) is not mlp_of(layer):
            raise UnknownArchitecture(
                f"In a {type(layer).__name__} a norm stands between the projections and the residual stream. It rescales "
                "each channel of what they write and so turns it: weights that cannot write along a direction would "
                "still reach it. Ablate the direction at run time instead, with ablate_direction()."
            )
    chosen = None if layers is None else list(layers)
    for layer in chosen or ():
        check_site(model, "mlp_out", layer)
    new = copy.deepcopy(model)
    if chosen is None:
        untie(new)
    for weight in writing_weights(new, chosen):
        r = direction.to(weight.device)
        wide = weight.float()  # in 16 bits r would not have length 1
        # The last axis is the stream: rows of an embedding, columns of a transposed projection, a bias.
        weight.copy_(wide - (wide @ r)[..., None] * r)
    return new


def untie(model: nn.Module) -> None:
    """Give the unembedding weights of its own, if it shares those of the embedding. Changes the model."""
    head = unembedding_of(model)
    if head.weight is embedding_of(model).weight:
        head.weight = nn.Parameter(head.weight.detach().clone(), requires_grad=head.weight.requires_grad)
    model.config.tie_word_embeddings = False
    if hasattr(model.config, "get_text_config"):
        model.config.get_text_config().tie_word_embeddings = False


def writing_weights(model: nn.Module, chosen: Iterable[int] | None = None) -> list[torch.Tensor]:
    """What is added to the stream, as views whose last axis is the stream's: [..., d_model]. chosen: by these layers
    only; None for all layers and the embeddings."""
    found = [embedding_of(model).weight] if chosen is None else []
    positions = getattr(body_of(model), "wpe", None)
    if positions is not None and chosen is None:
        found.append(positions.weight)
    blocks = layers_of(model)
    for layer in blocks if chosen is None else [blocks[i] for i in chosen]:
        for projection in (out_projection_of(layer), down_projection_of(layer)):
            found.append(weight_of(projection).T)
            if projection.bias is not None:
                found.append(projection.bias)
    return [weight.detach() for weight in found]
