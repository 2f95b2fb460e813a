"""Batches of patches: aligned, turned alike, reproducible, resumable, the same for any number of workers and hosts."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from jaxkd.data import PatchConfig, PatchPipeline, Prefetcher, imresize, open_pairs
from jaxkd.errors import CheckpointError, ConfigError, DataError


@pytest.fixture
def images(tmp_path, picture):
    """tmp/set: seven images, PNG and JPEG, of 40 to 64 pixels a side."""
    root = tmp_path / "set"
    root.mkdir()
    for i in range(7):
        picture(40 + 4 * i, 64 - 3 * i, i).save(root / f"{i}.{'png' if i % 2 else 'jpg'}")
    return root


def pipeline(root, *, scale: int = 4, **kwargs) -> PatchPipeline:
    names = {k: kwargs.pop(k) for k in list(kwargs) if k in PatchConfig.__dataclass_fields__}
    options = {"batch_size": 4, "seed": 3, "config": PatchConfig(**{"size": 24, **names}), **kwargs}
    return PatchPipeline(open_pairs(str(root), scale), **options)


def take(batches, count: int) -> list[dict[str, np.ndarray]]:
    return [next(batches) for _ in range(count)]


def assert_same(a, b) -> None:
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        assert x.keys() == y.keys()
        for name in x:
            np.testing.assert_array_equal(x[name], y[name])


def turned(image: np.ndarray) -> list[np.ndarray]:
    """The eight symmetries of a square: four rotations, then those of the mirror image."""
    return [np.rot90(i, k) for i in (image, image[:, ::-1]) for k in range(4)]


def coordinates(root, count: int, height: int, width: int, scale: int) -> None:
    """Images whose LR pixels say where they are: red is the row, green the column, blue the number of the image."""
    for i in range(count):
        rows, columns = np.mgrid[:height, :width]
        lr = np.stack([rows, columns, np.full_like(rows, i)], -1).astype(np.uint8)
        for name in ("HR", "LR"):
            (root / name).mkdir(exist_ok=True)
        Image.fromarray(lr.repeat(scale, 0).repeat(scale, 1)).save(root / "HR" / f"{i:03d}.png")
        Image.fromarray(lr).save(root / "LR" / f"{i:03d}.png")


def test_batches_are_what_they_say(images):
    one = pipeline(images)
    batch = next(one)
    assert {k: (v.shape, v.dtype) for k, v in batch.items()} == {
        "hr": ((4, 24, 24, 3), np.uint8),
        "lr": ((4, 6, 6, 3), np.uint8),
        "mask": ((4,), bool),
    }
    assert batch["mask"].all() and one.steps_per_epoch == 1 and one.skipped == []


@pytest.mark.parametrize("cache_mb", [0, 256])
@pytest.mark.parametrize("scale", [2, 3, 4])
def test_both_patches_are_cut_at_one_place_and_turned_alike(images, scale, cache_mb):
    wholes = []
    for path in sorted(images.iterdir()):
        hr = np.asarray(Image.open(path).convert("RGB"))
        hr = hr[: hr.shape[0] // scale * scale, : hr.shape[1] // scale * scale]
        wholes.append((hr, imresize(hr, 1 / scale)))
    side, seen = 24 // scale, set()
    for batch in take(pipeline(images, scale=scale, visits=4, cache_mb=cache_mb), 7):
        for hr_patch, lr_patch in zip(batch["hr"], batch["lr"], strict=True):
            found = [
                (i, turn)
                for i, (hr, lr) in enumerate(wholes)
                for y in range(lr.shape[0] - side + 1)
                for x in range(lr.shape[1] - side + 1)
                for turn, small in enumerate(turned(lr[y : y + side, x : x + side]))
                if np.array_equal(small, lr_patch)
                and np.array_equal(turned(hr[scale * y : scale * y + 24, scale * x : scale * x + 24])[turn], hr_patch)
            ]
            assert len(found) == 1
            seen.add(found[0])
    assert len({i for i, _ in seen}) == 7 and len({turn for _, turn in seen}) >= 6  # of 28 draws of eight


@pytest.mark.parametrize("per_image", [1, 3])
def test_places_and_turns_are_uniform(tmp_path, per_image):
    """LR patches of 2 x 2 in images of 4 x 5: twelve places and eight turns, each as likely."""
    coordinates(tmp_path, 6, 4, 5, 2)
    source = open_pairs(f"{tmp_path}?lr=LR", 2)
    config = PatchConfig(size=4, per_image=per_image, visits=200)
    batches = PatchPipeline(source, batch_size=60, seed=0, config=config)
    lr = np.concatenate([next(batches)["lr"] for _ in range(batches.steps_per_epoch)]).astype(int)
    assert len(lr) == 6 * 200 * per_image
    assert (np.bincount(lr[:, 0, 0, 2]) == 200 * per_image).all()
    places = lr[..., 0].min((1, 2)) * 4 + lr[..., 1].min((1, 2))
    corner = lr[:, 0, 0, :2] - np.stack([lr[..., 0].min((1, 2)), lr[..., 1].min((1, 2))], -1)
    transposed = lr[:, 0, 1, 0] != lr[:, 0, 0, 0]
    turns = corner[:, 0] * 4 + corner[:, 1] * 2 + transposed
    for values, kinds in ((places, 12), (turns, 8)):
        counts = np.bincount(values)
        assert len(counts) == kinds
        expected = len(lr) / kinds
        assert ((counts - expected) ** 2 / expected).sum() < 3 * kinds  # chi-squared; its mean is kinds - 1


def test_flips_and_rotations_can_be_left_out(images):
    wholes = [np.asarray(p.lr) for p in open_pairs(str(images), 4)]

    def turns_of(**options) -> set[int]:
        return {
            turn
            for batch in take(pipeline(images, visits=2, **options), 3)
            for patch in batch["lr"]
            for lr in wholes
            for y in range(lr.shape[0] - 5)
            for x in range(lr.shape[1] - 5)
            for turn, small in enumerate(turned(lr[y : y + 6, x : x + 6]))
            if np.array_equal(small, patch)
        }

    assert turns_of(flips=False, rotations=False) == {0}
    assert turns_of(rotations=False) == {0, 4}
    assert turns_of(flips=False) <= {0, 1, 2, 3} and len(turns_of(flips=False)) > 1


def test_an_epoch_visits_every_image_as_often_and_every_visit_differs(tmp_path):
    coordinates(tmp_path, 5, 12, 12, 2)
    source = open_pairs(f"{tmp_path}?lr=LR", 2)
    config = PatchConfig(size=8, per_image=2, visits=6, rotations=False, flips=False)
    batches = PatchPipeline(source, batch_size=4, seed=1, config=config)
    assert batches.steps_per_epoch == 15
    epochs = []
    for _ in range(2):
        patches = np.concatenate([b["lr"] for b in take(batches, 15)])
        numbers = patches[:, 0, 0, 2]
        assert (np.bincount(numbers) == 12).all() and (numbers[0::2] == numbers[1::2]).all()
        epochs.append([p.tobytes() for p in patches])
        assert len(set(epochs[-1])) > 45  # of sixty; there are 405 patches
    assert epochs[0] != epochs[1]


def test_keeping_images_and_reading_parts_give_the_same_batches(images):
    for copies in (1, 2):
        options = {"visits": 3, "per_image": copies}
        assert_same(take(pipeline(images, **options), 12), take(pipeline(images, cache_mb=0, **options), 12))


def test_restarting_anywhere_continues_the_sequence(images):
    whole = take(pipeline(images, visits=2, per_image=2), 9)
    first = pipeline(images, visits=2, per_image=2)
    head = take(first, 4)
    state = json.loads(json.dumps(first.get_state()))
    second = pipeline(images, visits=2, per_image=2)
    second.set_state(state)
    assert_same(whole, head + take(second, 5))
    for changed in ({"size": 16}, {"visits": 3}, {"scale": 2}, {"seed": 4}, {"per_image": 1}):
        name, value = next(iter(changed.items()))
        other = pipeline(images, **{"visits": 2, "per_image": 2, **changed})
        with pytest.raises(CheckpointError, match=f"but now there is {name}={value}"):
            other.set_state(state)


def test_hosts_share_the_batches_of_one_host(images):
    options = {"batch_size": 8, "visits": 3, "per_image": 2}
    alone = pipeline(images, **options)
    hosts = [pipeline(images, host_index=i, host_count=2, **options) for i in range(2)]
    for _ in range(3):
        parts = [next(h) for h in hosts]
        assert_same([next(alone)], [{k: np.concatenate([p[k] for p in parts]) for k in parts[0]}])


@pytest.mark.slow
@pytest.mark.parametrize("cache_mb", [0, 256])
def test_worker_processes_change_nothing(images, cache_mb):
    (images / "3.png").write_bytes(b"no image")
    options = {"visits": 2, "per_image": 2, "cache_mb": cache_mb, "max_broken": 0.2}
    alone, many = pipeline(images, **options), pipeline(images, workers=2, **options)
    try:
        assert_same(take(alone, 8), take(many, 8))
        assert [*many.broken.found] == ["3"]
    finally:
        many.close()


def test_it_can_be_prefetched_like_any_other(images):
    whole = take(pipeline(images), 5)
    ahead = Prefetcher(pipeline(images))
    got = take(ahead, 2)
    assert ahead.get_state()["position"] == 2 and ahead.wait_seconds > 0
    ahead.close()
    rest = pipeline(images)
    rest.set_state(ahead.get_state())
    assert_same(whole, got + take(rest, 3))


@pytest.mark.parametrize("cache_mb", [0, 256])
def test_broken_images_are_masked_named_and_counted(images, caplog, cache_mb):
    damaged = images / "1.png"
    damaged.write_bytes(damaged.read_bytes()[:900])  # its header is in order
    (images / "2.jpg").write_bytes(b"")
    batches = pipeline(images, visits=4, per_image=2, max_broken=0.3, cache_mb=cache_mb)
    shown = take(batches, batches.steps_per_epoch)
    assert sum(int(b["mask"].sum()) for b in shown) == 5 * 4 * 2
    for batch in shown:
        for name in ("hr", "lr"):
            assert (batch[name][~batch["mask"]] == 0).all() and (batch[name][batch["mask"]].max((1, 2, 3)) > 0).all()
    assert sorted(batches.broken.found) == ["1", "2"] and len(caplog.records) == 2
    assert str(damaged) in caplog.text and "2.jpg" in caplog.text
    with pytest.raises(DataError, match="of 7 images cannot be read, more than the share data.max_broken=0.01"):
        take(pipeline(images, visits=4, cache_mb=cache_mb), 7)


def test_small_images_are_an_error_or_left_out(images, picture, caplog):
    picture(23, 90, 50).save(images / "3_flat.png")
    with pytest.raises(
        DataError,
        match="1 of 8 images are smaller than data.patches.size=24 in a.*3_flat.png.*Set data.patches.size to 20 or "
        'less, or data.patches.small="skip"',
    ):
        pipeline(images)
    batches = pipeline(images, small="skip", visits=4)
    assert batches.skipped == [str(images / "3_flat.png")] and "Left out: 1 images" in caplog.text
    names = {k: v for k, v in batches.get_state().items() if k != "broken"}
    assert names["records"] == 7
    assert all(b["mask"].all() for b in take(batches, 7))
    with pytest.raises(DataError, match="Give larger images"):
        pipeline(images, small="skip", size=200)


def test_an_image_that_shrinks_while_training_is_broken(images, picture):
    batches = pipeline(images, cache_mb=0, max_broken=1, visits=8)
    picture(12, 12).save(images / "1.png")
    take(batches, 14)
    assert "Do not change a data set while a run reads it" in batches.broken.found["1"]


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"size": 25}, ConfigError, "size=25 does not divide by the scale 4.*Give 24 or 28"),
        ({"size": 2}, ConfigError, "Give 4\\."),
        ({"size": 0}, ConfigError, "data.patches.size=0 is out of range"),
        ({"per_image": 3}, ConfigError, "does not divide the 4 patches of a batch.*Give one of: 1, 2, 4"),
        (
            {"per_image": 4, "host_count": 2},
            ConfigError,
            "the 2 patches of a batch of each host .train.batch_size=4",
        ),
        ({"visits": 0}, ConfigError, "data.patches.visits=0 is out of range"),
        ({"small": "skp"}, ConfigError, 'Did you mean "skip"'),
        ({"batch_size": 8}, DataError, "7 images, of which an epoch shows 7 patches.*Set data.patches.visits to 2 or"),
    ],
)
def test_what_cannot_be(images, options, error, words):
    with pytest.raises(error, match=words):
        pipeline(images, **options)
