"""The ceiling of any decoder against golden values, adaptive quadrature and a simulation."""

from __future__ import annotations

import numpy as np
import pytest

from jaxkd.analysis import oracle_topk
from jaxkd.errors import ConfigError


def test_golden_values(golden):
    # The golden values are a Gauss-Hermite sum with 201 nodes, off by up to 1.4e-4 for 200 candidates: its value for no
    # signal, k = 25 of 200 is 0.12495 and not 0.125.
    for advantage, candidates, k, expected in golden("eeg_text")["oracle_a_N_k_p"]:
        assert oracle_topk(advantage, int(candidates), int(k)) == pytest.approx(expected, abs=2e-4)


@pytest.mark.parametrize(("candidates", "k"), [(1, 1), (24, 5), (200, 25), (1563, 25), (10, 12)])
def test_without_signal_it_is_chance(candidates, k):
    assert oracle_topk(0.0, candidates, k) == pytest.approx(min(k / candidates, 1.0), abs=1e-12)


def test_two_candidates_have_a_closed_form():
    from scipy.stats import norm

    for advantage in (0.5, 2.0, 7.0):  # the difference of two scores is N(advantage, 2)
        assert oracle_topk(advantage, 2, 1) == pytest.approx(norm.cdf(advantage / np.sqrt(2)), abs=1e-12)


def test_a_simulation_agrees():
    rng = np.random.default_rng(0)
    scores = rng.standard_normal((20_000, 50))
    scores[:, 0] += 1.5
    for k in (1, 5, 25):
        hit = ((scores[:, 1:] > scores[:, :1]).sum(1) < k).mean()
        assert oracle_topk(1.5, 50, k) == pytest.approx(hit, abs=4 * np.sqrt(hit * (1 - hit) / 20_000))


def test_what_is_no_question_is_refused():
    for wrong in ((-1.0, 10, 1), (1.0, 0, 1), (1.0, 10, 0), (float("nan"), 10, 1)):
        with pytest.raises(ConfigError, match="out of range"):
            oracle_topk(*wrong)
