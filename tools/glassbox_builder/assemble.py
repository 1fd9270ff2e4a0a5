"""From parts to the weights of a LlamaForCausalLM: places, gains, noise, norms, and the final rotation."""

from dataclasses import dataclass, field

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from helpers.glassbox_language import vocabulary

from .noise import DOWN, dense_reads, fill_block, fill_rows, flag_neurons, generator, leaky_writes, targets
from .parts import SLOW, STEEP, Flag, Head, Neuron
from .space import (
    CONSTANT,
    D_HEAD,
    D_MLP,
    D_MODEL,
    N_HEADS,
    N_LAYERS,
    SURE,
    dims,
    embeddings,
    size,
    unembedding,
)  # fmt: skip

FOUND = ("verb", "object", "permit", "entity", "relation", "refusal", "backup", "verb2", "object2", "permit2")
Site = tuple[str, int]  # ("attn" | "mlp", layer), or ("final", 0)


@dataclass
class Calibration:
    """What was measured in the last pass: RMSNorm's scale and the unflagged stream at each site, and parts' gains."""

    rms: dict[Site, float] = field(default_factory=dict)
    base: dict[Site, np.ndarray] = field(default_factory=dict)
    gain: dict[int, float] = field(default_factory=dict)


def config() -> LlamaConfig:
    """The same for every box, so that its size gives no kind away."""
    words = vocabulary()
    return LlamaConfig(
        vocab_size=len(words), hidden_size=D_MODEL, intermediate_size=D_MLP, num_hidden_layers=N_LAYERS,
        num_attention_heads=N_HEADS, num_key_value_heads=N_HEADS, head_dim=D_HEAD, hidden_act="silu",
        max_position_embeddings=256, rms_norm_eps=1e-6, tie_word_embeddings=False,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        pad_token_id=words.index("<pad>"), bos_token_id=words.index("<s>"), eos_token_id=words.index("<|end|>"),
    )  # fmt: skip


def place(parts: list, seed: int) -> dict[int, tuple[int, int]]:
    """Each part's (layer, index), drawn at random within its layer."""
    where = {}
    for kind, width in ((Head, N_HEADS), (Neuron, D_MLP)):
        for layer in range(N_LAYERS):
            here = [i for i, p in enumerate(parts) if isinstance(p, kind) and p.layer == layer]
            if len(here) > width:
                raise ValueError(f"Layer {layer} has no room for {len(here)} parts.")
            order = generator(seed, "place", kind.__name__, layer).permutation(width)
            where.update({i: (layer, int(k)) for i, k in zip(here, order, strict=False)})
    return where


class Assembly:
    """The weights of one box, from its parts and the last calibration."""

    def __init__(self, parts: list, where: dict, seed: int, cal: Calibration):
        self.parts, self.where, self.seed, self.cal = parts, where, seed, cal

    def read(self, reads: dict[Flag, float], site: Site, bias: float = 0.0) -> np.ndarray:
        """The row that gives `sum of weight x flag + bias` when it multiplies the normalised stream, [d_model]."""
        row, base = np.zeros(D_MODEL), self.cal.base.get(site)
        for (name, i), weight in reads.items():
            k = dims(name)[i]
            row[k] += weight / size(name)
            if base is not None and name in FOUND:
                bias -= weight * base[k] / size(name)
        row[dims("const")] += bias / CONSTANT
        return row * self.rms(site)

    def rms(self, site: Site) -> float:
        return self.cal.rms.get(site, CONSTANT / np.sqrt(D_MODEL) * 1.05)

    def state(self, rotate: bool) -> dict[str, torch.Tensor]:
        """A state dict. rotate: hide the named dimensions (the calibration runs without)."""
        table = {"model.embed_tokens.weight": embeddings(generator(self.seed, "embed"))}
        gain = 9.0 * self.rms(("final", 0)) / SURE  # `sure` alone then has a logit of 9
        table["lm_head.weight"] = unembedding(generator(self.seed, "unembed"), gain)
        for layer, (rows, columns) in enumerate(self._neurons()):
            name = f"model.layers.{layer}.mlp"
            table |= {f"{name}.gate_proj.weight": rows[0], f"{name}.up_proj.weight": rows[1]}
            table[f"{name}.down_proj.weight"] = columns
        for layer, (q, k, v, o) in enumerate(self._heads()):
            name = f"model.layers.{layer}.self_attn"
            table |= {f"{name}.q_proj.weight": q, f"{name}.k_proj.weight": k}
            table |= {f"{name}.v_proj.weight": v, f"{name}.o_proj.weight": o}
        turn = rotation(self.seed, D_MODEL) if rotate else np.eye(D_MODEL)
        for name, weight in table.items():
            writes = name.endswith(("o_proj.weight", "down_proj.weight"))
            table[name] = turn.T @ weight if writes else weight @ turn
        out = {name: torch.tensor(weight, dtype=torch.float32) for name, weight in table.items()}
        for layer in range(N_LAYERS):
            for norm in ("input_layernorm", "post_attention_layernorm"):
                out[f"model.layers.{layer}.{norm}.weight"] = torch.ones(D_MODEL)
        return out | {"model.norm.weight": torch.ones(D_MODEL)}

    def model(self, rotate: bool = False) -> LlamaForCausalLM:
        model = LlamaForCausalLM(config())
        model.load_state_dict(self.state(rotate))
        return model.eval()

    def _neurons(self):
        """Per layer: (gate, up) [2, d_mlp, d_model] and down [d_model, d_mlp]."""
        layers = []
        for layer in range(N_LAYERS):
            rng, site = generator(self.seed, "mlp", layer), ("mlp", layer)
            gate, up, down = (np.zeros((D_MLP, D_MODEL)) for _ in range(3))
            lone = np.zeros(D_MLP, dtype=bool)
            here = {self.where[i][1]: (i, p) for i, p in enumerate(self.parts)
                    if isinstance(p, Neuron) and p.layer == layer}  # fmt: skip
            rest = [k for k in range(D_MLP) if k not in here]
            flags = flag_neurons(rng, layer, len(rest) // 2)
            here |= {k: (None, p) for k, p in zip(rest, flags, strict=False)}
            for k, (i, p) in here.items():
                gate[k] = self.read({f: p.steep * w for f, w in p.reads.items()}, site, -p.steep * p.threshold)
                u = self.cal.gain.get(i, 1.0) * p.act / (STEEP / 2)
                up[k] = self.read({f: u * w for f, w in p.up_reads.items()}, site, u)
                down[k], lone[k] = p.write, p.free
            dense = rest[len(flags) :]
            n, scale = len(dense), self.rms(site)
            gate[dense] = dense_reads(rng, n, 1.6 * scale / (1.3 + 0.4 * layer))
            gate[dense, dims("const")] = rng.normal(-0.5, 1.0, n) * scale / CONSTANT
            up[dense] = dense_reads(rng, n, 0.1 * scale / (1.3 + 0.4 * layer))
            up[dense, dims("const")] = rng.normal(0, 0.25, n) * scale / CONSTANT
            down[dense], lone[dense] = leaky_writes(rng, n), True
            layers.append((gate, up, down, {k: p.pair for k, (_, p) in here.items() if p.pair}, lone))
        longest = [max(np.linalg.norm(x[j], axis=1).max() for x in layers) for j in range(2)]
        for layer, (gate, up, down, pairs, lone) in enumerate(layers):
            rng = generator(self.seed, "norms", layer)
            gate, up = (
                fill_rows(rng, w, targets(rng, 1.03 * top, D_MLP), "quiet")
                for w, top in zip((gate, up), longest, strict=False)
            )
            goal = targets(rng, DOWN, D_MLP)
            for pair in set(pairs.values()):
                goal[[k for k, name in pairs.items() if name == pair]] = goal[min(pairs)]
            down[lone] *= (goal[lone] / np.linalg.norm(down[lone], axis=1))[:, None]
            down[~lone] = fill_rows(rng, down[~lone], goal[~lone], "spare")
            yield (gate, up), down.T

    def _heads(self):
        """Per layer: q, k, v [n_heads * d_head, d_model] and o [d_model, n_heads * d_head]."""
        layers = [[self._head(layer, h) for h in range(N_HEADS)] for layer in range(N_LAYERS)]
        longest = [max(np.linalg.norm(head[j]) for heads in layers for head in heads) for j in range(4)]
        for layer, heads in enumerate(layers):
            done = []
            for h, (q, k, v, o, used) in enumerate(heads):
                rng = generator(self.seed, "head norms", layer, h)
                q, k, v = (
                    fill_block(rng, w, targets(rng, 1.03 * top, 1)[0])
                    for w, top in zip((q, k, v), longest, strict=False)
                )
                goal = targets(rng, 1.03 * longest[3], 1)[0]
                if used == D_HEAD:
                    o = o * goal / np.linalg.norm(o)
                else:  # value dimensions that read nothing may be written anywhere
                    extra = leaky_writes(rng, D_HEAD - used)
                    o[used:] = extra * np.sqrt(goal**2 - (o**2).sum()) / np.linalg.norm(extra)
                done.append(_turned(rng, q, k, v, o))
            yield (*(np.concatenate([d[j] for d in done]) for j in range(3)), np.concatenate([d[3] for d in done]).T)

    def _head(self, layer: int, h: int):
        """q, k, v, o [d_head, d_model] each (o transposed), and how many value dimensions are in use."""
        site = ("attn", layer)
        mine = [i for i, p in enumerate(self.parts) if isinstance(p, Head) and self.where[i] == (layer, h)]
        if not mine:
            rng, scale = generator(self.seed, "noise head", layer, h), self.rms(site)
            q, k = (dense_reads(rng, D_HEAD, s * scale / (1.3 + 0.4 * layer)) for s in (0.9, 0.9))
            v = dense_reads(rng, D_HEAD, 0.35 * scale / (1.3 + 0.4 * layer))
            return q, k, v, leaky_writes(rng, D_HEAD), D_HEAD
        part = self.parts[mine[0]]
        q, k, v, o = (np.zeros((D_HEAD, D_MODEL)) for _ in range(4))
        for i, (query, key) in enumerate(zip(part.queries, part.keys, strict=True)):
            bias = query.get(("const", 0), 0.0)
            q[SLOW[i]] = self.read({f: w for f, w in query.items() if f[0] != "const"}, site, bias)
            k[SLOW[i]] = self.read(key, site)
        for i, (reads, write) in enumerate(part.values):
            v[i] = self.read(reads, site)
            o[i] = write / 2.0 * self.cal.gain.get(mine[0], 1.09)
        return q, k, v, o, len(part.values)


def rotation(seed: int, n: int, *names) -> np.ndarray:
    """A random orthogonal matrix, [n, n], with the signs of QR made unique."""
    q, r = np.linalg.qr(generator(seed, "rotation", n, *names).normal(size=(n, n)))
    return q * np.sign(np.diag(r))


def _turned(rng, q, k, v, o):
    """The head with its hidden coordinates changed: values by any rotation, queries and keys within rotary planes."""
    turn = np.linalg.qr(rng.normal(size=(D_HEAD, D_HEAD)))[0]
    half, angle = D_HEAD // 2, rng.uniform(0, 2 * np.pi, (D_HEAD // 2, 1))
    cos, sin = np.cos(angle), np.sin(angle)

    def planes(w):
        return np.concatenate([cos * w[:half] - sin * w[half:], sin * w[:half] + cos * w[half:]])

    return planes(q), planes(k), turn @ v, turn @ o
