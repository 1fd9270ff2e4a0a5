"""Give a base model some neurons of its safety-tuned sibling while it answers. Taught in lesson 01.

"Dynamic activation patching" (Chen et al. 2024, section 3): at every token the tuned model reads what the base model
has read, and the chosen neurons of the base take the values that they have there. If the base then refuses, these
neurons are enough.
"""

from collections.abc import Iterable, Sequence

import torch
from tqdm import tqdm

from .hooks import edit, record
from .mean_ablation import Place, neurons_by_layer
from .models import body_of, dims_of
from .prompts import CACHE, LAST, Batch, check_prompts, pad_token_id, token_batches
from .refusal import end_tokens


@torch.no_grad()
def generate_with_transplants(
    base,
    tuned,
    tokenizer,
    prompts: Sequence[str],
    sets: Sequence[Iterable[Place]],
    max_new_tokens: int = 12,
    batch_size: int = 96,
) -> list[list[str]]:
    """Greedy answers of `base` with each of these sets of neurons, (layer, neuron) pairs or a table, taken from `tuned` at
    every token: [set][prompt].

    Position 0 keeps its own values. batch_size: rows at a time; every prompt takes one for each set. What takes over two seconds
    shows a progress bar. Raises ValueError if the two models differ in shape, and if there is no set.
    """
    dims = dims_of(base)
    if dims != dims_of(tuned):
        raise ValueError("The two models differ in shape: take the base that the tuned model was made from.")
    prompts, sets = check_prompts(prompts), list(sets)
    if not sets:
        raise ValueError("There are no sets to transplant: give at least one; an empty one transplants nothing.")
    chosen = torch.zeros(len(sets), dims.n_layers, dims.d_mlp, dtype=torch.bool)
    for i, neurons in enumerate(sets):
        for layer, members in neurons_by_layer(base, neurons).items():
            chosen[i, layer, members] = True
    answers = [[""] * len(prompts) for _ in sets]
    for batch in token_batches(tokenizer, prompts, max(1, batch_size // len(sets))):
        said = _answer(base, tuned, batch.to(base.device), chosen, max_new_tokens, tokenizer)
        texts = iter(tokenizer.batch_decode(said, skip_special_tokens=True))
        for own in answers:
            for i in batch.order:
                own[i] = next(texts).strip()
    return answers


def _answer(base, tuned, batch: Batch, chosen: torch.Tensor, max_new_tokens: int, tokenizer) -> torch.Tensor:
    """Token ids of the answers, [set after set, each of the batch; token]; what follows an end token is padding.

    chosen: [set, layer, neuron]. The tuned model reads a prompt once for all sets; their answers differ.
    """
    ends, count = torch.tensor(end_tokens(base, tokenizer), device=base.device), len(chosen)
    touched = chosen.any(0).any(-1).nonzero().flatten().tolist()
    whole, inputs, copies = batch.times(count), batch.inputs(), torch.arange(len(batch.order)).repeat(count)
    ids, mask, positions = whole.input_ids, whole.attention_mask, whole.position_ids
    caches, said, done = [None, None], [], torch.zeros(len(ids), dtype=torch.bool, device=ids.device)
    for _ in tqdm(range(max_new_tokens), desc="tokens", delay=2, leave=False):
        donors = {}
        if touched:
            with record(tuned, ["neurons"], touched) as seen:
                there = {key: x.to(tuned.device) for key, x in inputs.items()}
                caches[1] = body_of(tuned)(**there, **{CACHE: caches[1]}, use_cache=True)[CACHE]
            donors = seen["neurons"]
            if not said:  # from now on every set has a text of its own
                caches[1].batch_select_indices(copies)
        edits = [("neurons", layer, _give(x, chosen[:, layer], positions)) for layer, x in donors.items()]
        inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
        with edit(base, edits):
            out = base(**inputs, **{CACHE: caches[0]}, use_cache=True, logits_to_keep=LAST)
        caches[0] = out[CACHE]
        token = out.logits[:, -1].argmax(-1).masked_fill(done, pad_token_id(tokenizer))
        said.append(token)
        done = done | torch.isin(token, ends)
        if bool(done.all()):
            break
        ids, positions = token[:, None], positions[:, -1:] + 1
        mask = torch.cat([mask, torch.ones_like(ids)], -1)
        inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
    return torch.stack(said, 1)


def _give(donor: torch.Tensor, own: torch.Tensor, positions: torch.Tensor):
    """An edit that puts the donor's values, [row, position, d_mlp], into each set's own neurons [set, d_mlp], position 0 excepted.
    A donor of fewer rows serves every set."""

    def function(activation: torch.Tensor) -> torch.Tensor:
        members = own.repeat_interleave(len(activation) // len(own), 0).to(activation.device)
        given = members[:, None] & (positions > 0).to(activation.device)[..., None]
        wide = donor.to(activation).repeat(len(activation) // len(donor), 1, 1)
        return torch.where(given, wide, activation)

    return function
