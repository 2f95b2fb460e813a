"""Small networks with random weights against timm's numbers (tests/golden/README.md), 1e-4."""

from __future__ import annotations

from functools import partial

import jax
import numpy as np
import pytest

from jaxkd import models

TOLERANCE = {"rtol": 1e-4, "atol": 1e-4}


@pytest.mark.parametrize("name", ["deit", "deit_distilled", "cait", "swin", "swin_nonsquare"])
def test_logits_and_every_intermediate_are_timms(golden_network, name):
    model, variables, images, data = golden_network(name)
    kind = "stage_" if name.startswith("swin") else "block_"
    taps = tuple(t for t in models.tap_names(model) if t.startswith(kind) and "." not in t)
    recorded = sorted(k for k in data.files if k.startswith("intermediate_"))
    assert len(taps) == len(recorded) >= 3

    logits, features = jax.jit(partial(model.apply, taps=taps))(variables, images)

    np.testing.assert_allclose(logits, data["logits"], **TOLERANCE)
    assert set(features) == set(taps)
    for tap, key in zip(taps, recorded, strict=True):
        np.testing.assert_allclose(np.transpose(features[tap], (0, 3, 1, 2)), data[key], err_msg=tap, **TOLERANCE)


@pytest.mark.parametrize("name", ["deit", "cait", "swin", "swin_nonsquare"])
def test_without_head_and_pooling_the_output_is_timms_forward_features(golden_network, name):
    model, variables, images, data = golden_network(name, num_classes=0, global_pool="")
    np.testing.assert_allclose(jax.jit(model.apply)(variables, images)[0], data["forward_features"], **TOLERANCE)


@pytest.mark.parametrize("name", ["deit", "cait"])
def test_without_head_the_output_is_the_normalised_class_token(golden_network, name):
    model, variables, images, data = golden_network(name, num_classes=0)
    output, features = jax.jit(partial(model.apply, taps=("pre_logits",)))(variables, images)
    np.testing.assert_allclose(output, data["forward_features"][:, 0], **TOLERANCE)
    np.testing.assert_array_equal(output, features["pre_logits"])


def test_without_heads_a_distilled_vit_gives_the_mean_of_its_two_tokens(golden_network):
    model, variables, images, data = golden_network("deit_distilled", num_classes=0)
    expected = data["forward_features"][:, :2]
    np.testing.assert_allclose(jax.jit(model.apply)(variables, images)[0], expected.mean(axis=1), **TOLERANCE)
    pair, _ = jax.jit(partial(model.apply, distilled=True))(variables, images)
    np.testing.assert_allclose(np.stack(pair, axis=1), expected, **TOLERANCE)


def test_without_head_a_swin_gives_the_mean_over_the_grid(golden_network):
    model, variables, images, data = golden_network("swin_nonsquare", num_classes=0)
    expected = data["forward_features"].mean(axis=(1, 2))
    np.testing.assert_allclose(jax.jit(model.apply)(variables, images)[0], expected, **TOLERANCE)
