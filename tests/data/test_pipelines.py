"""The sequence of batches: complete, reproducible, resumable, the same for any number of workers and hosts."""

from __future__ import annotations

import numpy as np
import pytest

from jaxkd.data import AugmentConfig, EvalBatches, EvalPreprocess, Prefetcher, TrainPipeline, open_source
from jaxkd.data.pipeline.sampler import EpochSampler
from jaxkd.errors import CheckpointError, DataError


def pipeline(root, **kwargs) -> TrainPipeline:
    options = {"batch_size": 4, "image_size": (12, 16), "seed": 3, "augment": AugmentConfig(), **kwargs}
    return TrainPipeline(open_source(str(root), "train"), **options)


def take(batches, count: int) -> list[dict[str, np.ndarray]]:
    return [next(batches) for _ in range(count)]


def assert_same(a, b) -> None:
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        np.testing.assert_array_equal(x["image"], y["image"])
        np.testing.assert_array_equal(x["label"], y["label"])


def test_an_epoch_has_no_record_twice_and_every_epoch_another_order():
    sampler = EpochSampler(records=23, batch_size=5, seed=0)
    assert sampler.steps_per_epoch == 4
    orders = []
    for epoch in range(3):
        batches = [sampler.batch(4 * epoch + i) for i in range(4)]
        assert {e for e, _, _ in batches} == {epoch}
        records = np.concatenate([r for _, r, _ in batches])
        assert len(set(records.tolist())) == 20 and records.min() >= 0 and records.max() < 23
        orders.append(tuple(records))
    assert len(set(orders)) == 3
    assert (EpochSampler(23, 5, seed=1).batch(0)[1] != EpochSampler(23, 5, seed=0).batch(0)[1]).any()


def test_hosts_share_the_batches_of_one_host():
    alone = EpochSampler(40, 8, seed=5)
    hosts = [EpochSampler(40, 8, seed=5, host_index=i, host_count=4) for i in range(4)]
    for position in (0, 3, 7):
        parts = [h.batch(position)[1] for h in hosts]
        assert all(len(p) == 2 for p in parts)
        np.testing.assert_array_equal(np.concatenate(parts), alone.batch(position)[1])


def test_a_split_smaller_than_a_batch_is_refused():
    with pytest.raises(DataError, match="has 3 images, which is less than train.batch_size=8"):
        EpochSampler(3, 8, seed=0)


def test_batches_are_what_they_say(folder):
    batch = next(pipeline(folder()))
    assert batch["image"].shape == (4, 12, 16, 3) and batch["image"].dtype == np.uint8
    assert batch["label"].dtype == np.int32 and set(batch["label"].tolist()) <= {0, 1}


def test_restarting_anywhere_continues_the_sequence(folder):
    root = folder()
    whole = take(pipeline(root), 7)
    first = pipeline(root)
    head = take(first, 3)
    second = pipeline(root)
    second.set_state(first.get_state())
    assert_same(whole, head + take(second, 4))
    assert second.get_state()["position"] == 7


def test_a_position_in_other_data_is_refused(folder):
    root = folder()
    state = pipeline(root).get_state()
    with pytest.raises(CheckpointError, match="batch_size=4, but now there is batch_size=2"):
        pipeline(root, batch_size=2).set_state(state)


@pytest.mark.slow
def test_worker_processes_change_nothing(folder):
    root = folder()
    alone, many = pipeline(root), pipeline(root, workers=2)
    try:
        assert_same(take(alone, 5), take(many, 5))
        third = pipeline(root, workers=1)
        third.set_state(many.get_state())
        assert_same(take(alone, 2), take(third, 2))
        third.close()
    finally:
        many.close()


@pytest.mark.slow
def test_a_broken_image_in_a_worker_is_our_error(folder):
    root = folder()
    for path in (root / "train" / "cat").iterdir():
        path.write_text("no image")
    many = pipeline(root, workers=1)
    try:
        with pytest.raises(DataError, match="more than the share data.max_broken=0.01.*cannot be read as an image"):
            take(many, 3)
    finally:
        many.close()


def test_the_prefetcher_counts_what_was_consumed(folder):
    root = folder()
    whole = take(pipeline(root), 5)
    ahead = Prefetcher(pipeline(root), depth=3)
    got = take(ahead, 2)
    assert ahead.get_state()["position"] == 2
    ahead.close()
    rest = pipeline(root)
    rest.set_state(ahead.get_state())
    assert_same(whole, got + take(rest, 3))
    assert ahead.wait_seconds > 0


def test_the_prefetcher_passes_errors_on(folder):
    root = folder()
    for path in (root / "train" / "cat").iterdir():
        path.write_text("no image")
    ahead = Prefetcher(pipeline(root))
    with pytest.raises(DataError):
        take(ahead, 3)
    with pytest.raises(DataError):
        next(ahead)
    ahead.close()


@pytest.mark.parametrize(("batch_size", "hosts"), [(3, 1), (4, 2), (8, 1), (8, 4)])
def test_evaluation_shows_every_image_once(folder, batch_size, hosts):
    root = folder()
    source = open_source(str(root), "train")
    preprocess = EvalPreprocess((10, 10), 1.0, "bilinear")
    parts = [
        list(EvalBatches(source, preprocess, batch_size=batch_size, host_index=i, host_count=hosts))
        for i in range(hosts)
    ]
    assert len({len(p) for p in parts}) == 1 and len(parts[0]) == -(-9 // batch_size)
    batches = [{k: np.concatenate([p[n][k] for p in parts]) for k in parts[0][n]} for n in range(len(parts[0]))]
    assert all(len(b["mask"]) == batch_size for b in batches)
    shown = {k: np.concatenate([b[k][b["mask"]] for b in batches]) for k in ("image", "label")}
    np.testing.assert_array_equal(shown["label"], [source.label(i) for i in range(9)])
    np.testing.assert_array_equal(shown["image"], np.stack([preprocess(source.image(i)) for i in range(9)]))
    assert all((b["image"][~b["mask"]] == 0).all() for b in batches)


def test_evaluation_may_be_run_again_and_stopped_halfway(folder):
    batches = EvalBatches(open_source(str(folder()), "val"), EvalPreprocess((8, 8), 0.9, "bicubic"), batch_size=1)
    first = [b["image"] for b in batches]
    for _ in batches:
        break
    np.testing.assert_array_equal(first, [b["image"] for b in batches])


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_broken_images_are_skipped_named_and_counted(folder, caplog, workers):
    root = folder()
    bad = root / "train" / "cat" / "2.jpg"
    bad.write_text("no image")
    batches = pipeline(root, batch_size=3, workers=workers, max_broken=0.2)
    shown = take(batches, 6)
    batches.close()
    assert sum(int(b["mask"].sum()) for b in shown) == 16  # two epochs of nine, of which one is broken
    for batch in shown:
        assert (batch["image"][~batch["mask"]] == 0).all() and batch["image"][batch["mask"]].max() > 0
    assert [*batches.broken.found.values()] == [r.getMessage().removeprefix("Skipped. ") for r in caplog.records]
    assert str(bad) in batches.get_state()["broken"]["2"] and len(caplog.records) == 1
    again = pipeline(root, batch_size=3, max_broken=0.2)
    again.set_state(batches.get_state())
    assert again.broken.found == batches.broken.found


def test_evaluation_masks_and_names_broken_images(folder, caplog):
    root = folder()
    bad = root / "val" / "cat" / "1.png"
    bad.write_bytes(bad.read_bytes()[:200])
    source = open_source(str(root), "val")
    preprocess = EvalPreprocess((8, 8), 0.9, "bicubic")
    batches = EvalBatches(source, preprocess, batch_size=3, max_broken=0.5)
    masks = np.concatenate([b["mask"] for b in batches])
    assert masks.tolist() == [True, False, True, True, False, False]
    assert str(bad) in caplog.text
    with pytest.raises(DataError, match=f"1 of 4 images cannot be read.*{bad}"):
        list(EvalBatches(source, preprocess, batch_size=3))


def test_repeats_show_an_image_several_times_with_different_crops(folder):
    root = folder()
    batch = next(pipeline(root, batch_size=6, repeats=3))
    first, second = batch["image"][:3], batch["image"][3:]
    assert len({i.tobytes() for i in batch["image"]}) == 6
    assert len(set(batch["label"][:3].tolist())) == len(set(batch["label"][3:].tolist())) == 1
    assert first.shape == second.shape
