"""Which record comes when, with and without repeated augmentation, against timm's sampler."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest

from jaxkd.data.pipeline.sampler import EpochSampler, record_rng
from jaxkd.errors import ConfigError, DataError


def epoch_of(sampler: EpochSampler, epoch: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """All (records, copies) of an epoch."""
    steps = sampler.steps_per_epoch
    batches = [sampler.batch(epoch * steps + i) for i in range(steps)]
    assert {e for e, _, _ in batches} == {epoch}
    return np.concatenate([r for _, r, _ in batches]), np.concatenate([c for _, _, c in batches])


def by_appearance(records) -> list[int]:
    """Names records 0, 1, 2, ... in the order in which they first come, so that two shuffles can be compared."""
    names: dict[int, int] = {}
    return [names.setdefault(int(r), len(names)) for r in records]


def test_without_repeats_an_epoch_has_every_record_once_but_for_the_last_batch():
    sampler = EpochSampler(records=263, batch_size=5, seed=0)
    assert sampler.steps_per_epoch == 52  # not cut to a multiple of 256
    orders = []
    for epoch in range(3):
        records, copies = epoch_of(sampler, epoch)
        assert len(set(records.tolist())) == 260 and records.min() >= 0 and records.max() < 263
        assert not copies.any()
        orders.append(tuple(records))
    assert len(set(orders)) == 3


def test_with_repeats_copies_are_neighbours_and_numbered():
    records, copies = epoch_of(EpochSampler(records=600, batch_size=8, seed=0, repeats=3))
    assert len(records) == 512  # floor(600 / 256) * 256
    np.testing.assert_array_equal(copies, np.arange(512) % 3)
    np.testing.assert_array_equal(by_appearance(records), np.arange(512) // 3)
    assert sorted(Counter(records.tolist()).values()) == [2] + [3] * 170


def test_another_epoch_shows_another_third():
    sampler = EpochSampler(records=768, batch_size=8, seed=0, repeats=3)
    first, second = (set(epoch_of(sampler, e)[0].tolist()) for e in (0, 1))
    assert len(first) == len(second) == 256
    assert 60 < len(first & second) < 115  # a third of a third of 768 is 85


def test_imagenet_has_the_published_epoch():
    sampler = EpochSampler(1_281_167, 512, seed=0, repeats=3)
    assert sampler.steps_per_epoch == 2502 and sampler.steps_per_epoch * 512 == 1_281_024
    # 2,048 does not divide the epoch: DeiT's drop_last loses the half batch as well
    assert EpochSampler(1_281_167, 2048, seed=0, repeats=3).steps_per_epoch == 625
    records, _ = epoch_of(sampler)
    assert len(np.unique(records)) == 427_008


@pytest.mark.parametrize(("hosts", "repeats"), [(4, 1), (4, 3), (2, 3)])
def test_hosts_share_the_batches_of_one_host(hosts, repeats):
    alone = EpochSampler(300, 8, seed=5, repeats=repeats)
    shares = [EpochSampler(300, 8, seed=5, host_index=i, host_count=hosts, repeats=repeats) for i in range(hosts)]
    assert {s.steps_per_epoch for s in shares} == {alone.steps_per_epoch}
    for position in (0, 3, alone.steps_per_epoch + 7):
        parts = [s.batch(position) for s in shares]
        assert all(len(p[1]) == 8 // hosts for p in parts)
        for i in (1, 2):
            np.testing.assert_array_equal(np.concatenate([p[i] for p in parts]), alone.batch(position)[i])


def test_any_position_can_be_gone_to():
    walked, jumped = (EpochSampler(300, 8, seed=5, repeats=3) for _ in range(2))
    sequence = [walked.batch(i) for i in range(70)]
    for position in (69, 2, 33, 32, 31):
        for a, b in zip(sequence[position], jumped.batch(position), strict=True):
            np.testing.assert_array_equal(a, b)


def test_views_repeat_whole_epochs():
    plain, views = (EpochSampler(records=300, batch_size=8, seed=0, repeats=3, views=v) for v in (0, 2))
    for epoch, again in ((0, 0), (1, 1), (2, 0), (5, 1)):
        for step in (0, 13):
            expected = plain.batch(again * plain.steps_per_epoch + step)
            found = views.batch(epoch * plain.steps_per_epoch + step)
            assert found[0] == again
            np.testing.assert_array_equal(found[1:], expected[1:])


def test_the_seed_makes_the_order():
    a, b, c = (epoch_of(EpochSampler(300, 5, seed=s, repeats=3))[0] for s in (0, 0, 1))
    np.testing.assert_array_equal(a, b)
    assert (a != c).mean() > 0.9


def test_every_copy_has_random_numbers_of_its_own():
    draws = {
        key: record_rng(*key).integers(1 << 62)
        for key in [(s, e, r, c) for s in (0, 1) for e in (0, 1) for r in (0, 7) for c in (0, 1, 2)]
    }
    assert len(set(draws.values())) == 24
    assert record_rng(0, 1, 7, 2).integers(1 << 62) == draws[(0, 1, 7, 2)]


@pytest.mark.parametrize("repeats", [0, -1, 1.5])
def test_a_number_of_copies_that_is_none_is_refused(repeats):
    with pytest.raises(ConfigError, match=rf"data.repeats={repeats} is not a number of copies.*Give 1 for none, or 3"):
        EpochSampler(300, 8, seed=0, repeats=repeats)


def test_a_split_smaller_than_a_batch_is_refused():
    with pytest.raises(DataError, match="has 3 images, which is less than train.batch_size=8"):
        EpochSampler(3, 8, seed=0)
    with pytest.raises(
        DataError, match=r"300 images, of which data.repeats=3 leaves 256 samples.*batch_size to 256 or less"
    ):
        EpochSampler(300, 260, seed=0, repeats=3)
    assert EpochSampler(300, 260, seed=0).steps_per_epoch == 1


@pytest.mark.parity
@pytest.mark.parametrize("records", [1, 90, 255, 256, 600, 5000])
@pytest.mark.parametrize("repeats", [2, 3])
def test_one_process_of_timm_has_the_same_epoch(timm, records, repeats):
    from timm.data.distributed_sampler import RepeatAugSampler

    theirs = list(RepeatAugSampler(range(records), num_replicas=1, rank=0, num_repeats=repeats))
    ours, _ = epoch_of(EpochSampler(records, 1, seed=0, repeats=repeats))
    assert len(ours) == len(theirs)
    assert Counter(Counter(ours.tolist()).values()) == Counter(Counter(theirs).values())
    assert by_appearance(ours) == by_appearance(theirs)


@pytest.mark.parity
@pytest.mark.parametrize("world", [2, 3, 8])
def test_many_processes_of_timm_have_the_same_global_batches(timm, world):
    from timm.data.distributed_sampler import RepeatAugSampler

    share = 5
    ranks = [list(RepeatAugSampler(range(700), num_replicas=world, rank=r)) for r in range(world)]
    steps = len(ranks[0]) // share  # drop_last
    sampler = EpochSampler(700, share * world, seed=0, repeats=3)
    assert sampler.steps_per_epoch == steps == math.floor(512 / (share * world))
    ours, _ = epoch_of(sampler)
    dealt = np.array([rank[: steps * share] for rank in ranks])  # (world, steps * share): what each GPU sees
    np.testing.assert_array_equal(by_appearance(ours), by_appearance(dealt.T.ravel()))
