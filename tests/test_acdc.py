"""The search for a circuit, against the boxes' wiring and against a search that recomputes everything."""

import numpy as np
import pytest
from naive_twins import twins_of
from sklearn.metrics import roc_auc_score
from sklearn.metrics import roc_curve as sklearn_curve

from helpers.acdc import find_circuit, rates, roc_auc, roc_curve
from helpers.glassbox import glassbox_prompts, load_glassbox
from helpers.glassbox_truth import INPUT, OUTPUT, Node
from helpers.twins import Twins
from helpers.wiring import Wiring, acts_at


def box_wiring(kind: str):
    model, tokenizer, truth = load_glassbox(kind)
    pairs = glassbox_prompts("pairs", n=12, split="train") + glassbox_prompts(
        "pairs", n=4, split="train", changed="permit"
    )
    return Wiring(Twins(model, tokenizer, pairs)), truth


@pytest.mark.parametrize("kind", ["concentrated", "entangled", "distributed"])
def test_the_search_finds_the_box_s_wiring(kind):
    wiring, truth = box_wiring(kind)
    found = find_circuit(wiring, 0.3)
    wrong, right = rates(found.edges, truth.coarse_edges(), wiring.edges)
    assert wrong < 0.01 and right > 0.9
    assert found.odds == pytest.approx(wiring.odds(found.edges), abs=1e-3)  # what it kept in memory, computed anew
    assert found.odds.mean() > 0.8 * wiring.twins.odds().mean()


def test_a_backup_is_cut_since_nobody_misses_it():
    wiring, truth = box_wiring("redundant")
    found = find_circuit(wiring, 0.3)
    spare = {Node("head", *p) for p in truth.backup_heads}
    kept = {n for n in found.nodes if n in spare}
    assert kept < spare  # not all of the second path


@pytest.mark.parametrize("measure", ["log_odds", "kl"])
def test_it_cuts_as_a_search_that_recomputes_everything(measure):
    """Conmy et al. 2023, algorithm 1, by the book: from the output backwards, each cut judged by a run from scratch."""
    twins = twins_of("llama")
    nodes = [Node("head", 0, 1), Node("mlp", 0, 0), Node("head", 1, 2), Node("head", 2, 0), Node("mlp", 2, 0)]
    wiring, threshold = Wiring(twins, nodes), 0.01
    full = twins.logits().log_softmax(-1)

    def loss(kept) -> float:
        if measure == "log_odds":
            return -wiring.odds(kept).mean()
        here = wiring.run(kept).log_softmax(-1)
        return float((full.exp() * (full - here)).sum(-1).mean())

    kept = set(wiring.edges)
    for target in [OUTPUT, *sorted(nodes, key=acts_at, reverse=True)]:
        if target != OUTPUT and not any(a == target for a, _ in kept):
            kept -= {(a, b) for a, b in kept if b == target}
        for source in [*sorted(nodes, key=acts_at, reverse=True), INPUT]:
            if (source, target) in kept and loss(kept - {(source, target)}) - loss(kept) < threshold:
                kept -= {(source, target)}
    found = find_circuit(wiring, threshold, measure)
    assert found.edges == kept and 0 < len(kept) < len(wiring.edges)
    assert INPUT not in found.nodes and OUTPUT not in found.nodes


def test_a_higher_threshold_keeps_less_and_zero_keeps_what_matters():
    wiring, _ = box_wiring("concentrated")
    sizes = [len(find_circuit(wiring, t, start=wiring.edges).edges) for t in (0.02, 0.3, 100)]
    assert sizes[0] >= sizes[1] > sizes[2] == 0


def test_progress_is_told_and_a_start_is_kept_to():
    wiring, truth = box_wiring("concentrated")
    start = [e for e in wiring.edges if e in truth.coarse_edges()]
    told = []
    found = find_circuit(wiring, 0.3, start=start, each=lambda done, total: told.append((done, total)))
    assert found.edges <= set(start) and told == sorted(told) and told[-1][0] <= told[-1][1] == len(start)


def test_curves_agree_with_scikit_learn():
    rng = np.random.default_rng(0)
    scores = {(INPUT, Node("head", i, 0)): float(np.round(rng.normal(), 1)) for i in range(60)}
    true = {e for e in scores if rng.random() < 0.3 + 0.3 * (scores[e] > 0)}
    labels = [e in true for e in scores]
    assert roc_auc(scores, true) == pytest.approx(roc_auc_score(labels, list(scores.values())))
    apart = {e: v + 1e-6 * i for i, (e, v) in enumerate(scores.items())}  # without ties the curves are the same
    mine, theirs = roc_curve(apart, true), sklearn_curve(labels, list(apart.values()), drop_intermediate=False)
    assert np.allclose(mine, theirs[:2])
    with pytest.raises(ValueError, match="edges that are true and edges that are not"):
        roc_auc(scores, set())
    with pytest.raises(ValueError, match="edges that are true and edges that are not"):
        roc_curve(scores, set(scores))


def test_bad_input_gets_one_sentence():
    wiring = Wiring(twins_of("llama"), [Node("head", 0, 1)])
    with pytest.raises(ValueError, match="There is no measure 'keywords'"):
        find_circuit(wiring, 0.1, "keywords")
    for threshold in (-1, float("nan")):
        with pytest.raises(ValueError, match="0 or more"):
            find_circuit(wiring, threshold)
