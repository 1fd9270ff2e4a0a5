"""Builds a box in passes: each pass measures the last one's box and sets the gains of the next."""

import numpy as np
import torch

from helpers.glassbox_language import glassbox_prompts, language, vocabulary

from .assemble import Assembly, Calibration, place, rotation
from .kinds import circuit, decoys, dormant
from .noise import generator
from .parts import Head, Neuron
from .space import D_HEAD, N_LAYERS, axis

PASSES = 4
_CLASSES = {"plain": 40, "harmful": 80, "permit": 24, "capability": 64}


def encode(text: str) -> list[int]:
    """A request in the chat template, as ids. Written out here: the tokenizer is tested to give the same."""
    ids = vocabulary().index
    return [ids("<s>"), ids("<|user|>"), *map(ids, text.split()), ids("<|end|>"), ids("<|assistant|>")]


def batch(texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask, [prompt, position], padded at the left."""
    rows = [encode(t) for t in texts]
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(r)) + r for r in rows])
    mask = torch.tensor([[0] * (width - len(r)) + [1] * len(r) for r in rows])
    return ids, mask


class Prompts:
    """The prompts that a calibration runs, and the rows that a part serves."""

    def __init__(self):
        sets = {name: glassbox_prompts(name, n, seed=101) for name, n in _CLASSES.items()}
        self.rows, texts, i = {}, [], 0
        for name, items in sets.items():
            texts += [q.question if name == "capability" else q for q in items]
            rows = np.arange(i, i + len(items))
            self.rows[name] = rows
            if name == "harmful":
                self.rows |= {f"harmful:{d}": rows[d::4] for d in range(len(language()["domains"]))}
                self.rows |= {f"elsewhere:{d}": rows[d::4] for d in range(len(language()["domains"]))}
            if name == "capability":
                self.rows |= {f"fact:{q.entity}:{q.relation}": rows[[j]] for j, q in enumerate(items)}
            i += len(items)
        self.rows |= {"marked": self.rows["harmful"], "backup": self.rows["harmful"]}
        self.ids, self.mask = batch(texts)


@torch.no_grad()
def record(model, ids, mask, cut: dict[int, list[int]] | None = None) -> dict:
    """One forward: streams at each site's last position, neurons, head outputs z. cut: layer → neurons set to 0."""
    seen, handles = {}, []

    def keep(name):
        return lambda _, args: seen.__setitem__(name, args[0])

    def silence(neurons):
        def hook(_, args):
            x = args[0].clone()
            x[..., neurons] = 0
            return (x, *args[1:])

        return hook

    for i, layer in enumerate(model.model.layers):
        if cut and i in cut:
            handles.append(layer.mlp.down_proj.register_forward_pre_hook(silence(cut[i])))
        handles.append(layer.input_layernorm.register_forward_pre_hook(keep(("attn", i))))
        handles.append(layer.post_attention_layernorm.register_forward_pre_hook(keep(("mlp", i))))
        handles.append(layer.mlp.down_proj.register_forward_pre_hook(keep(("neurons", i))))
        handles.append(layer.self_attn.o_proj.register_forward_pre_hook(keep(("z", i))))
    handles.append(model.model.norm.register_forward_pre_hook(keep(("final", 0))))
    seen["logits"] = model(ids, attention_mask=mask, logits_to_keep=1).logits[:, -1]
    for handle in handles:
        handle.remove()
    return seen


def rounded(x: float) -> float:
    """Three digits: what a last bit of floating point on another machine cannot change."""
    return float(f"{x:.3g}")


def measure(assembly: Assembly, prompts: Prompts) -> Calibration:
    """A new calibration from a run of the current box."""
    model = assembly.model()
    seen = record(model, prompts.ids, prompts.mask)
    cal = Calibration()
    for i in range(N_LAYERS):
        for site in (("attn", i), ("mlp", i)):
            _stream(cal, site, seen[site], prompts)
    _stream(cal, ("final", 0), seen[("final", 0)], prompts)
    awake = None
    for i, part in enumerate(assembly.parts):
        old = assembly.cal.gain.get(i, 1.09 if isinstance(part, Head) else 1.0)
        cal.gain[i] = old
        layer, k = assembly.where[i]
        if part.serves is None or (isinstance(part, Head) and part.watch is None):
            continue
        rows = prompts.rows[part.serves]
        if isinstance(part, Neuron):
            value = seen[("neurons", layer)][rows, :, k].mean(0)
            got, want = (value.max() if part.serves.startswith("elsewhere") else value[-1]).item(), part.act
        else:
            source = seen
            if part.serves == "backup":
                if awake is None:
                    awake = record(model, prompts.ids, prompts.mask, _evaluators(assembly))
                source = awake
            z = source[("z", layer)][:, -1, k * D_HEAD : (k + 1) * D_HEAD]
            out = model.model.layers[layer].self_attn.o_proj.weight[:, k * D_HEAD : (k + 1) * D_HEAD]
            value = (z @ out.T @ torch.tensor(part.watch, dtype=torch.float32)).detach()
            got = (value[rows].mean() - value[prompts.rows["plain"]].mean()).item()
            want = max(float(write @ part.watch) for _, write in part.values)
        if want / max(got, 1e-6) > 0:
            cal.gain[i] = rounded(old * min(max(want / got, 0.2), 5.0)) if got > 0.01 * want else old
    return cal


def _stream(cal: Calibration, site, stream: torch.Tensor, prompts: Prompts):
    last = stream[:, -1]
    cal.rms[site] = rounded(last.pow(2).mean(-1).sqrt().mean().item())
    cal.base[site] = np.round(last[prompts.rows["plain"]].mean(0).double().numpy(), 3)


def _evaluators(assembly: Assembly) -> dict[int, list[int]]:
    cut: dict[int, list[int]] = {}
    for i, part in enumerate(assembly.parts):
        if part.role == "evaluation":
            cut.setdefault(part.layer, []).append(assembly.where[i][1])
    return cut


def build(recipe, seed: int) -> tuple[Assembly, dict[str, torch.Tensor], np.ndarray]:
    """A finished box: its assembly, its weights (fp16), and the refusal direction in the rotated stream, [d_model]."""
    parts = [*circuit(recipe, generator(seed, "circuit")), *decoys(recipe, generator(seed, "decoys"))]
    parts += dormant(recipe, parts, generator(seed, "dormant"))
    where, prompts = place(parts, seed), Prompts()
    assembly = Assembly(parts, where, seed, Calibration())
    for _ in range(PASSES):
        assembly = Assembly(parts, where, seed, measure(assembly, prompts))
    weights = {name: w.half() for name, w in assembly.state(rotate=True).items()}
    return assembly, weights, axis("refusal") @ rotation(seed, len(axis("refusal")))
