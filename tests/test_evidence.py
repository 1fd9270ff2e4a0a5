"""What makes a member: tests and corrections against scipy's."""

import numpy as np
import pytest
from scipy.stats import false_discovery_control, permutation_test

from helpers.evidence import discoveries, sign_flip_p, verdicts


@pytest.mark.parametrize("pairs", [6, 10])
def test_sign_flips_agree_with_scipy(pairs):
    rng = np.random.default_rng(pairs)
    effects = rng.normal(0.4, 1, (5, pairs))
    for row, p in zip(effects, sign_flip_p(effects), strict=True):
        exact = permutation_test((row,), np.mean, permutation_type="samples", alternative="greater", n_resamples=np.inf)
        assert p == pytest.approx(exact.pvalue)


def test_many_pairs_are_drawn_and_nothing_is_never_zero():
    p = sign_flip_p(np.array([np.ones(30), -np.ones(30), np.tile([1.0, -1.0], 15)]))
    assert 0 < p[0] < 0.001 and p[1] == 1 and 0.3 < p[2] < 0.7


def test_discoveries_are_those_of_benjamini_and_hochberg():
    rng = np.random.default_rng(0)
    for _ in range(20):
        p = np.concatenate([rng.uniform(0, 0.02, 5), rng.uniform(0, 1, 20)])
        assert (discoveries(p, 0.1) == (false_discovery_control(p) <= 0.1)).all()
    assert discoveries([]).tolist() == []


def test_a_member_needs_all_three():
    rng = np.random.default_rng(1)
    strong, weak, noise = rng.normal(2, 0.2, 16), rng.normal(0.1, 0.02, 16), rng.normal(0, 1, 16)
    found = verdicts(np.array([strong, weak, noise, strong]), [0.5, 0.5, 0.5, 3.0])
    assert [v.member for v in found] == [True, False, False, False]  # weak and the last one: no more than the control
    assert found[0].low < found[0].effect < found[0].high
    assert verdicts(np.zeros((0, 4)), []) == []
    with pytest.raises(ValueError, match="1 candidates but 2 controls"):
        verdicts(np.ones((1, 4)), [0, 0])
