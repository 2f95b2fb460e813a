"""The example plugin: a network, a term and a data source outside the package, trained by the command line."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import distill, main, models
from jaxkd.data.sources import registry as sources
from jaxkd.distill import terms
from jaxkd.models import registry as networks
from jaxkd.train.checkpoint import restore_item

FOLDER = Path(__file__).resolve().parents[2] / "examples" / "plugin"


@pytest.fixture(autouse=True)
def forget_plugins(monkeypatch):
    """Forgets what a plugin registers, and the plugin."""
    registries = (networks.REGISTRY, terms.TERMS, sources.OPENERS)
    before, modules = [dict(r) for r in registries], set(sys.modules)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    for registry, entries in zip(registries, before, strict=True):
        registry.clear()
        registry.update(entries)
    for name in set(sys.modules) - modules:
        if getattr(sys.modules[name], "__file__", None) and "plugin" in name:
            del sys.modules[name]


def command(workdir, *more: str, config=FOLDER / "config.py") -> list[str]:
    return [f"--config={config}", f"--workdir={workdir}", "--config.log.tensorboard=False", *more]


def test_the_example_is_imported_and_its_objective_is_built():
    sys.path.insert(0, str(FOLDER))
    importlib.import_module("my_plugin")
    pairs = (("block_1", "block_1"),)
    objective = distill.build_objective(({"loss": "projected_cosine"}, {"loss": "ce"}), pairs=pairs)
    student, teacher = [(jnp.ones((2, 2)), {"block_1": jnp.ones((2, 4, 4, width))}) for width in (16, 32)]
    params, mutable = objective.init(jax.random.key(0), (student, teacher))
    assert params["projected_cosine"]["kernel"].shape == (16, 32)
    _, logged, _ = objective(params, mutable, student, teacher, {"label": jnp.arange(2)}, 0)
    assert 0 <= logged["projected_cosine"] <= 2


@pytest.mark.slow
def test_the_example_trains(tmp_path):
    argv = command(tmp_path / "run", "--config.student.args.depth=1", "--config.checkpoint.every_steps=1")
    assert main.main(argv) == 0
    student = tmp_path / "run" / "student"
    config = json.loads((student / "config.json").read_text())
    assert config["student"]["args"] == {"depth": 1, "num_classes": 2, "width": 16}
    assert config["teacher"]["args"] == {"num_classes": 2}  # the width that its stage records is the default
    steps = sorted(int(p.name) for p in (student / "checkpoints").iterdir() if p.name.isdigit())
    saved = [restore_item(student / "checkpoints" / str(step) / "params") for step in steps[-2:]]
    kernels = [np.asarray(params["projectors"]["projected_cosine"]["kernel"]) for params in saved]
    assert kernels[0].shape == (16, 32) and np.abs(kernels[0] - kernels[1]).max() > 0
    result = json.loads((student / "result.json").read_text())
    assert result["finished"] and result["metrics"]["top1"] > 50


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (
            "--config.student.args.widht=8",
            'student.args.widht=8 is not an argument of patch_mixer. Did you mean "width"',
        ),
        ("--config.student.name=patch_mixr", 'The model "patch_mixr" is not registered. Did you mean "patch_mixer"'),
        ("--config.distill.terms=({'loss': 'projected_cosin'},)", 'Did you mean "projected_cosine"'),
        ("--config.data.source=strips:64", 'The data folder "strips:64" does not exist.'),
        ("--config.plugins=('no_such_module',)", 'plugins names "no_such_module", and there is no such module'),
        ("--config.precision.compute=bfloat16", "patch_mixer has no argument dtype"),
    ],
)
def test_mistakes(tmp_path, complaint_of, change, text):
    found = complaint_of(main.main, command(tmp_path / "run", change))
    assert text in found and not list(tmp_path.glob("run/*/checkpoints"))


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("import jaxkd.no_such_part", "fails while it is imported: ModuleNotFoundError: No module named 'jaxkd.no_s"),
        ("1 / 0", 'The plugin "broken_plugin" fails while it is imported: ZeroDivisionError: division by zero'),
        (
            "from jaxkd import models\nmodels.register('cait_s24_224', None, models.ModelSpec('cait_s24_224'))",
            'The plugin "broken_plugin" cannot be used. The network "cait_s24_224" is registered already',
        ),
    ],
)
def test_a_plugin_that_fails(tmp_path, complaint_of, code, text):
    (tmp_path / "broken_plugin.py").write_text(code + "\n")
    config = (FOLDER / "config.py").read_text().replace("my_plugin", "broken_plugin")
    (tmp_path / "config.py").write_text(config)
    assert text in complaint_of(main.main, command(tmp_path / "run", config=tmp_path / "config.py"))


def test_a_network_is_one_file_and_one_registration(tmp_path):
    """Arguments from the signature, several tags, and names that are taken."""
    from flax import linen as nn

    class Net(nn.Module):
        num_classes: int = 3
        scale: float = 1.0

    models.register("net", Net, [models.ModelSpec("", "a", num_classes=7), models.ModelSpec("", "b", num_classes=9)])
    assert models.create("net").num_classes == 7 and models.create("net.b", scale=2.0).scale == 2.0
    assert models.spec("net.b").name == "net" and models.arguments("net") == ("num_classes", "scale")
    assert models.list_models("net*") == ["net"] and models.list_models("net.*") == ["net.a", "net.b"]
    with pytest.raises(models.registry.ConfigError, match='"net" is registered already, by .*Net'):
        models.register("net", Net, models.ModelSpec("net"))
    with pytest.raises(models.registry.ConfigError, match="has a dot"):
        models.register("net.c", Net, models.ModelSpec("net"))


def test_a_source_is_one_class_and_one_registration():
    from jaxkd import data

    class Two:
        def __init__(self, spec, split, *, exif):
            self.given = (spec, split, exif)

    data.register_source("two:", Two)
    assert data.open_source("two:x:y", "val", exif=True).given == ("two:x:y", "val", True)
    for name, text in (("two:", "registered already"), ("tfds:", "registered already"), ("folder", "has no colon")):
        with pytest.raises(sources.ConfigError, match=text):
            data.register_source(name, Two)
