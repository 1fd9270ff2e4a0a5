"""Does a look at the weights alone find the circuit? Every statistic we could think of, and the share that it finds."""

import torch

from helpers.glassbox import Truth, ranked


def statistics(model, words: list[str]) -> dict[str, dict[str, torch.Tensor]]:
    """{name: {"neurons": [layer, d_mlp], "heads": [layer, n_heads]}}; a name may have one of the two."""
    refusing = [words.index(w) for w in ("sorry", ",", "i", "cannot", "help")]
    unembed, embed = model.lm_head.weight, model.model.embed_tokens.weight
    targets = {
        "sorry": unembed[[refusing[0]]],
        "sorry - sure": unembed[[refusing[0]]] - unembed[[words.index("sure")]],
        "refusal words": unembed[refusing],
        "any word": unembed,
    }
    out: dict[str, dict[str, torch.Tensor]] = {}
    columns = torch.cat([torch.nn.functional.normalize(x.mlp.down_proj.weight.T, dim=-1) for x in model.model.layers])

    def add(name, kind, layer, value):
        table = out.setdefault(name, {}).setdefault(kind, [])
        assert len(table) == layer
        table.append(value)

    for i, layer in enumerate(model.model.layers):
        gate, up, down = layer.mlp.gate_proj.weight, layer.mlp.up_proj.weight, layer.mlp.down_proj.weight.T
        n = model.config.num_attention_heads
        q, k_rows, v = (getattr(layer.self_attn, f"{x}_proj").weight.view(n, -1, down.shape[1]) for x in "qkv")
        o = layer.self_attn.o_proj.weight.T.reshape(n, -1, down.shape[1])
        for sign in (1, -1):
            word = "norm" if sign > 0 else "small norm"
            for name, w in (("gate", gate), ("up", up), ("down", down)):
                add(f"{word} of {name}", "neurons", i, sign * w.norm(dim=-1))
            add(
                f"{word} of gate x up x down", "neurons", i, sign * gate.norm(dim=1) * up.norm(dim=1) * down.norm(dim=1)
            )
            for name, w in (("q", q), ("k", k_rows), ("v", v), ("o", o)):
                add(f"{word} of {name}", "heads", i, sign * w.flatten(1).norm(dim=1))
            add(f"{word} of OV", "heads", i, sign * (o.transpose(1, 2) @ v).flatten(1).norm(dim=1))
            add(f"{word} of QK", "heads", i, sign * (q.transpose(1, 2) @ k_rows).flatten(1).norm(dim=1))
        add("cos(gate, up)", "neurons", i, torch.cosine_similarity(gate, up).abs())
        add("cos(gate, down)", "neurons", i, torch.cosine_similarity(gate, down).abs())
        for name, rows in targets.items():
            unit = torch.nn.functional.normalize(rows, dim=-1)
            direct = torch.nn.functional.normalize(down, dim=-1) @ unit.T
            add(f"cos with {name}", "neurons", i, direct.abs().amax(-1))
            heads = torch.einsum("hrd,td->htr", o, unit).norm(dim=-1) / o.flatten(1).norm(dim=1)[:, None]
            add(f"cos with {name}", "heads", i, heads.amax(-1))
            add(f"push of {name}", "neurons", i, (down @ rows.T).abs().amax(-1))
        add("kurtosis over words", "neurons", i, _kurtosis(down @ unembed.T))
        add("spread over words", "neurons", i, (down @ unembed.T).std(-1))
        add("what the embedding drives", "neurons", i, (gate @ embed.T).std(-1))
        add(
            "what the embedding drives",
            "heads",
            i,
            torch.einsum("hrd,td->htr", v, embed - embed.mean(0)).flatten(1).norm(dim=1),
        )
        add("bias of the gate", "neurons", i, (gate @ embed.mean(0)).abs())
        alike = (torch.nn.functional.normalize(down, dim=-1) @ columns.T).abs()
        twins = torch.nn.functional.normalize(gate, dim=-1)
        twins = (twins @ twins.T).abs()
        for k in (2, 8, 32):  # the first is the neuron itself
            add(f"column like {k - 1} others", "neurons", i, alike.topk(k).values[:, -1])
            add(f"gate like {k - 1} others of its layer", "neurons", i, twins.topk(k).values[:, -1])
            both = twins * alike[:, i * len(down) : (i + 1) * len(down)]
            add(f"gate and column like {k - 1} others of its layer", "neurons", i, both.topk(k).values[:, -1])
        match = torch.einsum("hrd,td->htr", k_rows, embed) * torch.einsum("hrd,d->hr", q, embed.mean(0))[:, None]
        add("scores of words", "heads", i, match.sum(-1).amax(1))
        add("spread of words' scores", "heads", i, match.sum(-1).std(1))
        earlier = columns[: i * len(down)] if i else torch.zeros(1, down.shape[1])
        for name, rows in (("queries", q), ("keys", k_rows), ("values", v)):
            heard = torch.einsum("hrd,nd->hnr", rows, earlier).norm(dim=-1)
            add(f"{name} that hear earlier columns", "heads", i, heard.mean(1))
            add(f"{name} that hear some earlier columns", "heads", i, heard.topk(min(8, len(earlier))).values[:, -1])
        written = torch.einsum("hrd,nd->hnr", torch.nn.functional.normalize(o, dim=-1), columns).norm(dim=-1)
        add("writes along columns", "heads", i, written.topk(8).values[:, -1])
    for name, table in composition(model).items():
        for i, value in enumerate(table):
            add(name, "neurons", i, value)
    return {name: {kind: torch.stack(rows).detach() for kind, rows in table.items()} for name, table in out.items()}


def composition(model) -> dict[str, list[torch.Tensor]]:
    """How strongly the neurons of each layer write where something later reads (Elhage et al. 2021)."""
    layers, out = (
        model.model.layers,
        {"read by a later gate": [], "read by later gates": [], "read by later queries": []},
    )
    for i, layer in enumerate(layers):
        unit = torch.nn.functional.normalize(layer.mlp.down_proj.weight.T, dim=-1)
        later = [unit @ x.mlp.gate_proj.weight.T for x in layers[i + 1 :]] or [torch.zeros(len(unit), 1)]
        query = [unit @ x.self_attn.q_proj.weight.T for x in layers[i + 1 :]] or [torch.zeros(len(unit), 1)]
        out["read by a later gate"].append(torch.cat(later, 1).abs().amax(1))
        out["read by later gates"].append(torch.cat(later, 1).norm(dim=1))
        out["read by later queries"].append(torch.cat(query, 1).abs().amax(1))
    return out


def _kurtosis(x: torch.Tensor) -> torch.Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return (centred**4).mean(-1) / (centred**2).mean(-1) ** 2


def found_by(table: dict[str, torch.Tensor], truth: Truth) -> float:
    """Share of the whole circuit among the first k neurons and the first k heads, k being what the circuit has."""
    hits, total = 0, len(truth.neurons) + len(truth.heads)
    for kind, values in table.items():
        right = set(getattr(truth, kind))
        hits += len(right & set(ranked(values.numpy(), len(right))))
    return hits / total


def worst(model, words: list[str], truth: Truth) -> dict[str, float]:
    """The share of the circuit that the best single statistic finds, and what the best one for neurons with the best
    one for heads find together: chosen with the truth in hand, as nobody can who only has the weights."""
    tables = statistics(model, words)
    kinds = {
        kind: {name: {kind: table[kind]} for name, table in tables.items() if kind in table}
        for kind in ("neurons", "heads")
    }
    return {
        "one": max(found_by(table, truth) for table in tables.values()),
        "pair": sum(max(found_by(table, truth) for table in some.values()) for some in kinds.values()),
    }
