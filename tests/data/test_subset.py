"""A number of training images of each class, drawn by a seed of its own."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest

from jaxkd.data import (
    TrainPipeline,
    member_source,
    open_source,
    save_subset,
    subset_facts,
    subset_membership,
    take_member_subsets,
    take_subset,
)
from jaxkd.data.pipeline.train import AugmentConfig
from jaxkd.errors import ConfigError


@pytest.fixture(scope="module")
def digits():
    return open_source("embedded:digits", "train")


def test_each_class_has_the_same_number_and_records_are_those_of_the_whole(digits):
    subset = take_subset(digits, 20, 7)
    assert len(subset) == 200 and subset.class_counts.tolist() == [20] * 10
    assert subset.class_names == digits.class_names and subset.exif is digits.exif
    for i in (0, 57, 199):
        record = int(subset.records[i])
        assert subset.label(i) == digits.label(record) and subset.name(i) == digits.name(record)
        np.testing.assert_array_equal(np.asarray(subset.image(i)), np.asarray(digits.image(record)))
        assert subset.bytes(i) is None
    assert np.all(np.diff(subset.records) > 0)


def test_the_seed_decides_and_a_smaller_subset_lies_inside_a_larger_one(digits):
    small, large, other = (subset_membership(digits, *choice) for choice in ((5, 1), (50, 1), (5, 2)))
    assert small.sum() == 50 and large.sum() == 500 and other.sum() == 50
    assert np.all(large[small]) and not np.all(large[other])
    assert subset_membership(digits, 0, 3).all()
    assert take_subset(digits, 0, 3) is digits


def test_the_images_of_a_member_are_those_of_its_single_run(digits, tmp_path):
    choices = ((2, 0), (3, 1), (0, 0))
    for group in (choices[:2], choices, choices[:1] * 2, choices[2:]):
        together = take_member_subsets(digits, group)
        for index, choice in enumerate(group):
            own, single = member_source(together, index), take_subset(digits, *choice)
            assert subset_facts(own) == subset_facts(single) and (single is digits) == (own is digits)
    save_subset(member_source(take_member_subsets(digits, choices), 1), tmp_path / "subset.json")
    written = json.loads((tmp_path / "subset.json").read_text())
    assert [row[0] for row in written["records"]] == np.flatnonzero(subset_membership(digits, 3, 1)).tolist()


def test_a_class_with_fewer_images_is_named_with_its_number(folder):
    source = open_source(str(folder()), "train")
    assert take_subset(source, 4, 0).class_counts.tolist() == [4, 4]
    with pytest.raises(ConfigError, match=r'per_class=5 .* in 1 of its 2 classes: "dog" 4\. .* 4 or less'):
        take_subset(source, 5, 0, where="cats")


def test_a_folder_is_read_through_its_subset_by_workers_too(folder):
    source = open_source(str(folder()), "train")
    subset = pickle.loads(pickle.dumps(take_subset(source, 3, 1)))
    assert [subset.bytes(i) for i in range(6)] == [source.bytes(r) for r in subset.records.tolist()]
    options = {"batch_size": 2, "image_size": (8, 8), "seed": 0, "augment": AugmentConfig()}
    pipeline = TrainPipeline(subset, **options)
    assert pipeline.steps_per_epoch == 3
    assert sorted(np.concatenate([next(pipeline)["label"] for _ in range(3)]).tolist()) == [0, 0, 0, 1, 1, 1]


def test_facts_follow_the_images_and_not_their_folder(folder, tmp_path):
    root = folder()
    facts = subset_facts(take_subset(open_source(str(root), "train"), 2, 0))
    assert (facts["images"], facts["of"]) == (4, 9) and subset_facts(open_source(str(root), "train")) is None
    root.rename(tmp_path / "moved")
    moved = take_subset(open_source(str(tmp_path / "moved"), "train"), 2, 0)
    assert subset_facts(moved) == facts
    assert subset_facts(take_subset(open_source(str(tmp_path / "moved"), "train"), 2, 1)) != facts
    save_subset(moved, tmp_path / "subset.json")
    written = json.loads((tmp_path / "subset.json").read_text())
    assert written["sha256"] == facts["sha256"]
    assert written["records"] == [[int(r), moved.label(i), moved.name(i)] for i, r in enumerate(moved.records)]
