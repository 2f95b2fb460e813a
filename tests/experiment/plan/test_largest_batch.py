"""The search for the largest batch, with a made-up compiler."""

from __future__ import annotations

import pytest

from jaxkd.experiment.plan.hlo import Program
from jaxkd.experiment.plan.program import Compiled, TooLarge
from jaxkd.experiment.plan.search import MOST_COMPILATIONS, largest_batch


def compiler(fixed, per_image, room, tried, *, bend=0.0, says=True):
    """A function like `compile_experiment` whose memory is `fixed + per_image * batch`, a little bent."""

    def attempt(batch):
        tried.append(batch)
        temporary = int(per_image * batch * (1 + bend * batch))
        if fixed + temporary > room:
            return TooLarge(1.0, fixed + temporary if says else 0, room if says else 0)
        return Compiled(1.0, 0.0, 0.0, 0.0, fixed + temporary, temporary, fixed, Program(""))

    return attempt


@pytest.mark.parametrize("start", [8, 64, 480, 4096])
@pytest.mark.parametrize(("bend", "says"), [(0.0, True), (2e-4, True), (-1e-4, True), (0.0, False)])
def test_the_largest_batch_is_found_in_few_compilations(start, bend, says):
    tried, room = [], 16_000
    attempt = compiler(500, 20, room, tried, bend=bend, says=says)
    found = largest_batch(attempt, (start, attempt(start)), unit=8, room=room)
    one = compiler(500, 20, room, [], bend=bend)
    fits = [batch for batch in range(8, 4000, 8) if isinstance(one(batch), Compiled)]
    assert len(tried) <= MOST_COMPILATIONS and len(set(tried)) == len(tried)
    assert found.batch_size in fits and found.batch_size % 8 == 0
    if says or start <= max(fits):
        assert found.batch_size >= 0.85 * max(fits)
        assert found.full_at == pytest.approx(max(fits), rel=0.1) or start == found.batch_size
    assert {row["batch_size"] for row in found.tried} == set(tried)


@pytest.mark.parametrize("start", [8, 64, 128, 480])
def test_linear_memory_takes_three_compilations_that_keep_clear_of_the_limit(start):
    """Close to its limit or beyond it, a TPU's compiler takes many minutes."""
    tried, room = [], 16_000
    attempt = compiler(500, 20, room, tried)
    said = []
    found = largest_batch(attempt, (start, attempt(start)), unit=8, room=room, say=said.append)
    assert len(tried) == 3 and found.batch_size == max(tried) and found.full_at == 768
    assert max(row["peak_bytes"] for row in found.tried) <= 0.93 * room
    assert said == [f"search, compilation {i} of at most 6: batch {tried[i - 1]:,}" for i in (2, 3)]


def test_nothing_fits():
    tried = []
    attempt = compiler(50_000, 20, 16_000, tried)
    assert largest_batch(attempt, (64, attempt(64)), unit=8, room=16_000).batch_size is None
    assert len(tried) <= 3
