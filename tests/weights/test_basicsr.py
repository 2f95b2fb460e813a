"""BasicSR's state dicts and files: exact inverses, which of `params` and `params_ema`, and what the errors say."""

from __future__ import annotations

import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import models, weights
from jaxkd.errors import ConfigError, WeightMismatchError, WeightSourceError
from jaxkd.weights.basicsr import recognise


@pytest.fixture
def mdbn(golden):
    """`mdbn(scale)` -> (small network, the authors' state dict)."""
    data = golden("mdbn_and_sr_metrics")

    def load(scale: int = 2):
        prefix = f"x{scale}/state/"
        state = {k.removeprefix(prefix): data[k] for k in data.files if k.startswith(prefix)}
        return models.create(f"mdbn_x{scale}", num_feat=12, num_block=2), state

    return load


def edsr_state(scale: int = 2, num_feat: int = 4, num_block: int = 2) -> dict[str, np.ndarray]:
    """Random arrays under the names of BasicSR's EDSR."""
    rng = np.random.default_rng(0)
    ups = {2: [4], 3: [9], 4: [4, 4]}[scale]
    shapes = {"conv_first": (num_feat, 3), "conv_after_body": (num_feat, num_feat), "conv_last": (3, num_feat)}
    shapes |= {f"body.{i}.conv{j}": (num_feat, num_feat) for i in range(num_block) for j in (1, 2)}
    shapes |= {f"upsample.{2 * i}": (r * num_feat, num_feat) for i, r in enumerate(ups)}
    arrays = {f"{k}.weight": rng.normal(size=(*s, 3, 3)) for k, s in shapes.items()}
    arrays |= {f"{k}.bias": rng.normal(size=s[:1]) for k, s in shapes.items()}
    return {k: v.astype(np.float32) for k, v in arrays.items()}


def assert_same_bits(got, expected) -> None:
    assert set(got) == set(expected)
    for name, array in expected.items():
        assert got[name].shape == array.shape and got[name].tobytes() == np.ascontiguousarray(array).tobytes(), name


def bias_of(variables) -> np.ndarray:
    return np.asarray(variables["params"]["conv_last"]["bias"])


# --- state dicts


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_an_mdbn_comes_back_bit_for_bit(mdbn, scale):
    model, state = mdbn(scale)
    assert_same_bits(weights.to_basicsr(model, weights.from_basicsr(model, state)), state)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_an_edsr_comes_back_bit_for_bit(scale):
    model, state = models.create(f"edsr_x{scale}", num_feat=4, num_block=2), edsr_state(scale)
    assert_same_bits(weights.to_basicsr(model, weights.from_basicsr(model, state)), state)


def test_layouts_are_transposed_and_names_are_jaxkds(mdbn):
    model, state = mdbn(4)
    params = weights.from_basicsr(model, state)["params"]
    kernel, weight = params["body_1"]["baseblock2"]["dconv"]["kernel"], state["body.1.baseblock2.dconv.weight"]
    assert kernel[0, 2, 3, 7] == weight[7, 3, 0, 2]
    np.testing.assert_array_equal(params["upsample_2"]["bias"], state["upsample.2.bias"])


def test_a_merged_network_loads_and_writes_the_same_names(mdbn):
    model, state = mdbn()
    merged, variables = weights.merge_branches(model, weights.from_basicsr(model, state))
    assert_same_bits(weights.to_basicsr(merged, variables), state)
    again = weights.from_basicsr(merged, state)
    assert jax.tree.structure(again) == jax.tree.structure(variables)
    jax.tree.map(np.testing.assert_array_equal, again, variables)


def test_the_network_that_a_file_belongs_to_is_named(mdbn):
    model, _ = mdbn(2)
    _, state = mdbn(4)
    with pytest.raises(WeightMismatchError) as caught:
        weights.from_basicsr(model, state, origin='The file "net.pth"')
    first, second = str(caught.value).split("\n")[:2]
    assert first.startswith('The file "net.pth" does not fit this MDBN. ')
    assert first.endswith('It has the arrays of models.create("mdbn_x4", num_feat=12, num_block=2).')
    assert second == "2 unused by the network:"
    assert recognise(mdbn(3)[1]) == ("mdbn_x3", {"num_feat": 12, "num_block": 2})
    assert recognise(edsr_state(3, 5, 4)) == ("edsr_x3", {"num_feat": 5, "num_block": 4})
    assert recognise({"conv_first.weight": np.zeros((4, 3, 3, 3))}) is None


def test_a_state_dict_of_another_kind_gets_a_diff_and_no_guess(mdbn):
    model, _ = mdbn()
    with pytest.raises(
        WeightMismatchError, match=r"none of the network's names; its first is fea_conv.weight.(?s:.*)- body.0"
    ) as caught:
        weights.from_basicsr(model, {"fea_conv.weight": np.zeros((64, 3, 3, 3), np.float32)})
    assert "models.create" not in str(caught.value)


def test_classifiers_are_refused(mdbn):
    _, state = mdbn()
    model = models.create("deit_tiny_patch16_224", img_size=32, embed_dim=24, depth=1, num_heads=3, num_classes=5)
    with pytest.raises(WeightMismatchError, match="VisionTransformer is not MDBN or EDSR.*from_timm"):
        weights.from_basicsr(model, state)
    with pytest.raises(WeightMismatchError, match="VisionTransformer is not MDBN or EDSR"):
        weights.to_basicsr(model, {"params": {}})


def test_variables_of_another_network_are_refused_on_the_way_out(mdbn):
    model, state = mdbn(2)
    with pytest.raises(WeightMismatchError, match="The variables do not belong to this MDBN"):
        weights.to_basicsr(mdbn(4)[0], weights.from_basicsr(model, state))


# --- files


@pytest.fixture
def both(mdbn, tmp_path, write_safetensors):
    """A file with both variants, in three spellings: {ending: path}; the average is the raw weights plus 1."""
    model, state = mdbn()
    levels = {"params": state, "params_ema": {k: v + np.float32(1) for k, v in state.items()}}
    flat = {f"{level}.{k}": v for level, arrays in levels.items() for k, v in arrays.items()}
    paths = {"safetensors": write_safetensors(tmp_path / "net.safetensors", flat), "npz": tmp_path / "net.npz"}
    np.savez(paths["npz"], **flat)
    try:
        import torch
    except ImportError:
        pass
    else:
        paths["pth"] = tmp_path / "net.pth"
        tensors = {level: {k: torch.tensor(v) for k, v in arrays.items()} for level, arrays in levels.items()}
        torch.save(tensors, paths["pth"])
    return model, state["conv_last.bias"], paths


@pytest.mark.parametrize("ending", ["pth", "safetensors", "npz"])
def test_the_average_is_the_default_and_said_aloud(both, ending, caplog):
    model, raw, paths = both
    if ending not in paths:
        pytest.skip("needs torch")
    path = paths[ending]
    with caplog.at_level(logging.WARNING):
        variables, origin = weights.load_with_origin(model, path)
    np.testing.assert_array_equal(bias_of(variables), raw + np.float32(1))
    assert origin == f'"{path}" ("params_ema", the moving average of the weights)'
    assert 'raw weights ("params") and their moving average ("params_ema"); the average was taken' in caplog.text
    caplog.clear()
    np.testing.assert_array_equal(bias_of(weights.load(model, path, variant="ema")), raw + np.float32(1))
    variables, origin = weights.load_with_origin(model, path, variant="raw")
    np.testing.assert_array_equal(bias_of(variables), raw)
    assert origin == f'"{path}" ("params", the raw weights)'
    assert not caplog.records


@pytest.mark.parametrize(("level", "absent"), [("params", "ema"), ("params_ema", "raw")])
def test_the_variant_that_is_not_there_is_never_replaced_in_silence(
    mdbn, tmp_path, write_safetensors, level, absent, caplog
):
    model, state = mdbn()
    path = write_safetensors(tmp_path / "net.safetensors", {f"{level}.{k}": v for k, v in state.items()})
    with pytest.raises(WeightSourceError, match=f'variant="{absent}", but .* there is only {level}'):
        weights.load(model, path, variant=absent)
    with caplog.at_level(logging.WARNING):
        variables, origin = weights.load_with_origin(model, path)
    np.testing.assert_array_equal(bias_of(variables), state["conv_last.bias"])
    assert f'("{level}", the ' in origin
    assert ("holds only a moving average" in caplog.text) == (level == "params_ema")


def test_a_bare_state_dict_and_a_wrapped_one_load(mdbn, tmp_path, write_safetensors):
    model, state = mdbn()
    for prefix in ("", "module.", "params.module."):
        path = write_safetensors(tmp_path / "net.safetensors", {prefix + k: v for k, v in state.items()})
        assert_same_bits(weights.to_basicsr(model, weights.load(model, path)), state)
    assert weights.load_with_origin(model, path, variant="raw")[1].endswith('("params", the raw weights)')


def test_a_mismatch_says_which_weights_of_which_file(both):
    _, _, paths = both
    path = paths["safetensors"]
    with pytest.raises(WeightMismatchError) as caught:
        weights.load(models.create("mdbn_x2", num_feat=12, num_block=3), path, variant="raw")
    first = str(caught.value).split("\n")[0]
    assert first.startswith(f'The file "{path}" ("params", the raw weights) does not fit this MDBN.')
    assert first.endswith('models.create("mdbn_x2", num_feat=12, num_block=2).')


def test_there_is_nothing_to_resize(both):
    model, _, paths = both
    for option in ("resize", "new_head"):
        with pytest.raises(ConfigError, match=f"{option}=True, but this MDBN takes images of any size"):
            weights.load(model, paths["npz"], **{option: True})


def test_what_is_written_loads_again(mdbn, tmp_path):
    model, state = mdbn()
    variables = weights.from_basicsr(model, state)
    path = weights.save_safetensors(tmp_path / "net.safetensors", model, variables)
    assert_same_bits(weights.to_basicsr(model, weights.load(model, path)), state)
    merged, merged_variables = weights.merge_branches(model, variables)
    path = weights.save_safetensors(tmp_path / "merged.safetensors", merged, merged_variables)
    assert_same_bits(weights.to_basicsr(model, weights.load(model, path)), state)


def test_freezing_speaks_of_our_paths():
    model = models.create("edsr_x2", num_feat=4, num_block=2)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 1, 1, 3))))
    mask = weights.freeze_mask(shapes["params"], ("body_0",))
    assert mask["body_0"]["conv1"]["kernel"] and not mask["body_1"]["conv1"]["kernel"]
