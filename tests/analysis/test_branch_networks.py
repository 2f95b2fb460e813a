"""Branches of networks over images of several sizes: the taps that are read, the crops, the untrained control."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from jaxkd import models, weights
from jaxkd.analysis.branches import branch_statistics, summarise_branches
from jaxkd.analysis.pipeline.branches import BranchNetwork, analyse_branches, common_crops, untrained
from jaxkd.errors import ConfigError, ShapeError

RNG = np.random.default_rng(0)
IMAGES = [RNG.integers(0, 256, shape).astype(np.uint8) for shape in ((12, 9, 3), (8, 14, 3), (10, 10))]


def network(name: str, **kwargs) -> BranchNetwork:
    model = models.create(name, num_feat=4, **{"num_block": 2, **kwargs})
    return untrained(BranchNetwork(name, model, None), seed=1)


def test_mdbn_and_its_control_over_images_of_several_sizes():
    mdbn, edsr = network("mdbn_x2"), network("edsr_x4", num_block=11)
    seen = []
    results = analyse_branches([mdbn, edsr], IMAGES, source="noise", progress=lambda *a: seen.append(a))
    assert results["settings"]["images"] == 3 and results["settings"]["crop"] == [8, 9]
    one, two = results["networks"]
    assert (one["label"], one["weights"], one["scale"]) == ("mdbn_x2, untrained", "random, seed 1", 2)
    assert [len(b["pairs"]) for b in one["blocks"]] == [2, 2] and all(b["output"] for b in one["blocks"])
    assert all(0 < b["differentiation"]["mean"] < 0.5 for b in one["blocks"])
    assert [b["block"] for b in two["blocks"]] == [f"block_{i}" for i in range(11)], "not in the order of depth"
    assert all(b["differentiation"] is None and b["output"] for b in two["blocks"])
    assert seen[-1] == ("edsr_x4, untrained", "branches", 3, 3)
    # the same as the taps of the network on the crops in [0, 1], all at once
    batch = np.stack(common_crops(IMAGES)).astype(np.float32) / 255
    _, features = mdbn.model.apply(mdbn.variables, batch, taps=mdbn.model.tap_names())
    statistics = {name: branch_statistics(maps) for name, maps in features.items()}
    expected = summarise_branches([statistics])["blocks"][1]["pairs"][0]["deep"]
    np.testing.assert_allclose(
        one["blocks"][1]["pairs"][0]["deep"]["distribution"], expected["distribution"], atol=1e-5
    )


def test_a_merged_network_has_the_same_branches():
    plain = network("mdbn_x2", num_block=1)
    model, variables = weights.merge_branches(plain.model, plain.variables)
    both = [plain, BranchNetwork("merged", model, variables)]
    one, two = (n["blocks"][0] for n in analyse_branches(both, IMAGES[:1])["networks"])
    assert one["differentiation"]["mean"] == pytest.approx(two["differentiation"]["mean"], abs=1e-5)


def test_the_untrained_control_keeps_the_network_and_changes_the_weights():
    start = network("mdbn_x2")
    again, other = untrained(start, seed=1), untrained(start, seed=2)
    assert again.model is start.model
    jax.tree.map(np.testing.assert_array_equal, again.variables, start.variables)
    kernels = [n.variables["params"]["conv_first"]["kernel"] for n in (start, other)]
    assert not np.array_equal(*kernels)


def test_crops_are_the_middles():
    image = np.arange(7 * 9, dtype=np.uint8).reshape(7, 9)
    (crop, _) = common_crops([image, np.zeros((5, 5, 3), np.uint8)])
    np.testing.assert_array_equal(crop, np.repeat(image[1:6, 2:7, None], 3, axis=-1))
    assert common_crops([image], side=4)[0].shape == (4, 4, 3)


def test_what_is_refused():
    mdbn = network("mdbn_x2", num_block=1)
    with pytest.raises(ShapeError, match="There are no images"):
        analyse_branches([mdbn], [])
    with pytest.raises(ShapeError, match=r"Image 1 is an array of shape \(3, 9, 3\) and type uint8"):
        analyse_branches([mdbn], [IMAGES[0], IMAGES[0][:3]])
    with pytest.raises(ShapeError, match="type float32"):
        analyse_branches([mdbn], [IMAGES[0].astype(np.float32)])
    with pytest.raises(ShapeError, match="crop of 2 pixels"):
        common_crops(IMAGES, side=2)
    with pytest.raises(ConfigError, match="label of its own"):
        analyse_branches([mdbn, mdbn], IMAGES)
    deit = models.create("deit_tiny_patch16_224", img_size=32, embed_dim=24, depth=1, num_heads=2)
    with pytest.raises(ConfigError, match='"d" is a VisionTransformer'):
        analyse_branches([BranchNetwork("d", deit, {})], IMAGES)
