"""Merged convolutions: the same outputs and taps, back again bit for bit, and used only where they are faster."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_weights import random_variables

from jaxkd import models, weights
from jaxkd.errors import ConfigError
from jaxkd.weights import merging

IMAGE = jnp.asarray(np.random.default_rng(1).uniform(size=(2, 7, 6, 3)), jnp.float32)


@pytest.fixture
def network():
    """A small MDBN and its variables."""
    model = models.create("mdbn_x3", num_feat=5, num_block=2)
    return model, random_variables(model)


def test_output_and_taps_stay_what_they_were(network):
    model, variables = network
    merged, merged_variables = weights.merge_branches(model, variables)
    names = models.tap_names(model)
    assert models.tap_names(merged) == names and len(names) == 10
    output, features = model.apply(variables, IMAGE, taps=names)
    again, merged_features = merged.apply(merged_variables, IMAGE, taps=names)
    np.testing.assert_allclose(again, output, rtol=0, atol=1e-6)
    for name in names:
        np.testing.assert_allclose(merged_features[name], features[name], rtol=0, atol=1e-6, err_msg=name)
    assert merged.receptive_field == model.receptive_field


def test_two_convolutions_are_left_of_three_and_no_number_is_lost(network):
    model, variables = network
    merged, merged_variables = weights.merge_branches(model, variables)
    base = merged_variables["params"]["body_1"]["baseblock2"]
    assert {k: v["kernel"].shape for k, v in base.items()} == {
        "uconv1_dconv": (3, 3, 5, 10),
        "uconv2": (3, 3, 5, 5),
    }
    old = variables["params"]["body_1"]["baseblock2"]
    np.testing.assert_array_equal(base["uconv1_dconv"]["kernel"][..., 5:], old["dconv"]["kernel"])
    np.testing.assert_array_equal(base["uconv1_dconv"]["bias"][:5], old["uconv1"]["bias"])
    shapes = jax.eval_shape(lambda: merged.init(jax.random.key(0), IMAGE))
    assert jax.tree.map(jnp.shape, shapes) == jax.tree.map(jnp.shape, merged_variables)
    assert sum(x.size for x in jax.tree.leaves(merged_variables)) == sum(x.size for x in jax.tree.leaves(variables))


def test_splitting_is_the_exact_inverse(network):
    model, variables = network
    back, again = weights.split_branches(*weights.merge_branches(model, variables))
    assert back == model and jax.tree.structure(again) == jax.tree.structure(variables)
    jax.tree.map(np.testing.assert_array_equal, again, variables)


def test_other_networks_have_nothing_to_merge(network):
    edsr = models.create("edsr_x2", num_feat=4, num_block=1)
    with pytest.raises(ConfigError, match="This EDSR has no branches to merge"):
        weights.merge_branches(edsr, {"params": {}})
    merged, merged_variables = weights.merge_branches(*network)
    with pytest.raises(ConfigError, match=r"MDBN \(merged=True\) has no branches to merge.*merged=False"):
        weights.merge_branches(merged, merged_variables)
    with pytest.raises(ConfigError, match=r"MDBN \(merged=False\) has no branches to split"):
        weights.split_branches(*network)


def test_for_inference_goes_by_what_was_measured_on_the_backend(network, monkeypatch):
    model, variables = network
    edsr = models.create("edsr_x2", num_feat=4, num_block=1)
    monkeypatch.setattr(merging, "MERGED_IS_FASTER", {"cpu": True})
    merged, merged_variables = weights.for_inference(model, variables)
    assert merged.merged and "uconv1_dconv" in merged_variables["params"]["body_0"]["baseblock1"]
    assert weights.for_inference(merged, merged_variables) == (merged, merged_variables)
    assert weights.for_inference(edsr, {}) == (edsr, {})
    for measured in ({"cpu": False}, {}):  # slower, or on a backend where nobody measured
        monkeypatch.setattr(merging, "MERGED_IS_FASTER", measured)
        assert weights.for_inference(model, variables) == (model, variables)
