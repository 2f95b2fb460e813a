"""Damaged files: they must be refused in words, or give exactly what undamaged ones give."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import logging
import os
import random
import shutil
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from jaxkd import data, main, models, train, weights
from jaxkd.config import fields
from jaxkd.config.validate import check_stages, validate
from jaxkd.errors import JaxkdError

SMALL = {"img_size": 16, "patch_size": 8, "embed_dim": 12, "depth": 1, "num_heads": 2, "num_classes": 10}


def remove(folder: Path) -> None:
    """Deletes an attempt's folder, whatever rights its files have."""
    shutil.rmtree(folder, ignore_errors=True)


def spoil(rng: random.Random, content: bytes) -> bytes:
    """`content` with a byte changed, cut, inserted or overwritten."""
    if not content:
        return b"\0"
    at = rng.randrange(len(content))
    kind = rng.choice(("flip", "flip", "cut", "insert", "zero", "empty"))
    if kind == "flip":
        return content[:at] + bytes([content[at] ^ (1 << rng.randrange(8))]) + content[at + 1 :]
    if kind == "cut":
        return content[:at]
    if kind == "insert":
        return content[:at] + rng.randbytes(rng.randint(1, 9)) + content[at:]
    if kind == "zero":
        size = rng.randint(1, 64)
        return content[:at] + bytes(size) + content[at + size :]
    return b""


def spoil_one(rng: random.Random, folder: Path) -> Path:
    """Damages or removes one file below `folder`."""
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    path = rng.choice(files)
    if rng.random() < 0.1:
        path.unlink()
        return path
    content = path.read_bytes()
    spoiled = spoil(rng, content)
    while spoiled == content:
        spoiled = spoil(rng, content)
    path.write_bytes(spoiled)
    return path


def same(a: Any, b: Any) -> bool:
    """Whether two trees of arrays are equal, bit for bit."""
    leaves = jax.tree_util.tree_leaves_with_path(a), jax.tree_util.tree_leaves_with_path(b)
    return [p for p, _ in leaves[0]] == [p for p, _ in leaves[1]] and all(
        np.array_equal(np.asarray(x), np.asarray(y), equal_nan=True) for (_, x), (_, y) in zip(*leaves, strict=True)
    )


@contextlib.contextmanager
def quiet():
    """Without log lines and without what libraries print."""
    logging.disable(logging.CRITICAL)
    try:
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(logging.NOTSET)


@functools.cache
def trained() -> Path:
    """A work directory with two checkpoints and a moving average."""
    from jaxkd.experiment import run

    changes = {f"student.args.{k}": v for k, v in SMALL.items() if k != "num_classes"} | {
        **{"data.source": "embedded:digits", "data.workers": 0, "train.batch_size": 256, "train.epochs": 2},
        **{"schedule.warmup_epochs": 1, "ema.decay": 0.5, "log.tensorboard": False, "checkpoint.keep_best": 0},
    }
    folder = Path(tempfile.mkdtemp(prefix="faults-run-"))
    with quiet():
        run.run(fields.change(fields.base(), changes).lock(), folder / "run")
    return folder / "run"


def checkpoints(rng: random.Random, folder: Path) -> str:
    """One file of the newest checkpoint."""
    run = folder / "run"
    shutil.copytree(trained(), run)
    newest = max((p for p in (run / "checkpoints").iterdir() if p.name.isdigit()), key=lambda p: int(p.name))
    path = spoil_one(rng, newest)
    for variant in ("raw", "ema"):
        expected = train.load_run_weights(trained(), variant=variant)[0]
        try:
            with quiet():
                found = train.load_run_weights(run, variant=variant)[0]
        except JaxkdError:
            continue
        if not same(expected, found):
            return f"{path.relative_to(run)}: other {variant} weights in silence"
    return ""


@functools.cache
def weight_files() -> tuple[Any, dict[str, bytes]]:
    """(network, name -> content) of files in every format that is read without PyTorch."""
    model = models.create("deit_tiny_patch16_224", **SMALL)
    rng = np.random.default_rng(0)
    images = jax.ShapeDtypeStruct((1, 16, 16, 3), np.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), images)
    variables = jax.tree.map(lambda s: rng.normal(size=s.shape).astype(s.dtype), shapes)
    folder = Path(tempfile.mkdtemp(prefix="faults-weights-"))
    weights.save_safetensors(folder / "w.safetensors", model, variables)
    np.savez(folder / "w.npz", **weights.to_timm(model, variables))
    with contextlib.suppress(ImportError):
        import torch

        state = {k: torch.from_numpy(np.array(v)) for k, v in weights.to_timm(model, variables).items()}
        torch.save({"state_dict": state, "epoch": 3}, folder / "w.pth")
    files = {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
    shutil.rmtree(folder)
    return model, files


def weights_file(rng: random.Random, folder: Path) -> str:
    """Bytes of a weight file."""
    model, files = weight_files()
    name = rng.choice(sorted(files))
    path = folder / name
    path.write_bytes(spoil(rng, files[name]))
    with quiet(), contextlib.suppress(JaxkdError):
        found = weights.load(model, path)
        if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found)):
            return f"{name}: numbers that are not finite in silence"
    return ""


def images(rng: random.Random, folder: Path) -> str:
    """Bytes of an image file."""
    form = rng.choice(("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF"))
    picture = Image.fromarray(np.random.default_rng(rng.randrange(9)).integers(0, 256, (24, 18, 3), np.uint8))
    buffer = io.BytesIO()
    picture.save(buffer, form)
    from jaxkd.data.transforms.decode import decode_rgb

    with quiet(), contextlib.suppress(JaxkdError):
        decoded = decode_rgb(spoil(rng, buffer.getvalue()), "fault")
        if decoded.mode != "RGB" or 0 in decoded.size:
            return f"{form}: decoded as {decoded.mode} {decoded.size}"
    return ""


@functools.cache
def sharded() -> tuple[Path, list[Any]]:
    """(a folder of shards, its records)."""
    from jaxkd.data.prepare.shards import ShardOptions, convert
    from jaxkd.data.sources.folder import FolderSource

    root = Path(tempfile.mkdtemp(prefix="faults-shards-"))
    noise = np.random.default_rng(0)
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            (root / "images" / split / name).mkdir(parents=True)
            for i in range(3):
                pixels = noise.integers(0, 256, (9, 9, 3), np.uint8)
                Image.fromarray(pixels).save(root / "images" / split / name / f"{i}.png")
        convert(FolderSource(root / "images", split), root / "shards" / split, ShardOptions(shard_bytes=1_000))
    return root / "shards", records(root / "shards")


def records(folder: Path) -> list[Any]:
    """Everything that both splits say: classes, labels, names and bytes."""
    out: list[Any] = []
    for split in ("train", "val"):
        source = data.open_source(str(folder), split)
        out += [source.class_names, source.class_words, source.class_counts.tolist(), len(source)]
        relative = [os.path.relpath(source.name(i).split(":")[0], folder) for i in range(len(source))]
        out += [
            (source.label(i), relative[i], source.name(i).split("(")[-1], source.bytes(i)) for i in range(len(source))
        ]
    return out


def shards(rng: random.Random, folder: Path) -> str:
    """One file of a folder of shards."""
    original, expected = sharded()
    shutil.copytree(original, folder / "shards")
    path = spoil_one(rng, folder / "shards")
    with quiet(), contextlib.suppress(JaxkdError):
        if records(folder / "shards") != expected:
            return f"{path.name}: other data in silence"
    return ""


ODD = (
    *("", "0x10", "x", "1_000", str(2**63), "~nosuchuser", "nan", "inf", "-1", "1e-9", "None", "True", "()", "(1,2)"),
    *("{}", "'a'", "1e400", "-0.0", "\x00", "é🙂", "[[[", "0", "1.5", "((1,2),(3,4))", "{'a':1}", " ", "9" * 400),
)


def configs(rng: random.Random, folder: Path) -> str:
    """One or two fields of a config, or the config.json of a run."""
    if rng.random() < 0.3:
        return _run_config(rng, folder)
    names = sorted(fields.flatten(fields.base()))
    recipe = rng.choice(("supervised.py:deit_tiny_patch16_224", "deit_cait.py:embedded", "mdbn_x4.py:embedded"))
    argv = [f"--config={Path(__file__).parents[2] / 'configs' / recipe}", "--workdir=w"]
    argv += [f"--config.{rng.choice(names)}={rng.choice(ODD)}" for _ in range(rng.randint(1, 2))]
    with quiet(), contextlib.suppress(JaxkdError):
        config = main.parse(argv).config
        check_stages(config)
        if not config.stages:
            validate(config)
    return ""


def _decisive(config: dict[str, Any]) -> dict[str, Any]:
    """The fields of a run that decide what it computes; the others may be changed while it goes on."""
    free = ("data.workers", "log.", "checkpoint.", "dynamics.", "eval.batch_size", "train.steps")
    flat = fields.flatten(ConfigDict(config))
    return {name: value for name, value in flat.items() if not name.startswith(free)}


def _run_config(rng: random.Random, folder: Path) -> str:
    shutil.copytree(trained(), folder / "run")
    path = folder / "run" / "config.json"
    before = json.loads(path.read_text())
    path.write_bytes(spoil(rng, path.read_bytes()))
    with quiet(), contextlib.suppress(JaxkdError):
        _, config, _ = train.load_run_weights(folder / "run")
        one, other = (_decisive(c) for c in (config, before))
        changed = [name for name in one | other if one.get(name) != other.get(name)]
        if changed:
            return f"another {changed[0]} of a run in silence"
    return ""
