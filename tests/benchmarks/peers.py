"""What a learner would otherwise use, each behind the same four primitives: PyTorch's hooks, TransformerLens, nnsight.

Every way runs whole forwards on one batch of prompts of one length (so there is no padding to disagree about), and gives

    read(site)              {layer: [prompt, position, channel]}
    patched(patch)          [prompt, vocabulary]: the last position's logits under one `helpers.sweep.Patch`
    cut(direction)          the same, with a unit direction out of all that attention and MLPs write, and the embedding
    gradients(sites, loss)  {(site, layer): (activation, gradient)}, both [prompt, position, channel]: of loss(logits), a function
                            of the last position's logits
"""

import copy
from collections.abc import Callable, Sequence

import torch

from helpers.hooks import ablate_direction, edit, record
from helpers.models import dims_of
from helpers.sweep import Patch

Logits = torch.Tensor
Gradients = dict[tuple[str, int], tuple[torch.Tensor, torch.Tensor]]


def put_in(patch: Patch, x: torch.Tensor) -> torch.Tensor:
    """What a site holds under a patch, as a new tensor."""
    new, channels = x.clone(), slice(None) if patch.channels is None else patch.channels
    new[..., channels] = torch.where(patch.columns[..., None], patch.values, x[..., channels])
    return new


def with_slopes(held: dict, value: torch.Tensor) -> Gradients:
    """What was held, with the gradients of a value at it."""
    found = torch.autograd.grad(value, list(held.values()))
    return {place: (x.detach(), slope) for (place, x), slope in zip(held.items(), found, strict=True)}


class Plain:
    """transformers, with PyTorch's own hooks."""

    name = "transformers, batched"

    def __init__(self, model, batch):
        self.model, self.inputs = model, {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
        self.layers = range(dims_of(model).n_layers)

    def forward(self) -> Logits:
        return self.model(**self.inputs, logits_to_keep=1, use_cache=False).logits[:, -1]

    @torch.no_grad()
    def read(self, site: str) -> dict[int, torch.Tensor]:
        with record(self.model, [site]) as seen:
            self.forward()
        return seen[site]

    @torch.no_grad()
    def patched(self, patch: Patch) -> Logits:
        with edit(self.model, [(patch.site, patch.layer, lambda x: put_in(patch, x))]):
            return self.forward()

    @torch.no_grad()
    def cut(self, direction: torch.Tensor) -> Logits:
        with ablate_direction(self.model, direction):
            return self.forward()

    def gradients(self, sites: Sequence[str], loss: Callable[[Logits], torch.Tensor]) -> Gradients:
        held = {}

        def keep(place):
            def function(x):
                held[place] = x if x.requires_grad else x.requires_grad_()
                return None

            return function

        places = [(site, layer) for layer in self.layers for site in sites]
        with torch.enable_grad(), edit(self.model, [(*place, keep(place)) for place in places]):
            return with_slopes(held, loss(self.forward()))


class Lens(Plain):
    """TransformerLens: a TransformerBridge over a copy of the model."""

    name = "TransformerLens"
    POINTS = {"resid_pre": "blocks.{}.hook_in", "attn_out": "blocks.{}.attn.hook_out", "mlp_out": "blocks.{}.mlp.hook_out",
              "neurons": "blocks.{}.mlp.out.hook_in", "z": "blocks.{}.attn.o.hook_in"}  # fmt: skip

    def __init__(self, model, batch, tokenizer):
        from transformer_lens.model_bridge import TransformerBridge

        super().__init__(model, batch)
        own = copy.deepcopy(model)
        own.config.architectures = [type(own).__name__]
        self.bridge = TransformerBridge.boot_transformers("model", hf_model=own, tokenizer=tokenizer)

    def forward(self, hooks=()) -> Logits:
        out = self.bridge.run_with_hooks(
            self.inputs["input_ids"], fwd_hooks=list(hooks), attention_mask=self.inputs["attention_mask"]
        )
        return out[:, -1]

    def _point(self, site: str, layer: int) -> str:
        return self.POINTS[site].format(layer)

    @torch.no_grad()
    def read(self, site: str) -> dict[int, torch.Tensor]:
        names = {self._point(site, layer) for layer in self.layers}
        _, cache = self.bridge.run_with_cache(
            self.inputs["input_ids"],
            names_filter=lambda name: name in names,
            attention_mask=self.inputs["attention_mask"],
        )
        return {layer: cache[self._point(site, layer)].flatten(2) for layer in self.layers}  # z comes by heads

    @torch.no_grad()
    def patched(self, patch: Patch) -> Logits:
        def change(x, hook):
            return put_in(patch, x.flatten(2)).view(x.shape)

        return self.forward([(self._point(patch.site, patch.layer), change)])

    @torch.no_grad()
    def cut(self, direction: torch.Tensor) -> Logits:
        def without(x, hook):
            return x - (x @ direction)[..., None] * direction

        written = [self._point(site, layer) for site in ("attn_out", "mlp_out") for layer in self.layers]
        return self.forward([(name, without) for name in ["embed.hook_out", *written]])

    def gradients(self, sites: Sequence[str], loss) -> Gradients:
        held, places = {}, {self._point(site, layer): (site, layer) for layer in self.layers for site in sites}

        def keep(x, hook):
            held[places[hook.name]] = x if x.requires_grad else x.detach().requires_grad_()
            return held[places[hook.name]]

        with torch.enable_grad():
            found = with_slopes(held, loss(self.forward([(name, keep) for name in places])))
        return {place: (x.flatten(2), slope.flatten(2)) for place, (x, slope) in found.items()}  # z comes by heads


class Sight(Plain):
    """nnsight, over a copy of the model."""

    name = "nnsight"

    def __init__(self, model, batch):
        from nnsight import NNsight

        super().__init__(model, batch)
        self.sight = NNsight(copy.deepcopy(model))
        self.inputs |= {"logits_to_keep": 1, "use_cache": False}

    def _module(self, site: str, layer: int):
        """The module, and whether the site is what goes into it."""
        block = self.sight.model.layers[layer]
        return {"resid_pre": (block, True), "attn_out": (block.self_attn.o_proj, False), "mlp_out": (block.mlp, False),
                "neurons": (block.mlp.down_proj, True), "z": (block.self_attn.o_proj, True)}[site]  # fmt: skip

    @torch.no_grad()
    def read(self, site: str) -> dict[int, torch.Tensor]:
        with self.sight.trace(**self.inputs):
            held = []
            for layer in self.layers:
                module, before = self._module(site, layer)
                held.append(module.input if before else module.output)
            held = held.save()
        return dict(enumerate(held))

    @torch.no_grad()
    def patched(self, patch: Patch) -> Logits:
        module, before = self._module(patch.site, patch.layer)
        with self.sight.trace(**self.inputs):
            if before:
                module.input = put_in(patch, module.input)
            else:
                module.output = put_in(patch, module.output)
            out = self.sight.output.logits[:, -1].save()
        return out

    @torch.no_grad()
    def cut(self, direction: torch.Tensor) -> Logits:
        layers = self.sight.model.layers
        with self.sight.trace(**self.inputs):
            x = self.sight.model.embed_tokens.output
            self.sight.model.embed_tokens.output = x - (x @ direction)[..., None] * direction
            for layer in self.layers:
                x = layers[layer].self_attn.o_proj.output
                layers[layer].self_attn.o_proj.output = x - (x @ direction)[..., None] * direction
                x = layers[layer].mlp.output
                layers[layer].mlp.output = x - (x @ direction)[..., None] * direction
            out = self.sight.output.logits[:, -1].save()
        return out

    def gradients(self, sites: Sequence[str], loss) -> Gradients:
        # In the order in which they come up in a forward, which nnsight asks for.
        order = [site for site in ("resid_pre", "z", "attn_out", "neurons", "mlp_out") if site in sites]
        with torch.enable_grad(), self.sight.trace(**self.inputs):
            held = {}
            for layer in self.layers:
                for site in order:
                    module, before = self._module(site, layer)
                    x = module.input if before else module.output
                    if not x.requires_grad:
                        x.requires_grad_(True)
                    held[site, layer] = x
            found = with_slopes(held, loss(self.sight.output.logits[:, -1])).save()
        return found
