"""StableHLO files: run in another process that knows JAX and nothing of jaxkd, at any size."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import models, weights
from jaxkd.errors import ConfigError, WeightMismatchError, WeightSourceError
from jaxkd.weights import exports
from jaxkd.weights.exports.stablehlo import load_stablehlo, to_stablehlo

pytest.importorskip("flatbuffers", reason="needs the extra `export`")

SIZES = ((1, 1, 1), (2, 5, 7), (1, 12, 9))
ELSEWHERE = """
import sys
import numpy as np
from jax import export
call = export.deserialize(bytearray(open(sys.argv[1], "rb").read())).call
given = np.load(sys.argv[2])
np.savez(sys.argv[3], **{name: call(given[name]) for name in given.files})
assert not any(name.startswith(("jaxkd", "flax")) for name in sys.modules)
"""


@cache
def made(name: str, **args):
    """A small network with random variables, without the time that compiling its initialisation takes."""
    model = models.create(name, num_feat=4, num_block=1, **args)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 2, 2, 3))))
    rng = np.random.default_rng(0)
    return model, jax.tree.map(lambda x: rng.normal(0, 0.15, x.shape).astype(np.float32), shapes)


def test_range_and_bicubic_skip_at_three_sizes():
    model, variables = made("mdbn_x2", img_range=255.0, rgb_mean=(0.45, 0.4, 0.3), global_skip="bicubic")
    call = load_stablehlo(to_stablehlo(model, variables))
    for size in SIZES:
        images = np.random.default_rng(size[1]).uniform(size=(*size, 3)).astype(np.float32)
        np.testing.assert_allclose(call(images), enlarged(model, variables, images), rtol=1e-5, atol=1e-5)


def enlarged(model, variables, images):
    return np.asarray(jax.jit(lambda v, x: model.apply(v, x)[0])(variables, images))


def test_another_process_computes_the_same_at_three_sizes(tmp_path):
    model, variables = made("mdbn_x4")
    path = tmp_path / "new" / "m.stablehlo"
    exports.save(path, model, variables, to="stablehlo")
    assert [p.name for p in path.parent.iterdir()] == ["m.stablehlo"]
    rng = np.random.default_rng(0)
    given = {"x".join(map(str, s)): rng.uniform(size=(*s, 3)).astype(np.float32) for s in SIZES}
    np.savez(tmp_path / "in.npz", **given)
    subprocess.run(
        [sys.executable, "-c", ELSEWHERE, str(path), str(tmp_path / "in.npz"), str(tmp_path / "out.npz")],
        check=True,
        cwd=tmp_path,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )
    out = np.load(tmp_path / "out.npz")
    for name, images in given.items():
        computed = enlarged(model, variables, images)
        assert out[name].shape == computed.shape and np.ptp(computed) > 0.01
        np.testing.assert_allclose(out[name], computed, rtol=0, atol=1e-5)


def test_merged_edsr_and_bf16_networks_too():
    plain, variables = made("mdbn_x2")
    merged = weights.merge_branches(plain, variables)
    half = models.create("mdbn_x3", num_feat=4, num_block=1, dtype=jnp.bfloat16)
    image = np.random.default_rng(1).uniform(size=(1, 4, 6, 3)).astype(np.float32)
    for model, weights_of_it, tolerance in (
        (*merged, 1e-5),
        (*made("edsr_x3"), 1e-5),
        (half, made("mdbn_x3")[1], 1e-2),
    ):
        output = load_stablehlo(to_stablehlo(model, weights_of_it))(image)
        assert output.dtype == jnp.float32
        np.testing.assert_allclose(output, enlarged(model, weights_of_it, image), rtol=0, atol=tolerance)


def test_the_program_is_for_every_platform():
    from jax import export

    program = export.deserialize(bytearray(to_stablehlo(*made("mdbn_x2"))))
    assert program.platforms == ("cpu", "cuda", "rocm", "tpu")
    assert str(program.in_avals[0].shape) == "(batch, height, width, 3)"


def test_what_is_refused(tmp_path, monkeypatch):
    model, variables = made("mdbn_x2")
    path = tmp_path / "m.stablehlo"
    path.write_bytes(b"precious")
    with pytest.raises(WeightSourceError, match=r"exists already.*--overwrite"):
        exports.save(path, model, variables, to="stablehlo")
    with pytest.raises(WeightSourceError, match=r'm\.stablehlo" \(8 bytes\) is no serialised program'):
        load_stablehlo(path)
    with pytest.raises(WeightSourceError, match="cannot be read"):
        load_stablehlo(tmp_path / "gone.stablehlo")
    with pytest.raises(WeightSourceError, match=r"does not end in \.stablehlo"):
        exports.save(tmp_path / "m.mlir", model, variables, to="stablehlo")
    with pytest.raises(WeightMismatchError):
        to_stablehlo(made("edsr_x2")[0], variables)
    deit = models.create("deit_tiny_patch16_224", img_size=32, embed_dim=24, depth=1, num_heads=2)
    with pytest.raises(ConfigError, match="This VisionTransformer cannot be written as StableHLO"):
        to_stablehlo(deit, {})
    monkeypatch.setitem(sys.modules, "flatbuffers", None)
    with pytest.raises(ConfigError, match=r"package flatbuffers, which is not installed.*jaxkd\[export\]"):
        to_stablehlo(model, variables)
