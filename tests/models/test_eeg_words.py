"""Encoders of EEG words: what reaches what, masks and places, dropout, taps, gradients, weights, errors."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import analysis, models, train, weights
from jaxkd.errors import ConfigError, ShapeError, TapError

SMALL = {
    "eeg_words_linear": {},
    "eeg_words_tiny": {"embed_dim": 12, "mlp_dim": 20},
    "eeg_words_base": {"embed_dim": 12, "mlp_dim": 20},
    "eeg_words_context": {"embed_dim": 12, "mlp_dim": 20, "max_words": 9},
}
FEATURES, WORDS = 10, 6


def small(name, **more):
    return models.create(name, **{"in_features": FEATURES, "out_features": 5, **SMALL[name], **more})


def drawn(model):
    """Random variables, away from their initial values."""
    rng = np.random.default_rng(0)
    shapes = models.abstract_variables(model, model.example_shape)
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(0.2, 0.4, x.shape), x.dtype), shapes)


@pytest.fixture(scope="module", params=SMALL)
def network(request):
    """(model, variables)."""
    model = small(request.param)
    return model, drawn(model)


@pytest.fixture(scope="module")
def batch():
    """EEG (3, 6, 10) and a mask with padding, a word left out between others, and one sentence without any word."""
    eeg = np.random.default_rng(1).normal(size=(3, WORDS, FEATURES)).astype(np.float32)
    where = np.array([[1, 1, 1, 1, 1, 1], [1, 0, 1, 1, 0, 0], [0] * 6], bool)
    return jnp.asarray(eeg), jnp.asarray(where)


def mixes(model):
    return model.mix_depth > 0


def test_output_and_taps(network, batch):
    model, variables = network
    eeg, where = batch
    taps = models.tap_names(model)
    output, features = model.apply(variables, eeg, where=where, taps=taps)
    assert output.shape == (3, WORDS, 5) and output.dtype == jnp.float32 and tuple(features) == taps
    width = model.embed_dim or 5
    assert all(value.shape == (3, WORDS, width) for value in features.values())
    assert model.apply(variables, eeg)[1] == {}
    # The functions of analysis take them as token sequences.
    last = features[taps[-1]]
    assert analysis.sep_curve(last).shape == (width,) and analysis.energy_ranks(last).shape == (3, 4)
    assert 0.999 < float(analysis.linear_cka(last.reshape(-1, width), 2 * last.reshape(-1, width))) < 1.001


def test_offsets_shift_the_features_that_follow(network, batch):
    model, variables = network
    eeg, where = batch
    for tap in models.tap_names(model):
        plain, before = model.apply(variables, eeg, where=where, taps=(tap,))
        offset = jnp.broadcast_to(jnp.linspace(-1, 1, before[tap].shape[-1]), before[tap].shape)
        shifted, features = model.apply(variables, eeg, where=where, taps=(tap,), offsets={tap: offset})
        np.testing.assert_allclose(features[tap], before[tap] + offset, rtol=1e-6, atol=1e-6)
        assert np.abs(shifted - plain)[0].max() > 1e-3


def test_a_word_reaches_other_words_only_where_there_is_attention(network, batch):
    model, variables = network
    eeg, where = batch
    apply = jax.jit(lambda x: model.apply(variables, x, where=where)[0])
    before, after = apply(eeg), apply(eeg.at[:, 2].add(jnp.linspace(-1, 1, FEATURES)))
    assert np.abs(before[:2, 2] - after[:2, 2]).max(axis=1).min() > 1e-3
    others = np.array([i for i in range(WORDS) if i != 2])
    if mixes(model):
        assert (np.abs(before - after)[0][others].max(axis=1) > 1e-5).all()
    else:
        np.testing.assert_array_equal(before[:, others], after[:, others])


def test_what_the_mask_leaves_out_changes_nothing_bit_for_bit(network, batch):
    model, variables = network
    eeg, where = batch
    total = lambda v, x: jnp.sum(jnp.square(model.apply(v, x, where=where)[0]))  # noqa: E731
    apply = jax.jit(lambda x: (model.apply(variables, x, where=where)[0], jax.grad(total)(variables, x)))
    expected, slopes = apply(jnp.where(where[..., None], eeg, 0.0))
    for filling in (7.5, np.nan, np.inf):
        output, found = apply(jnp.where(where[..., None], eeg, filling))
        np.testing.assert_array_equal(output, expected)
        jax.tree.map(np.testing.assert_array_equal, found, slopes)
    assert np.isfinite(expected).all() and all(np.isfinite(x).all() for x in jax.tree.leaves(slopes))
    assert (np.asarray(expected)[~np.asarray(where)] == 0).all()


def test_padding_to_more_words_changes_no_embedding(network, batch):
    model, variables = network
    eeg, where = batch
    output = model.apply(variables, eeg, where=where)[0]
    more = jnp.pad(eeg, ((0, 0), (0, 3), (0, 0))), jnp.pad(where, ((0, 0), (0, 3)))
    padded = model.apply(variables, more[0], where=more[1])[0]
    np.testing.assert_allclose(padded[:, :WORDS], output, rtol=1e-5, atol=1e-5)
    # Without the words that are left out, where the places are given.
    kept = np.array([0, 2, 3])
    alone = model.apply(variables, eeg[1:2, kept], position=jnp.asarray(kept)[None])[0]
    np.testing.assert_allclose(alone[0], output[1, kept], rtol=1e-5, atol=1e-5)


def test_places_are_read_by_the_network_with_attention_alone(network, batch):
    model, variables = network
    eeg, where = batch
    places = jnp.tile(jnp.arange(WORDS), (3, 1))
    apply = jax.jit(lambda p: model.apply(variables, eeg, where=where, position=p)[0])
    np.testing.assert_allclose(apply(places), model.apply(variables, eeg, where=where)[0], rtol=1e-5, atol=1e-5)
    later = apply(places + 3)
    assert (np.abs(later - apply(places)).max() > 1e-4) == mixes(model)
    if mixes(model):
        outside = apply(places.at[0, 1].set(9))
        assert np.isnan(outside[0]).any() and np.isnan(apply(places.at[0, 1].set(-1))[0]).any()
        assert np.isfinite(outside[1:]).all()
        assert np.isfinite(apply(places.at[1, 4:].set(-1))).all()  # of words that are left out


def test_dropout_needs_its_key_and_changes_the_output(batch):
    eeg, where = batch
    model = small("eeg_words_tiny")
    variables = drawn(model)
    key = lambda seed: {"dropout": jax.random.key(seed, impl="rbg")}  # noqa: E731
    apply = lambda seed: model.apply(variables, eeg, True, where=where, rngs=key(seed))[0]  # noqa: E731
    assert np.abs(apply(1) - apply(2)).max() > 1e-3
    np.testing.assert_array_equal(apply(1), apply(1))
    with pytest.raises(ConfigError, match='no key named "dropout"'):
        model.apply(variables, eeg, train=True)
    assert model.drop_rate == 0.3 and small("eeg_words_linear").drop_rate == 0.0


def test_gradients_reach_every_parameter(network, batch):
    model, variables = network
    eeg, where = batch
    goal = jnp.asarray(np.random.default_rng(2).normal(size=(3, WORDS, 5)), jnp.float32)
    slopes = jax.jit(jax.grad(lambda v: jnp.sum(goal * model.apply(v, eeg, where=where)[0])))(variables)
    for path, slope in jax.tree_util.tree_leaves_with_path(slopes):
        assert np.abs(slope).max() > 1e-6, path
    decays = train.optimizer.decay_mask(variables["params"])
    assert decays["head"]["kernel"] and not decays["head"]["bias"]
    assert not any(jax.tree.leaves(decays.get("places", {})))


def test_weights_go_to_a_file_and_back(network, tmp_path):
    model, variables = network
    path = tmp_path / "encoder.safetensors"
    weights.save_safetensors(path, model, variables)
    jax.tree.map(np.testing.assert_array_equal, weights.load(model, path), variables)
    with pytest.raises(ConfigError, match="no grid of patches"):
        weights.load(model, path, resize=True)


def test_a_network_is_built_from_its_name_and_arguments():
    network = weights.build_network("eeg_words_tiny", {"in_features": 840, "out_features": 128})
    assert (network.image_size, network.num_classes, network.spec.task) == ((56, 840), 0, "eeg_words")
    assert models.tap_names(models.create("eeg_words_context")) == ("input", "block_0", "block_1", "mix_0", "mix_1")
    assert models.list_models("eeg_words*") == [f"eeg_words_{n}" for n in ("base", "context", "linear", "tiny")]


def test_half_precision_keeps_parameters_and_output_in_fp32(batch):
    model = small("eeg_words_context", dtype=jnp.bfloat16)
    variables = drawn(model)
    output, features = model.apply(variables, batch[0], taps=("mix_0",))
    assert output.dtype == jnp.float32 and features["mix_0"].dtype == jnp.bfloat16
    exact = small("eeg_words_context").apply(variables, batch[0])[0]
    assert 0 < np.abs(output - exact).max() < 0.05 * np.abs(exact).max() + 0.02


def test_mistakes_are_explained(batch):
    eeg, where = batch
    model, mixing = small("eeg_words_tiny"), small("eeg_words_context")
    start = lambda m: jax.eval_shape(m.init, jax.random.key(0), jnp.zeros(m.example_shape))  # noqa: E731
    call = lambda m, *a, **k: jax.eval_shape(lambda v: m.apply(v, *a, **k), start(m))  # noqa: E731
    for mistake, words in (
        (lambda: call(model, eeg[0]), "Add an axis for single words"),
        (lambda: call(model, eeg[..., :4]), "in_features=4"),
        (lambda: call(model, eeg, where=where[:, :2]), r"a bool for each word, of shape \(3, 6\)"),
        (lambda: call(model, eeg, where=where.astype(jnp.float32)), "where is float32"),
        (lambda: call(model, eeg, position=where), "an integer for each word"),
        (lambda: call(mixing, jnp.zeros((1, 10, FEATURES))), "max_words=10"),
    ):
        with pytest.raises(ShapeError, match=words):
            mistake()
    with pytest.raises(TapError, match='"mix_0" does not exist in this encoder of EEG words'):
        call(model, eeg, taps=("mix_0",))
    for arguments, words in (
        ({"embed_dim": 0}, "embed_dim=0 is a linear network"),
        ({"mix_depth": 1, "num_heads": 5}, "num_heads=5"),
        ({"drop_rate": 1.0}, "drop_rate=1.0"),
    ):
        with pytest.raises(ConfigError, match=words):
            small("eeg_words_tiny", **arguments)
