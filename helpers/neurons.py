"""Find safety neurons: which ones differ between harmful and harmless prompts, and by which yardstick.

A neuron is a channel of the input of the down projection. All rankings here read one forward over all prompts:

    difference   mean on unsafe minus mean on safe prompts
    effect size  the same in standard deviations, so that loud neurons have no start
    write        the difference times what the neuron writes onto a direction: can it be *heard* there?
    contrast     change of the tuned model against its base while it answers (SafetyNeuron, Chen et al. 2024)
    utility      what harmless prompts need, to be taken away from any of them (Wei et al. 2024)

None of them proves that a neuron matters; only an intervention does. Taught in lesson 01.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from .hooks import check_direction, check_site, read, record
from .models import body_of, dims_of, down_projection_of, layers_of, weight_of
from .prompts import chat_text, check_prompts, pad, pad_token_id, tokenize
from .refusal import generate

COLUMNS = ("layer", "neuron", "activation_diff", "safe_activation", "unsafe_activation", "direction", "effect_size")


@dataclass(frozen=True)
class Comparison:
    """Neurons at one template position on two groups of prompts: safe and unsafe, [prompt, layer, d_mlp]."""

    safe: torch.Tensor
    unsafe: torch.Tensor
    layers: tuple[int, ...]
    paired: bool = False  # whether prompt i of both groups is one pair

    @property
    def difference(self) -> torch.Tensor:
        """Mean on unsafe minus mean on safe, [layer, d_mlp]."""
        return self.unsafe.mean(0) - self.safe.mean(0)

    @property
    def effect_size(self) -> torch.Tensor:
        """Cohen's d: the difference in pooled standard deviations (within groups), [layer, d_mlp]."""
        n, m = len(self.unsafe), len(self.safe)
        within = (self.unsafe.var(0) * (n - 1) + self.safe.var(0) * (m - 1)) / max(n + m - 2, 1)
        return self.difference / within.sqrt().clamp(min=1e-6)

    @property
    def activity(self) -> torch.Tensor:
        """Mean absolute activation over both groups, [layer, d_mlp]: by this a random control is matched."""
        return torch.cat([self.safe, self.unsafe]).abs().mean(0)

    def table(self, scores: torch.Tensor | None = None, top_k: int | None = 50) -> pd.DataFrame:
        """A row a neuron, the largest score first: COLUMNS, the difference's interval (`low`, `high`), and `score`.

        scores: [layer, d_mlp]; None for the absolute difference. top_k: None for all neurons.
        """
        scores = self.difference.abs() if scores is None else scores
        if tuple(scores.shape) != tuple(self.difference.shape):
            raise ValueError(
                f"Scores need one number for each [layer, neuron], {tuple(self.difference.shape)}, not the shape "
                f"{tuple(scores.shape)}."
            )
        order = scores.flatten().argsort(descending=True, stable=True)[:top_k]
        low, high = self._interval(order)
        width = scores.shape[1]
        diff = self.difference.flatten()[order]
        rows = {
            "layer": [self.layers[i] for i in (order // width).tolist()],
            "neuron": (order % width).tolist(),
            "activation_diff": diff.tolist(),
            "safe_activation": self.safe.mean(0).flatten()[order].tolist(),
            "unsafe_activation": self.unsafe.mean(0).flatten()[order].tolist(),
            "direction": ["unsafe" if x > 0 else "safe" for x in diff.tolist()],
            "effect_size": self.effect_size.flatten()[order].tolist(),
            "low": low.tolist(),
            "high": high.tolist(),
            "score": scores.flatten()[order].tolist(),
        }
        return pd.DataFrame(rows)

    def _interval(self, order: torch.Tensor, draws: int = 1000, level: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
        """Percentile bootstrap of the difference over prompts (over whole pairs, if paired), [neuron] each.

        A resampled mean is a weighted one, so all draws are two matrix products: [draw, prompt] x [prompt, neuron].
        """
        rng, groups = np.random.default_rng(0), (self.unsafe, self.safe)
        weights = [rng.multinomial(len(g), np.full(len(g), 1 / len(g)), size=draws) / len(g) for g in groups]
        weights = [weights[0], weights[0]] if self.paired else weights
        unsafe, safe = (
            torch.as_tensor(w, dtype=torch.float32) @ g.flatten(1)[:, order]
            for w, g in zip(weights, groups, strict=True)
        )
        tails = torch.tensor([(1 - level) / 2, (1 + level) / 2])
        low, high = torch.quantile(unsafe - safe, tails, dim=0)
        return low.numpy(), high.numpy()


class SafetyNeuronFinder:
    """Reads the neurons of a chat model on prompts in their template, and ranks them.

    position: the token that is read, counted from the end of the template (-1: where the answer is decided).
    """

    def __init__(self, model, tokenizer, position: int = -1, batch_size: int = 32):
        self.model, self.tokenizer = model, tokenizer
        self.position, self.batch_size = position, batch_size

    def get_mlp_activations(self, prompts: Sequence[str], layer: int | None = None) -> torch.Tensor:
        """Activations of all neurons, [prompt, layer, d_mlp] (one layer only if it is named), on the CPU.

        One forward a batch reads all layers; what stays is 4 bytes a neuron and prompt. Raises ValueError for an
        empty list, a single string, or a layer that is not there.
        """
        if layer is not None:
            check_site(self.model, "neurons", layer)
        layers = None if layer is None else [layer]
        found = read(
            self.model, self.tokenizer, check_prompts(prompts), ["neurons"], layers, self.position, batch_size=self.batch_size
        )  # fmt: skip
        return found["neurons"]

    def compare(
        self, safe_prompts: Sequence[str], unsafe_prompts: Sequence[str], layer: int | None = None, paired: bool = False
    ) -> Comparison:
        """Both groups in one pass, for as many rankings as you like. paired: prompt i of both lists is a pair.

        Raises ValueError for fewer than two prompts a group, for a prompt that stands in both, and for pairs whose
        lists are not equally long.
        """
        safe, unsafe = _named(safe_prompts, "safe_prompts"), _named(unsafe_prompts, "unsafe_prompts")
        if both := set(safe) & set(unsafe):
            raise ValueError(f"{min(both)!r} stands among the safe and the unsafe prompts: take it out of one list.")
        if paired and len(safe) != len(unsafe):
            raise ValueError(
                f"Pairs need lists of one length, not {len(safe)} safe and {len(unsafe)} unsafe prompts: leave out "
                "paired=True, or give each prompt its twin."
            )
        both = self.get_mlp_activations([*safe, *unsafe], layer)
        layers = range(len(layers_of(self.model))) if layer is None else [layer]
        return Comparison(both[: len(safe)], both[len(safe) :], tuple(layers), paired)

    def find_by_activation_difference(
        self, safe_prompts: Sequence[str], unsafe_prompts: Sequence[str], layer: int | None = None, top_k: int = 50
    ) -> pd.DataFrame:
        """The neurons with the largest absolute difference of means; the table of `Comparison.table`.

        layer: None for all layers. direction: on which group a neuron is more active. Raises ValueError for bad
        prompts, a layer that is not there, and a top_k below 1, before anything is computed.
        """
        if isinstance(top_k, bool) or not isinstance(top_k, int) or top_k < 1:
            raise ValueError(f"top_k is how many neurons the table holds, at least 1; {top_k!r} is not such a number.")
        return self.compare(safe_prompts, unsafe_prompts, layer).table(top_k=top_k).drop(columns="score")


def _named(prompts: Sequence[str], name: str) -> list[str]:
    """The prompts as a list of at least two, or a ValueError with the argument's name."""
    try:
        prompts = check_prompts(prompts)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{name}: {error}") from None
    if len(prompts) < 2:
        raise ValueError(f"{name} holds one prompt, and a mean over one says nothing of its spread: give two or more.")
    return prompts


def columns_of(model) -> torch.Tensor:
    """What each neuron writes into the residual stream when it is 1: [layer, d_mlp, d_model], float32, on the CPU.

    In families with a norm behind the MLP (Gemma 2 and 3, OLMo 2 and 3) that norm rescales it afterwards.
    """
    return torch.stack([weight_of(down_projection_of(layer)).detach().float().cpu().T for layer in layers_of(model)])


def write_onto(model, direction: torch.Tensor) -> torch.Tensor:
    """How much each neuron writes onto a unit direction [d_model] when it is 1: column . direction, [layer, d_mlp]."""
    direction = check_direction(model, direction).cpu()
    return torch.stack([direction @ weight_of(down_projection_of(x)).detach().float().cpu() for x in layers_of(model)])


def utility(model, harmless: torch.Tensor) -> torch.Tensor:
    """What a neuron adds to the stream on harmless prompts, mean |activation| times length of its column; [layer, d_mlp].

    harmless: [prompt, layer, d_mlp]. The neuron's version of the Wanda score that Wei et al. 2024 use on weights.
    """
    norms = [weight_of(down_projection_of(layer)).detach().float().cpu().norm(dim=0) for layer in layers_of(model)]
    return harmless.abs().mean(0) * torch.stack(norms)


def without_top(scores: torch.Tensor, other: torch.Tensor, share: float) -> torch.Tensor:
    """The scores, with -inf for the neurons that lie in the top share (0 to 1) of the other ones (Wei et al. 2024)."""
    if not 0 <= share < 1:
        raise ValueError(f"The share of neurons to leave out lies between 0 and 1; {share!r} does not.")
    count = int(share * other.numel())
    kept = scores.flatten().clone()
    kept[other.flatten().argsort(descending=True)[:count]] = float("-inf")
    return kept.view_as(scores)


@torch.no_grad()
def contrast(
    base, tuned, tokenizer, prompts: Sequence[str], max_new_tokens: int = 12, batch_size: int = 16
) -> torch.Tensor:
    """How much safety tuning changed each neuron while the tuned model answers: RMS over answer tokens, [layer, d_mlp].

    Both models read the same tokens, the prompts with the tuned model's greedy answers; compared is each answer token
    where it is predicted (from the template's last token on). Chen et al. 2024 ("Finding safety neurons in large
    language models"), section 3. Raises ValueError if the two models differ in shape.
    """
    prompts = check_prompts(prompts)
    dims = dims_of(base)
    if dims != dims_of(tuned):
        raise ValueError("The two models differ in shape: contrast a model with the one that it was tuned from.")
    asked = tokenize(tokenizer, chat_text(tokenizer, prompts))
    said = generate(tuned, tokenizer, prompts, max_new_tokens=max_new_tokens, batch_size=batch_size)
    answers = tokenizer(said, add_special_tokens=False)["input_ids"]
    total, count = torch.zeros(dims.n_layers, dims.d_mlp, dtype=torch.float64), 0
    for start in range(0, len(prompts), batch_size):
        part = range(start, min(start + batch_size, len(prompts)))
        batch = pad([[*asked[i], *answers[i][:-1]] for i in part], list(part), pad_token_id(tokenizer), side="right")
        predicts = torch.zeros(batch.input_ids.shape, dtype=torch.bool)
        for row, i in enumerate(part):
            predicts[row, len(asked[i]) - 1 : len(asked[i]) - 1 + max(len(answers[i]), 1)] = True

        def keep(x: torch.Tensor, predicts=predicts) -> torch.Tensor:
            return x[predicts.to(x.device)].float().cpu()

        found = []
        for model in (base, tuned):
            with record(model, ["neurons"], keep=keep) as seen:
                body_of(model)(**batch.to(model.device).inputs(), use_cache=False)
            found.append(seen["neurons"])
        for layer in range(dims.n_layers):
            total[layer] += (found[1][layer] - found[0][layer]).double().square().sum(0)
        count += int(predicts.sum())
    return (total / count).sqrt().float()
