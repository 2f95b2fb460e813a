"""Range, mean colour and bicubic skip of the super-resolution networks."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from random_weights import random_variables

from jaxkd import data, models, weights

MEAN = (0.4488, 0.4371, 0.4040)
NAMES = ["mdbn_x2", "mdbn_x3", "mdbn_x4", "edsr_x2"]  # each network and each factor of a step of enlargement


def build(name: str, **args):
    return models.create(name, num_feat=4, num_block=1, **args)


def picture(*size: int) -> np.ndarray:
    return np.random.default_rng(sum(size)).random((*size, 3), np.float32)


@pytest.mark.parametrize("name", NAMES)
def test_a_network_that_adds_nothing_gives_the_bicubic_enlargement(name):
    for args in ({}, {"img_range": 255.0, "rgb_mean": MEAN}, {"img_range": 1.0, "rgb_mean": (0.0, 0.0, 0.0)}):
        model = build(name, global_skip="bicubic", **args)
        zero = jax.tree.map(np.zeros_like, random_variables(model))
        # Each size compiles every operation anew, so of the networks of one scale the smallest gets all of them.
        for size in ((2, 3),) if name in ("mdbn_x2", "mdbn_x3", "mdbn_x4") else ((1, 1), (1, 7), (2, 3), (13, 9)):
            image = picture(*size)
            expected = data.imresize(image.astype(np.float64), model.scale)
            got = model.apply(zero, np.stack([image, 1 - image]))[0]
            np.testing.assert_allclose(got[0], expected, rtol=0, atol=1e-6)
            np.testing.assert_allclose(got[1], 1 - expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("name", NAMES)
def test_range_mean_and_skip_are_what_is_done_by_hand_around_the_plain_network(name):
    plain = build(name, img_range=1.0, rgb_mean=(0.0, 0.0, 0.0))
    variables, image = random_variables(plain), picture(6, 5)
    mean = np.asarray(MEAN, np.float32)
    inner = plain.apply(variables, ((image - mean) * 20)[None])[0][0] / 20
    got = build(name, img_range=20, rgb_mean=MEAN).apply(variables, image[None])[0][0]
    np.testing.assert_allclose(got, inner + mean, rtol=1e-5, atol=1e-5)
    skipping = build(name, img_range=20, rgb_mean=MEAN, global_skip="bicubic")
    got = skipping.apply(variables, image[None])[0][0]
    np.testing.assert_allclose(got, inner + data.imresize(image, plain.scale), rtol=1e-5, atol=1e-5)


def test_the_defaults_are_the_published_ones():
    for name in NAMES:
        model = models.create(name)
        published = (255.0, MEAN) if name.startswith("edsr") else (1.0, (0.0, 0.0, 0.0))
        assert (model.img_range, model.rgb_mean, model.global_skip) == (*published, "")


def test_without_range_mean_and_skip_nothing_is_computed_besides_the_convolutions():
    model = build("mdbn_x2")
    jaxpr = jax.make_jaxpr(lambda x: model.apply(random_variables(model), x)[0])(picture(4, 4)[None])
    assert not {"sub", "div", "concatenate"} & {equation.primitive.name for equation in jaxpr.eqns}


def test_range_mean_and_skip_stay_through_merging_and_files(tmp_path):
    args = {"img_range": 255.0, "rgb_mean": MEAN, "global_skip": "bicubic"}
    model = build("mdbn_x2", **args)
    variables, image = random_variables(model), picture(7, 6)[None]
    expected = model.apply(variables, image)[0]
    merged, merged_variables = weights.merge_branches(model, variables)
    np.testing.assert_allclose(merged.apply(merged_variables, image)[0], expected, rtol=1e-4, atol=1e-4)
    network = weights.build_network("mdbn_x2", {"num_feat": 4, "num_block": 1, **args})
    path = tmp_path / "m.safetensors"
    weights.save_safetensors(path, model, variables, metadata=weights.to_metadata(network))
    facts = weights.read_facts(path)
    again = models.create(facts.model, **facts.args)
    assert again == model
    np.testing.assert_array_equal(again.apply(weights.load(again, path), image)[0], expected)
