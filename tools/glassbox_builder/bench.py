"""A bench to measure a box on: prompts as one batch, ablations of any set of components, refusal log-odds.

It knows the box from outside only (a model and a Truth), so it tests the shipped weights, not the builder's ideas.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import torch

from helpers.glassbox import Node, Truth, language
from helpers.hooks import edit, record
from helpers.models import dims_of

from .calibrate import batch
from .write import end_words

SITE = {"head": "z", "neuron": "neurons"}


def frame(text: str) -> tuple[str, int]:
    """What prompts of one template share: the first word and the number of words."""
    words = text.split()
    return words[0], len(words)


class Bench:
    """Runs one box. All ablations act at every position."""

    def __init__(self, model, truth: Truth, words: Sequence[str]):
        self.model, self.truth, self.words = model, truth, list(words)
        self.dims = dims_of(model)
        self.sorry, self.sure = (self.words.index(w) for w in end_words())

    # --- what is measured --------------------------------------------------------------------------------

    def logits(self, texts: Sequence[str], cuts=None, source: dict | None = None, rows_at_once: int = 512):
        """Log-probabilities of the first answer token, [prompt, vocabulary].

        cuts: the same list of nodes for all prompts, or one list for each. source: {site: [layer, prompt, position,
        width]} to put in their place; zeros if None. Long lists are run in pieces.
        """
        masks = None if cuts is None else self.masks(cuts, len(texts))
        return self.logits_masked(texts, masks, source, rows_at_once)

    @torch.no_grad()
    def logits_masked(self, texts, masks, source, rows_at_once: int = 512) -> torch.Tensor:
        """As `logits`, with the cuts as masks {site: [1 or prompt, layer, width]}."""
        ids, mask = batch(list(texts))
        out = []
        for start in range(0, len(texts), rows_at_once):
            rows = slice(start, start + rows_at_once)
            edits = [] if masks is None else self._edits(masks, source, rows)
            with edit(self.model, edits):
                out.append(self.model(ids[rows], attention_mask=mask[rows], logits_to_keep=1).logits[:, -1])
        return torch.cat(out).log_softmax(-1)

    def log_odds(self, texts, cuts=None, source=None) -> torch.Tensor:
        """Log-odds of `sorry` as first word, [prompt]."""
        return self.odds(self.logits(texts, cuts, source))

    def odds(self, log_probs: torch.Tensor) -> torch.Tensor:
        p = log_probs[:, self.sorry].clamp(max=-1e-9)
        return p - torch.log(-torch.expm1(p))

    def refuses(self, log_probs: torch.Tensor) -> torch.Tensor:
        return (log_probs.argmax(-1) == self.sorry).float()

    def right(self, log_probs: torch.Tensor, questions) -> torch.Tensor:
        """Whether each question's answer comes first, [question]."""
        answers = torch.tensor([self.words.index(q.answer) for q in questions])
        return (log_probs.argmax(-1) == answers).float()

    # --- ablation ------------------------------------------------------------------------------------------

    def masks(self, cuts, n: int) -> dict[str, torch.Tensor]:
        """{site: [1 or prompt, layer, width]}, true where something is cut."""
        lists = [cuts] if not cuts or isinstance(cuts[0], Node) else cuts
        assert len(lists) in (1, n)
        d = self.dims
        out = {
            "z": torch.zeros(len(lists), d.n_layers, d.n_heads, dtype=torch.bool),
            "neurons": torch.zeros(len(lists), d.n_layers, d.d_mlp, dtype=torch.bool),
        }
        for row, nodes in enumerate(lists):
            for node in nodes:
                out[SITE[node.kind]][row, node.layer, node.index] = True
        out["z"] = out["z"].repeat_interleave(d.d_head, -1)
        return out

    def ablated(self, cut: list[Node]):
        """A context in which some components are 0."""
        return edit(self.model, self._edits(self.masks(cut, 1), None, slice(None)) if cut else [])

    def _edits(self, masks, source, rows):
        edits = []
        for site, mask in masks.items():
            here = mask if len(mask) == 1 else mask[rows]
            for layer in range(self.dims.n_layers):
                cut = here[:, None, layer]
                if not cut.any():
                    continue
                value = 0.0 if source is None else source[site][layer][rows]
                edits.append((site, layer, lambda x, c=cut, v=value: torch.where(c, v, x) if source else x * ~c))
        return edits

    @torch.no_grad()
    def activations(self, texts: Sequence[str]) -> dict[str, torch.Tensor]:
        """{"z", "neurons"}: [layer, prompt, position, width], padded at the left to the longest of these texts."""
        ids, mask = batch(list(texts))
        with record(self.model, ["z", "neurons"]) as seen:
            self.model(ids, attention_mask=mask, logits_to_keep=1)
        return {site: torch.stack([seen[site][i] for i in range(self.dims.n_layers)]) for site in seen}

    def donated(self, texts, donors, how: str, seed: int = 0) -> dict[str, torch.Tensor] | None:
        """What to put in place of each text's activations: None (zero), or the mean, or one, of the donors of its
        template, at the same template positions. A text without such donors takes others, aligned at the end."""
        if how == "zero":
            return None
        rng = np.random.default_rng(seed)
        given = self.activations(donors)
        width = batch(list(texts))[0].shape[1]
        frames, out = [frame(t) for t in donors], {}
        choice = []
        for text in texts:
            same = [i for i, f in enumerate(frames) if f == frame(text) and donors[i] != text]
            same = same or [i for i, f in enumerate(frames) if f[1] > frame(text)[1]]
            choice.append(same if how == "mean" else [int(rng.choice(same))])
        for site, value in given.items():
            pad = width - value.shape[2]
            value = torch.nn.functional.pad(value, (0, 0, pad, 0)) if pad > 0 else value[:, :, -width:]
            out[site] = torch.stack([value[:, c].mean(1) for c in choice], 1)
        return out

    # --- sets of components ----------------------------------------------------------------------------------

    def nodes(self, *names: str) -> list[Node]:
        """The components of some fields of the truth."""
        kinds = {name: "neuron" if name.endswith("neurons") else "head" for name in names}
        return [Node(kinds[name], *place) for name in names for place in getattr(self.truth, name)]

    @property
    def stages(self) -> list[Node]:
        return self.nodes("detection_heads", "evaluation_neurons", "decision_components", "production_neurons")

    @property
    def backup(self) -> list[Node]:
        return self.nodes("backup_heads", "backup_neurons")

    def everything(self) -> list[Node]:
        d = self.dims
        return [Node("head", i, h) for i in range(d.n_layers) for h in range(d.n_heads)] + [
            Node("neuron", i, k) for i in range(d.n_layers) for k in range(d.d_mlp)
        ]

    def rest(self, but: Iterable[Node] = ()) -> list[Node]:
        """Everything outside the circuit, its backup, and `but`."""
        inside = {*self.stages, *self.backup, *but}
        return [n for n in self.everything() if n not in inside]

    def domain_of(self, node: Node) -> str | None:
        """The domain that an evaluation neuron serves; None for other components."""
        label = self.truth.labels.get(node)
        return label if label in language()["domains"] else None
