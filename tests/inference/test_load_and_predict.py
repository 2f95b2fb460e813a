"""`jaxkd.load` and `jaxkd.predict`: sources, facts of the network, kinds of photographs, and errors in words."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from PIL import Image
from random_weights import random_variables

import jaxkd
from jaxkd import data, models, weights
from jaxkd.errors import ConfigError, DataError, ShapeError, WeightSourceError

ARGS = {"img_size": 16, "patch_size": 8, "embed_dim": 12, "depth": 1, "num_heads": 2}


@pytest.fixture(scope="module")
def deit(tmp_path_factory):
    """(network, variables, safetensors with jaxkd's metadata) of a small DeiT with three named classes."""
    network = weights.build_network("deit_tiny_patch16_224", {**ARGS, "num_classes": 3})
    variables = jax.tree.map(lambda x: 8 * x, random_variables(network.model))
    import dataclasses

    network = dataclasses.replace(network, class_names=("oak", "elm", "ash"))
    path = tmp_path_factory.mktemp("weights") / "deit.safetensors"
    weights.save_safetensors(path, network.model, variables, weights.to_metadata(network))
    return network, variables, path


@pytest.fixture
def photo():
    """A picture of 40 x 30 pixels."""
    coarse = Image.fromarray(np.random.default_rng(3).integers(0, 256, (4, 5, 3), np.uint8))
    return coarse.resize((40, 30), Image.Resampling.BICUBIC)


def test_a_file_gives_the_network_with_its_facts_and_predicts_every_kind_of_photo(deit, photo, tmp_path):
    network, variables, path = deit
    model, loaded = jaxkd.load(path)
    assert model.name == "deit_tiny_patch16_224" and model.class_names == ("oak", "elm", "ash")
    assert model.preprocessing.image_size == (16, 16) and model.preprocessing.crop_pct == 0.9
    # The steps of evaluation, written out: crop, normalisation, network, softmax.
    pixels = data.EvalPreprocess((16, 16), 0.9, "bicubic")(photo)
    images = data.normalise(pixels[None], network.spec.mean, network.spec.std)
    np.testing.assert_allclose(model.preprocessing(photo), images[0], atol=1e-6)
    _, features = model.apply(loaded, images, taps=("block_0",))
    assert features["block_0"].shape == (1, 2, 2, 12)
    expected = jax.nn.softmax(network.model.apply(variables, images)[0][0])
    order = np.argsort(-expected)
    # A rotated file shows the same picture once its EXIF rotation is applied.
    rotated, exif = photo.transpose(Image.Transpose.ROTATE_90), Image.Exif()
    exif[0x0112] = 6
    rotated.save(tmp_path / "rotated.png", exif=exif)
    for one in (photo, np.asarray(photo), tmp_path / "rotated.png", str(tmp_path / "rotated.png")):
        first, second = jaxkd.predict(model, loaded, one, top=2)
        assert [first[0], second[0]] == [model.class_names[i] for i in order[:2]]
        np.testing.assert_allclose([first[1], second[1]], expected[order[:2]], atol=1e-5)
    many = jaxkd.predict(model, loaded, [photo, photo.convert("L"), photo], batch_size=2, top=9)
    assert [len(row) for row in many] == [3, 3, 3] and many[0] == many[2] != many[1]
    assert jaxkd.predict(model, loaded, []) == []


def test_names_of_outputs_are_those_of_the_run_of_imagenet_or_indices(deit, tmp_path):
    network, variables, _ = deit
    plain = tmp_path / "plain.safetensors"
    weights.save_safetensors(plain, network.model, variables)
    model, _ = jaxkd.load(plain, model="deit_tiny_patch16_224", model_args={**ARGS, "num_classes": 3})
    assert model.class_names == ("0", "1", "2")
    large = models.create("deit_tiny_patch16_224", **ARGS)
    weights.save_safetensors(tmp_path / "large.safetensors", large, random_variables(large))
    model, _ = jaxkd.load(tmp_path / "large.safetensors", model="deit_tiny_patch16_224", model_args=ARGS)
    assert (
        model.class_names[0] == "tench" and model.class_names[134] == "crane (bird)" and len(model.class_names) == 1000
    )


def test_super_resolution_gives_pictures(tmp_path, photo):
    model = models.create("mdbn_x2", num_feat=4, num_block=1)
    variables = random_variables(model)
    weights.save_safetensors(tmp_path / "mdbn.safetensors", model, variables)
    loaded, params = jaxkd.load(
        tmp_path / "mdbn.safetensors", model="mdbn_x2", model_args={"num_feat": 4, "num_block": 1}
    )
    assert loaded.class_names == () and loaded.preprocessing is None
    large = jaxkd.predict(loaded, params, photo)
    whole = np.asarray(model.apply(variables, np.asarray(photo, np.float32)[None] / 255)[0][0])
    assert large.size == (80, 60)
    np.testing.assert_allclose(np.asarray(large), np.clip(whole, 0, 1) * 255, atol=1.01)
    assert len(jaxkd.predict(loaded, params, [photo])) == 1


def test_a_run_and_errors_in_words(deit, photo, tmp_path):
    network, variables, path = deit
    model, loaded = jaxkd.load(path)
    headless = models.create("deit_tiny_patch16_224", **ARGS, num_classes=0)
    weights.save_safetensors(tmp_path / "none.safetensors", headless, random_variables(headless))
    bare, params = jaxkd.load(
        tmp_path / "none.safetensors", model="deit_tiny_patch16_224", model_args={**ARGS, "num_classes": 0}
    )
    (tmp_path / "text.jpg").write_text("no picture")
    for call, error, words in (
        (lambda: jaxkd.predict(network.model, variables, photo), ConfigError, "that jaxkd.load returns"),
        (lambda: jaxkd.predict(bare, params, photo), ConfigError, "has no classifier"),
        (lambda: jaxkd.predict(model, loaded, "nowhere.jpg"), DataError, '"nowhere.jpg" does not exist'),
        (lambda: jaxkd.predict(model, loaded, tmp_path), DataError, "is a folder"),
        (lambda: jaxkd.predict(model, loaded, tmp_path / "text.jpg"), DataError, "cannot be read as an image"),
        (lambda: jaxkd.predict(model, loaded, np.zeros((8, 8, 3))), ShapeError, "float64 of shape"),
        (lambda: jaxkd.predict(model, loaded, photo, top=0), ConfigError, "top"),
        (lambda: jaxkd.load("nowhere.safetensors"), WeightSourceError, "do not exist"),
        (lambda: jaxkd.load(tmp_path / "none.safetensors", compute="int8"), ConfigError, "int8"),
        (lambda: jaxkd.load("timm/deit_tiny_patch16_224.fb_in1k"), WeightSourceError, "could not be fetched"),
    ):
        with pytest.raises(error) as caught:
            call()
        assert words in str(caught.value)
