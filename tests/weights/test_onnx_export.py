"""ONNX files: onnxruntime computes the network's outputs at any size, an old runtime can read them, nothing is lost."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import models, weights
from jaxkd.errors import ConfigError, WeightMismatchError, WeightSourceError
from jaxkd.weights import exports
from jaxkd.weights.exports.onnx import run_onnx, to_onnx

onnx = pytest.importorskip("onnx", reason="needs the extra `export`")
pytest.importorskip("onnxruntime", reason="needs the extra `export`")

SIZES = ((1, 1, 1), (2, 5, 7), (1, 24, 17))  # batch, height, width


def made(name: str, **kwargs):
    """A small network with large random variables, so that every convolution and bias matters."""
    model = models.create(name, num_feat=6, num_block=2, **kwargs)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 2, 2, 3))))
    rng = np.random.default_rng(3)
    return model, jax.tree.map(lambda x: jnp.asarray(rng.normal(0, 0.15, x.shape), jnp.float32), shapes)


def save(path, model, variables, **options) -> None:
    exports.save(path, model, variables, to="onnx", **options)


def images(batch: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height).uniform(size=(batch, height, width, 3)).astype(np.float32)


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("mdbn_x2", {}),
        ("mdbn_x3", {"res_scale": 0.5}),
        ("mdbn_x4", {}),
        ("mdbn_x8", {}),
        ("edsr_x2", {"res_scale": 0.1}),
        ("edsr_x3", {}),
        ("edsr_x4", {"img_range": 1.0, "rgb_mean": (0.0, 0.0, 0.0)}),
        ("mdbn_x3", {"global_skip": "bicubic"}),
        ("mdbn_x4", {"img_range": 255.0, "rgb_mean": (0.45, 0.4, 0.3), "global_skip": "bicubic"}),
        ("mdbn_x2", {"img_range": 10.0, "rgb_mean": (0.45, 0.4, 0.3)}),
    ],
)
def test_one_file_computes_the_network_at_every_size(tmp_path, name, kwargs):
    model, variables = made(name, **kwargs)
    path = tmp_path / "new" / "m.onnx"
    save(path, model, variables)
    assert [p.name for p in path.parent.iterdir()] == ["m.onnx"]
    for size in SIZES:
        x = images(*size)
        computed = np.asarray(model.apply(variables, x)[0])
        exported = run_onnx(path, x)
        assert exported.shape == computed.shape == (size[0], model.scale * size[1], model.scale * size[2], 3)
        assert np.ptp(computed) > 0.05 and np.ptp(computed, axis=-1).max() > 0.01, "says nothing about order"
        np.testing.assert_allclose(exported, computed, rtol=1e-4, atol=1e-4)


def test_a_merged_network_and_its_plain_form_give_the_same_file():
    model, variables = made("mdbn_x2")
    merged = weights.merge_branches(model, variables)
    assert to_onnx(*merged).SerializeToString() == to_onnx(model, variables).SerializeToString()


def test_weights_keep_their_names_and_bits():
    from onnx import numpy_helper

    model, variables = made("mdbn_x4")
    stored = {a.name: numpy_helper.to_array(a) for a in to_onnx(model, variables).graph.initializer}
    state = weights.to_basicsr(model, variables)
    assert set(stored) - set(state) == {"sqrt_two", "one", "half"} and not set(state) - set(stored)
    for name, array in state.items():
        np.testing.assert_array_equal(stored[name], array, err_msg=name)


def test_the_interface_is_named_dynamic_and_old():
    file = to_onnx(*made("edsr_x3"), {"model": "edsr_x3"})
    (image,), (enlarged,) = file.graph.input, file.graph.output
    dims = [[d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in (image, enlarged)]
    assert (image.name, enlarged.name) == ("image", "enlarged")
    assert dims == [["batch", 3, "height", "width"], ["batch", 3, "height_x3", "width_x3"]]
    assert {p.key: p.value for p in file.metadata_props} == {"scale": "3", "receptive_field": "8", "model": "edsr_x3"}
    assert file.ir_version == 7 and [(o.domain, o.version) for o in file.opset_import] == [("", 13)]
    assert all(n.domain == "" for n in file.graph.node), "operators of one runtime only"
    modes = [a.s for n in file.graph.node if n.op_type == "DepthToSpace" for a in n.attribute if a.name == "mode"]
    assert modes == [b"CRD"]


def test_the_runtime_fuses_the_gelu_that_is_spelt_out(tmp_path):
    import onnxruntime

    model, variables = made("mdbn_x2")
    path = tmp_path / "m.onnx"
    save(path, model, variables)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    operators = [n.op_type for n in onnx.load(tmp_path / "optimised.onnx").graph.node]
    assert operators.count("Gelu") == 2 * 2 * 2 and "Erf" not in operators


def test_bf16_arithmetic_is_exported_as_fp32():
    model, variables = made("mdbn_x2")
    half = models.create("mdbn_x2", num_feat=6, num_block=2, dtype=jnp.bfloat16)
    assert to_onnx(half, variables).SerializeToString() == to_onnx(model, variables).SerializeToString()


def test_what_is_refused(tmp_path, monkeypatch):
    model, variables = made("mdbn_x2")
    path = tmp_path / "m.onnx"
    path.write_bytes(b"precious")
    with pytest.raises(WeightSourceError, match=r"exists already.*--overwrite"):
        save(path, model, variables)
    assert path.read_bytes() == b"precious"
    save(path, model, variables, overwrite=True)
    assert path.stat().st_size > 1000
    with pytest.raises(WeightSourceError, match=r"does not end in \.onnx"):
        save(tmp_path / "m.pt", model, variables)
    (tmp_path / "d.onnx").mkdir()
    with pytest.raises(WeightSourceError, match="is a folder"):
        save(tmp_path / "d.onnx", model, variables, overwrite=True)
    with pytest.raises(WeightSourceError, match=r'm\.onnx/x\.onnx" cannot be written'):
        save(path / "x.onnx", model, variables)
    with pytest.raises(WeightMismatchError):
        to_onnx(made("edsr_x2")[0], variables)
    deit = models.create("deit_tiny_patch16_224", img_size=32, embed_dim=24, depth=1, num_heads=2)
    with pytest.raises(ConfigError, match="This VisionTransformer cannot be written as ONNX.*Write safetensors"):
        to_onnx(deit, {})
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    with pytest.raises(ConfigError, match=r"package onnx, which is not installed.*jaxkd\[export\]"):
        to_onnx(model, variables)
