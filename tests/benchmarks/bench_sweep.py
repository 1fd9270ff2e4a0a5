"""The sweep engine against plain transformers with hooks, in one run: every layer's attention and MLP, 16 pairs.

python tests/benchmarks/bench_sweep.py [--pairs 16] [--positions last all] [--every 1] [--tree]

Three ways: ours; one padded forward of all prompts for each patch; one forward for each patch and prompt. --every 6
times the slow ways on each sixth patch and scales the time up. --tree scores the whole tree of openings, else the
openings' first tokens, for all ways alike. Peak memory is the process's, before the slow ways begin. Seconds are those
of the processor (all threads together), so that other work on the machine does not count.
"""

import argparse
import resource
import time

import torch

from helpers.hooks import edit, record
from helpers.models import layers_of, load_model
from helpers.prompts import chat_text, load_pairs, pad, pad_token_id, tokenize
from helpers.refusal import refusal_score_of
from helpers.sweep import Patch, Sweep, first_tokens


def plain_odds(model, batch, score) -> torch.Tensor:
    """[prompt]: by plain forwards, padded at the left; a batched one for each length of opening beyond the first."""
    if all(len(opening) == 1 for opening in score.openings):
        log_p = model(**batch.inputs(), logits_to_keep=1).logits[:, -1].double().log_softmax(-1)
        total = log_p[:, [o[0] for o in score.openings]].logsumexp(-1).clamp(max=-1e-6)
        return total - torch.log(-torch.expm1(total))
    return score.score_batch(model, batch)


def hooked(model, batch, score, patch, rows=slice(None)) -> torch.Tensor:
    """[prompt] under one patch, by a hook over a whole forward; openings that follow are let through."""
    width = batch.input_ids.shape[1]
    columns, values = patch.columns[rows, -width:, None], patch.values[rows, -width:]

    def change(x):
        return torch.where(columns, values, x) if x.shape[1] == width else None

    with edit(model, [(patch.site, patch.layer, change)]):
        return plain_odds(model, batch, score)


@torch.no_grad()
def main(pairs=16, positions=("last", "all"), every=1, tree=False) -> None:
    model, tokenizer = load_model()
    score = refusal_score_of(model, tokenizer)
    score = score if tree else first_tokens(score)
    rows = [[], []]
    for pair in load_pairs("test"):
        ids = tokenize(tokenizer, chat_text(tokenizer, [pair.harmful, pair.harmless]))
        if len(ids[0]) == len(ids[1]) and len(rows[0]) < pairs:
            for side, row in zip(rows, ids, strict=True):
                side.append(row)
    clean, donor = (pad(side, list(range(len(side))), pad_token_id(tokenizer)) for side in rows)
    print(
        f"{len(rows[0])} pairs, {clean.input_ids.shape[1]} positions, {len(layers_of(model))} layers, {len(score.openings)} openings"
    )
    for where in positions:
        start = time.process_time()
        sweep = Sweep(model, clean, score)
        with record(model, ["attn_out", "mlp_out"]) as seen:
            model(**donor.inputs(), logits_to_keep=1)
        # Before the first word that differs nothing can differ: those positions hold the same in both.
        differ = (clean.input_ids != donor.input_ids).int().cummax(-1).values.bool()
        columns = differ if where == "all" else torch.zeros_like(differ)
        columns[:, -1] = True
        patches = [Patch(s, layer, columns, seen[s][layer]) for layer in range(len(layers_of(model))) for s in seen]
        got = sweep.scores(patches)
        ours = time.process_time() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        some = list(range(0, len(patches), every))
        start = time.process_time()
        batched = torch.stack([hooked(model, clean, score, patches[i]) for i in some])
        middle = time.process_time()
        ones = torch.empty(len(some), len(rows[0]))
        for j, row in enumerate(rows[0]):
            alone = pad([row], [0], pad_token_id(tokenizer))
            for place, i in enumerate(some):
                ones[place, j] = hooked(model, alone, score, patches[i], slice(j, j + 1))[0]
        end = time.process_time()
        scale = len(patches) / len(some)
        slow = {"batched": ((middle - start) * scale, batched), "one by one": ((end - middle) * scale, ones)}
        print(f"\n{where} positions, {len(patches)} patches: ours {ours:.1f} CPU s, peak memory {peak:.2f} GiB")
        for name, (seconds, values) in slow.items():
            print(
                f"  {name:12}{seconds:8.1f} CPU s  {seconds / ours:6.1f} times ours, largest difference {(values - got[some]).abs().max():.1e}"
            )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pairs", type=int, default=16)
    parser.add_argument("--positions", nargs="+", default=["last", "all"], choices=["last", "all"])
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--tree", action="store_true")
    main(**vars(parser.parse_args()))
