"""Passages of EEG words: what they hold, and the features that an analysis gets for them."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import data, models, parallel
from jaxkd.analysis.pipeline import AnalysisOptions, StreamOptions, SummaryOptions, analyse
from jaxkd.analysis.pipeline.passages import cut_passages, passage_features
from jaxkd.errors import ConfigError, DataError, TapError
from jaxkd.report.figures import left_out
from jaxkd.report.results import in_units, sentences
from jaxkd.weights.network import build_network

SMALL = {"embed_dim": 8, "mlp_dim": 8, "depth": 1, "out_features": 4}


@pytest.fixture(scope="module")
def corpus():
    """Three readers of 20 sentences; two words of the first reader cannot be used."""
    found = data.open_eeg("embedded:synthetic_zuco?snr=16&subjects=3&sentences=20&vocabulary=20&words=5-7")
    found.eeg[1], found.eeg[2] = np.nan, 0.5
    return found


def encoder(name="eeg_words_tiny", **args):
    network = build_network(name, SMALL | args)
    rng = np.random.default_rng(0)
    shapes = models.abstract_variables(network.model, network.model.example_shape)
    variables = jax.tree.map(lambda x: jnp.asarray(rng.normal(0, 0.3, x.shape), jnp.float32), shapes)
    return dataclasses.replace(network, variables=variables)


def hsic(x, y):
    """Unbiased HSIC of the rows of two feature matrices (Song et al. 2012, equation 4), in float64."""
    k, m = (z.astype(np.float64) @ z.T.astype(np.float64) for z in (x, y))
    for gram in (k, m):
        np.fill_diagonal(gram, 0)
    n = len(k)
    mixed = k.sum() * m.sum() / ((n - 1) * (n - 2)) - 2 * (k.sum(0) @ m.sum(0)) / (n - 2)
    return (np.trace(k @ m) + mixed) / (n * (n - 3))


def test_passages_are_consecutive_usable_words_of_one_reader(corpus):
    readings = np.arange(0, len(corpus), 2)
    passages = cut_passages(corpus, readings, length=8)
    taken = passages.words.ravel()
    assert len(set(taken.tolist())) == len(taken) and not {1, 2} & set(taken.tolist())
    for row in passages.words:
        reading = corpus.reading_of_word[row]
        assert len(set(corpus.subject[reading])) == 1 and set(reading.tolist()) <= set(readings.tolist())
        own = [w for r in np.unique(reading) for w in range(corpus.start[r], corpus.start[r + 1])]
        between = [w for w in own if row[0] <= w <= row[-1] and w not in (1, 2)]
        assert row.tolist() == between
    every = sum(corpus.start[r + 1] - corpus.start[r] for r in readings)
    assert passages.left_over == every - 2 * (0 in readings) - len(taken) < 3 * 8
    first = cut_passages(corpus, readings, length=8, most=3)
    assert len(set(corpus.subject[corpus.reading_of_word[first.words[:, 0]]])) == 3


def test_mistakes(corpus):
    with pytest.raises(DataError, match="No reader has 5000 usable words in the test readings; the most are"):
        cut_passages(corpus, np.arange(len(corpus)), length=5000, called="test")
    with pytest.raises(ConfigError, match="--words"):
        cut_passages(corpus, np.arange(len(corpus)), length=1)
    with pytest.raises(TapError, match="mix_0"):
        passage_features(encoder(), corpus, parallel.make_mesh(), layers=("mix_0",))


@pytest.mark.parametrize("name", ["eeg_words_tiny", "eeg_words_context"])
def test_features_are_those_of_whole_sentences(corpus, name):
    """Also for a network whose words see one another: padding, other sentences and unusable words reach nothing."""
    args = {"mix_depth": 1, "num_heads": 2} if name.endswith("context") else {}
    network = encoder(name, **args)
    source = passage_features(network, corpus, parallel.make_mesh())
    assert source.layers == ("input", "block_0", *(["mix_0"] if args else []))
    passages = cut_passages(corpus, np.arange(len(corpus)), length=8)
    found = source.forward(jnp.asarray(passages.words[:2]))
    last = source.layers[-1]
    assert found[last].shape == (2, 8, 8)
    for i, word in [(0, passages.words[0, 0]), (0, passages.words[0, 7]), (1, passages.words[1, 3])]:
        reading = int(corpus.reading_of_word[word])
        own = [w for w in range(corpus.start[reading], corpus.start[reading + 1]) if corpus.usable[w]]
        eeg = data.normalise_words(corpus.eeg[own])[None]
        position = jnp.asarray(corpus.position[own])[None]
        with jax.default_matmul_precision("highest"):
            _, taps = network.model.apply(network.variables, eeg, taps=(last,), position=position)
        j = passages.words[i].tolist().index(word)
        np.testing.assert_allclose(found[last][i, j], taps[last][0, own.index(word)], rtol=1e-4, atol=1e-5)


def test_an_analysis_of_passages(corpus):
    """The same statistics as of images; CKA is that of single words, and no sentence of the report speaks of images."""
    mesh, network = parallel.make_mesh(), encoder()
    passages = cut_passages(corpus, np.arange(len(corpus)), length=16)
    one = passage_features(network, corpus, mesh, label="one")
    two = passage_features(encoder(depth=2), corpus, mesh, label="two", layers=("block_1",))
    few = SummaryOptions(permutations=2, bootstrap=20)
    results = analyse([one, two], passages, mesh, AnalysisOptions(StreamOptions(gradients=False), few))
    first, count = results["models"][0], len(passages)
    assert first["images"] == count and first["tokens"] == [16, 16] and not first["broken"]
    tokens = one.forward(jnp.asarray(passages.words))["block_0"].astype(np.float64)
    amplitude = np.abs(np.fft.fft(tokens, axis=-1)).mean(axis=(0, 1)) / 8
    np.testing.assert_allclose(first["spectrum"][1], amplitude, rtol=1e-4)
    assert first["last"]["layer"] == "block_0" and first["last"]["pca"]["centred"]["eigenvalues"]
    shallow, deep = (s.forward(jnp.asarray(passages.words))[s.layers[0]] for s in (one, two))
    pairs = [[x[i : i + 32].reshape(-1, 8) for x in (deep, shallow)] for i in range(0, count, 32)]
    terms = [[len(x) * hsic(a, b) for a, b in ((x, y), (x, x), (y, y))] for x, y in pairs]
    cross, own, other = np.sum(terms, axis=0)
    np.testing.assert_allclose(results["comparisons"][0]["cka"][0][0], cross / np.sqrt(own * other), rtol=1e-3)
    assert not any("image" in line for line in sentences(results))
    reasons = dict(left_out(results))
    assert "class scores" in reasons["Gradient magnitude by depth"] and "Saliency maps" in reasons
    assert "a grid of tokens" in reasons["Spatial spectrum by radius"]


def test_the_word_for_images():
    results = {"settings": {"unit": "passage"}}
    said = in_units(results, "An image's rank, per-image ranks of images, Images and the imagenet of an image.")
    assert said == "A passage's rank, per-passage ranks of passages, Passages and the imagenet of a passage."
    assert in_units({"settings": {}}, "an image") == "an image"
