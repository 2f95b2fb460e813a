"""Classifiers as ONNX files: onnxruntime computes each family's outputs for any number of images."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_weights import random_variables

from jaxkd import models
from jaxkd.errors import ConfigError
from jaxkd.weights import exports
from jaxkd.weights.exports import classifiers

onnx = pytest.importorskip("onnx", reason="needs the extra `export`")
pytest.importorskip("onnxruntime", reason="needs the extra `export`")

VIT = {"img_size": 16, "patch_size": 8, "embed_dim": 12, "depth": 1, "num_heads": 2, "num_classes": 5}
SWIN = {"img_size": 16, "patch_size": 2, "window_size": 4, "embed_dim": 8, "num_classes": 5}


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("deit_tiny_distilled_patch16_224", VIT),
        ("cait_xxs24_224", VIT),  # talking heads, class attention
        ("swin_tiny_patch4_window7_224", {**SWIN, "depths": (2,), "num_heads": (2,)}),  # shifted windows
        pytest.param("swin_tiny_patch4_window7_224", {**SWIN, "depths": (2, 2), "num_heads": (2, 4)}, marks=SLOW),
        pytest.param("vit_base_patch16_clip_quickgelu_224", VIT, marks=SLOW),
        ("lift_deit_tiny_patch16_224", {**VIT, "target_dim": 16}),
        ("widelast_deit_tiny_patch16_224", {**VIT, "depth": 2, "wide_dim": 16}),
        pytest.param("uniformwide_deit_tiny_patch16_224", VIT, marks=SLOW),
    ],
)
def test_a_file_computes_the_network_for_any_batch(tmp_path, name, args):
    model = models.create(name, **args)
    variables = jax.tree.map(lambda x: 4 * np.asarray(x), random_variables(model, size=16))
    path = tmp_path / "m.onnx"
    assert exports.save(path, model, variables, {"model": name}, to="onnx") < 1e-4
    # The batch of the comparison that `save` makes shares its compiled program with this one.
    images = np.random.default_rng(0).normal(size=(2, 16, 16, 3)).astype(np.float32)
    expected = np.asarray(jax.jit(classifiers.program(model, None))(variables, images))
    assert np.ptp(expected) > 0.1
    three = classifiers.run_onnx(path, np.concatenate([images, images[:1]]))
    np.testing.assert_allclose(three, expected[[0, 1, 0]], rtol=1e-4, atol=1e-4)
    file = onnx.load(path)
    assert [(o.domain, o.version) for o in file.opset_import] == [("", 17)]
    assert {p.key: p.value for p in file.metadata_props} == {"model": name, "jaxkd.output": "logits"}


def test_what_cannot_be_translated_is_named():
    class Sorts(models.create("deit_tiny_patch16_224").__class__):
        """A network of the user with an operation of its own."""

        def __call__(self, images, **options):
            output, features = super().__call__(images, **options)
            return jnp.sort(output, axis=-1), features

    model = Sorts(**VIT)
    with pytest.raises(ConfigError, match=r'the operation "sort", which has no translation.*--to=stablehlo'):
        classifiers.to_onnx(model, random_variables(model), {}, None)
