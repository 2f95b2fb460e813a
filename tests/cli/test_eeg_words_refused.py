"""Commands and runs for images, given an encoder of EEG words: each says so in a sentence."""

from __future__ import annotations

import jax
import pytest

from jaxkd import analyze, convert, evaluate, models, upscale, weights
from jaxkd.config import fields
from jaxkd.errors import ConfigError
from jaxkd.experiment import classification, restoration
from jaxkd.weights.network import build_network

NAME = "eeg_words_tiny"


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """A file of weights that names its network."""
    network = build_network(NAME, {"in_features": 6, "embed_dim": 4, "mlp_dim": 4, "out_features": 3})
    variables = jax.tree.map(
        lambda x: jax.numpy.full(x.shape, 0.1), models.abstract_variables(network.model, network.model.example_shape)
    )
    path = tmp_path_factory.mktemp("weights") / "encoder.safetensors"
    weights.save_safetensors(path, network.model, variables, weights.to_metadata(network))
    return path


def test_commands_for_images_refuse_it(complaint_of, file, tmp_path):
    picture = tmp_path / "a.png"
    picture.write_bytes(b"")
    reads_images = f"{NAME} embeds words of EEG, and this command reads images."
    for main, argv, words in (
        (evaluate.main, ["--data=embedded:digits"], reads_images),
        (analyze.main, [f"--out={tmp_path / 'report'}"], "only a run of configs/brain_cliplm.py says which recordings"),
        (
            upscale.main,
            [f"--in={picture}", f"--out={tmp_path / 'large'}"],
            f"{NAME} embeds words of EEG and cannot enlarge",
        ),
        (convert.main, [f"--out={tmp_path / 'a.onnx'}"], "cannot be written as onnx"),
    ):
        text = complaint_of(main, [f"--weights={file}", *argv])
        assert words in text, text
    assert not (tmp_path / "large").exists()


def test_it_is_copied_to_safetensors(file, tmp_path, capsys):
    out = tmp_path / "copy.safetensors"
    assert convert.main([f"--weights={file}", f"--out={out}"]) == 0
    model = models.create(NAME, in_features=6, embed_dim=4, mlp_dim=4, out_features=3)
    first, second = weights.load(model, file), weights.load(model, out)
    assert all(jax.tree.leaves(jax.tree.map(lambda a, b: (a == b).all(), first, second)))
    assert NAME in capsys.readouterr().out


def test_runs_on_images_refuse_it():
    config = fields.base()
    config.student.name = NAME
    with pytest.raises(ConfigError, match=f'student.name="{NAME}" embeds words of EEG and cannot classify images'):
        classification.build_task(config, num_classes=10)
    with pytest.raises(ConfigError, match=f'student.name="{NAME}" embeds words of EEG, but task="restoration"'):
        restoration.scale_of(config)
