"""The program that enlarges pictures: what it writes, what it keeps, and what it says to what it cannot do."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from jaxkd import models, upscale, weights
from jaxkd.data import imresize
from jaxkd.superres import sixteen_bits
from jaxkd.superres.enlarge_files import spread_colours
from jaxkd.superres.image_io import read_picture
from jaxkd.superres.tiling import SIDES

SMALL = {"num_feat": 8, "num_block": 1}
ARGS = [f"--model-arg={k}={v}" for k, v in SMALL.items()]


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    """(model, variables, options of the command line) of a small MDBN x2 that keeps a picture recognisable."""
    model = models.create("mdbn_x2", **SMALL)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda p: rng.uniform(-0.2, 0.2, p.shape).astype(np.float32), shapes)
    variables["params"]["conv_last"]["bias"] += np.float32(0.5)
    file = tmp_path_factory.mktemp("weights") / "w.safetensors"
    weights.save_safetensors(file, model, variables)
    return model, variables, ["--model=mdbn_x2", f"--weights={file}", *ARGS]


def floats(network, pixels: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 -> (2 H, 2 W, 3) in one pass."""
    model, variables, _ = network
    return np.asarray(jax.jit(model.apply)(variables, (pixels / np.float32(255))[None])[0][0])


def whole(network, pixels: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 -> (2 H, 2 W, 3) uint8 in one pass."""
    return np.round(np.clip(floats(network, pixels), 0, 1) * 255).astype(np.uint8)


def picture(path, *shape: int, kind=np.uint8, **options) -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(len(path.name)).integers(0, np.iinfo(kind).max, shape).astype(kind)
    Image.fromarray(pixels).save(path, **options)
    return pixels


def enlarged(capsys, *argv: str, code: int = 0) -> tuple[dict, str]:
    """(the line of JSON, what was said on stderr)."""
    assert upscale.main(list(argv)) == code
    shown = capsys.readouterr()
    line, data = shown.out.strip().splitlines()
    data = json.loads(data)
    assert line.startswith(f"mdbn_x2: {len(data['done'])} enlarged x2, {len(data['failed'])} left out, ")
    return data, shown.err


def complaint(capsys, *argv: str) -> str:
    with pytest.raises(SystemExit) as caught:
        upscale.main(list(argv))
    assert caught.value.code == 2
    shown = capsys.readouterr()
    assert not shown.out and "Traceback" not in shown.err
    return shown.err.strip().splitlines()[-1]


def test_a_folder_with_all_kinds_of_pictures(network, tmp_path, capsys):
    source, out = tmp_path / "in", tmp_path / "out"
    colour = picture(source / "colour.png", 41, 53, 3)
    picture(source / "deep" / "photo.jpg", 20, 30, 3, exif=_turned_right())
    picture(source / "grey.tif", 20, 30)
    picture(source / "grey16.png", 21, 30, kind=np.uint16)
    clear = picture(source / "clear.png", 41, 53, 4)
    picture(source / "one.png", 1, 1, 3)
    (source / "notes.txt").write_text("no picture")
    data, said = enlarged(capsys, *network[2], f"--in={source}", f"--out={out}", "--tile=26")
    assert data["failed"] == [] and "6 pictures" in said and "colour.png 106 x 82, " in said
    sizes = {str(p.relative_to(out)): Image.open(p) for p in sorted(out.rglob("*")) if p.is_file()}
    assert {n: (i.mode, i.size) for n, i in sizes.items()} == {
        "clear.png": ("RGBA", (106, 82)),
        "colour.png": ("RGB", (106, 82)),
        "deep/photo.jpg": ("RGB", (40, 60)),  # upright
        "grey.tif": ("L", (60, 40)),
        "grey16.png": ("I;16", (60, 42)),
        "one.png": ("RGB", (2, 2)),
    }
    np.testing.assert_array_equal(np.asarray(sizes["colour.png"]), whole(network, colour))
    colours = spread_colours(clear[..., :3], clear[..., 3])
    np.testing.assert_array_equal(np.asarray(sizes["clear.png"])[..., :3], whole(network, colours))
    np.testing.assert_array_equal(np.asarray(sizes["clear.png"])[..., 3], imresize(clear[..., 3], 2))
    assert sizes["deep/photo.jpg"].getexif() == {0x010F: "camera"}
    assert len(np.unique(np.asarray(sizes["grey16.png"]))) > 300


def _turned_right() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "camera"
    return exif


def test_a_file_to_a_file_of_another_format(network, tmp_path, capsys):
    pixels = picture(tmp_path / "a.png", 9, 12, 3)
    data, _ = enlarged(capsys, *network[2], f"--in={tmp_path / 'a.png'}", f"--out={tmp_path / 'deep' / 'b.tif'}")
    assert data["done"][0]["out"] == str(tmp_path / "deep" / "b.tif") and data["done"][0]["size"] == [18, 24]
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "deep" / "b.tif")), whole(network, pixels))


def test_a_pattern_and_a_format(network, tmp_path, capsys):
    for name in ("a.png", "deep/b.png", "deep/c.jpg"):
        picture(tmp_path / "in" / name, 9, 12, 3)
    out = tmp_path / "out"
    enlarged(capsys, *network[2], f"--in={tmp_path}/in/**/*.png", f"--out={out}", "--format=webp", "--quality=100")
    assert sorted(str(p.relative_to(out)) for p in out.rglob("*.*")) == ["a.webp", "deep/b.webp"]
    assert Image.open(out / "a.webp").format == "WEBP"


def test_what_fails_is_named_and_the_rest_is_done(network, tmp_path, capsys):
    source, out = tmp_path / "in", tmp_path / "out"
    picture(source / "a.png", 64, 64, 3)
    picture(source / "strip.webp", 3, 8_192, 3)
    picture(source / "z.png", 9, 12, 3)
    content = (source / "a.png").read_bytes()
    (source / "short.png").write_bytes(content[: len(content) // 2])
    (source / "empty.png").touch()
    (source / "words.jpg").write_text("no picture")
    data, said = enlarged(capsys, *network[2], f"--in={source}", f"--out={out}", code=1)
    assert sorted(p.name for p in out.iterdir()) == ["a.png", "z.png"]
    for name, words in (
        ("short.png", "image file is truncated"),
        ("empty.png", "is empty (0 bytes)"),
        ("words.jpg", "no picture format is recognised"),
        ("strip.webp", "would become 16,384 x 6 pixels, and WebP holds at most 16,383"),
    ):
        about = [line for line in said.splitlines() if name in line]
        assert len(about) == 1 and about[0].startswith("jaxkd: left out. ") and words in about[0]
    assert len(data["failed"]) == 4
    # the same again: nothing is overwritten, unless asked for
    before = (out / "a.png").stat().st_mtime_ns
    data, said = enlarged(capsys, *network[2], f"--in={source}", f"--out={out}", code=1)
    assert said.count("exists already") == 2 and data["done"] == [] and (out / "a.png").stat().st_mtime_ns == before
    data, _ = enlarged(capsys, *network[2], f"--in={source}/[az].png", f"--out={out}", "--overwrite")
    assert len(data["done"]) == 2 and (out / "a.png").stat().st_mtime_ns != before


def test_a_folder_that_cannot_be_written_to(network, tmp_path, capsys):
    source, out = tmp_path / "in", tmp_path / "out"
    picture(source / "a" / "1.png", 9, 12, 3)
    picture(source / "b" / "2.png", 9, 12, 3)
    out.mkdir()
    (out / "a").touch()  # root may write to every folder, but not into a file
    data, said = enlarged(capsys, *network[2], f"--in={source}", f"--out={out}", code=1)
    assert len(data["done"]) == 1 and f'"{out}/a/1.png" cannot be written' in said
    assert "cannot be made" in complaint(capsys, *network[2], f"--in={source}", "--out=/proc/nothing")


def test_a_strip_of_40000_pixels(network, tmp_path, capsys):
    pixels = picture(tmp_path / "strip.png", 2, 40_000)
    enlarged(capsys, *network[2], f"--in={tmp_path / 'strip.png'}", f"--out={tmp_path / 'out'}", "--batch-size=8")
    made = np.asarray(Image.open(tmp_path / "out" / "strip.png"))
    assert made.shape == (4, 80_000)
    alone = floats(network, np.repeat(pixels[:, -100:, None], 3, 2)) @ np.float32([0.299, 0.587, 0.114])
    seen = 2 * (100 - network[0].receptive_field)  # the end of the strip, as far as its cut does not show
    assert np.abs(made[:, -seen:] - np.clip(alone[:, -seen:], 0, 1) * 255).max() < 0.51


def test_ensemble_bf16_and_small_windows_are_passed_on(network, tmp_path, capsys):
    picture(tmp_path / "a.png", 30, 40, 3)
    results = {}
    for option in ("--tile=0", "--tile=20", "--ensemble", "--compute=bfloat16"):
        out = tmp_path / option
        data, _ = enlarged(capsys, *network[2], f"--in={tmp_path / 'a.png'}", f"--out={out}", option)
        results[option] = np.asarray(Image.open(out / "a.png")).astype(int)
    assert (data["compute"], data["tile"], data["ensemble"]) == ("bfloat16", SIDES[2], False)
    difference = {k: np.abs(v - results["--tile=0"]).max() for k, v in results.items()}
    assert difference["--tile=20"] == 0 and difference["--ensemble"] > 5 and 0 < difference["--compute=bfloat16"] < 5


def test_compare_page(network, tmp_path, capsys):
    small = picture(tmp_path / "in" / "a&b.png", 20, 30, 3)
    large = picture(tmp_path / "in" / "large.png", 400, 700)
    picture(tmp_path / "in" / "clear.png", 20, 30, 4)
    out = tmp_path / "out"
    argv = [*network[2], f"--in={tmp_path / 'in'}", f"--out={out}", "--compare"]
    data, _ = enlarged(capsys, *argv)
    page = (out / "compare.html").read_text()
    assert data["compare"] == str(out / "compare.html") and page.count('type="range"') == 3
    assert "a&amp;b.png" in page and "a&b.png" not in page and 'name="viewport"' in page
    assert not re.search(r'(src|href)="(?!data:)|https?://|@import|url\(', page)
    shown = [Image.open(io.BytesIO(base64.b64decode(t))) for t in re.findall(r"jpeg;base64,([^\"]+)", page)]
    assert [i.size for i in shown] == [(60, 40)] * 4 + [(1024, 768)] * 2
    made = np.asarray(Image.open(out / "large.png"))
    top, left = 16, 188
    for got, want in (
        (shown[0], imresize(small, 2)),
        (shown[1], whole(network, small)),
        (shown[4], imresize(large, 2)[top : top + 768, left : left + 1024]),
        (shown[5], made[top : top + 768, left : left + 1024]),
    ):
        assert np.abs(np.asarray(got).astype(int) - want).mean() < 4  # JPEG of noise
    assert "1,400 x 800 pixels, the 1024 x 768 in the middle shown" in page
    assert "compare.html" in complaint(capsys, *argv)
    enlarged(capsys, *argv, "--overwrite")


def test_a_work_directory_needs_no_model(network, tmp_path, capsys, monkeypatch):
    from jaxkd.weights import network as network_module

    _, variables, _ = network
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    config = {"student": {"name": "mdbn_x2", "args": {**SMALL, "img_size": None}}, "ema": {"decay": 0.999}}
    (run / "config.json").write_text(json.dumps(config))
    asked = []

    def load(path, *, variant=None, step="", **_):
        asked.append((variant, step))
        return variables, config, f"step 7 of {path} ({variant})"

    monkeypatch.setattr(network_module, "load_run_weights", load)
    pixels = picture(tmp_path / "a.png", 9, 12, 3)
    argv = [f"--weights={run}", f"--in={tmp_path / 'a.png'}"]
    data, said = enlarged(capsys, *argv, f"--out={tmp_path / 'out'}")
    assert "step 7 of" in said and "step 7 of" in data["weights"]
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "out" / "a.png")), whole(network, pixels))
    enlarged(capsys, *argv, f"--out={tmp_path / 'ema'}", "--variant=ema", "--step=7", "--model=mdbn_x2")
    assert asked == [(None, ""), ("ema", "7")]
    assert "trained mdbn_x2" in complaint(capsys, *argv, f"--out={tmp_path / 'no'}", "--model=mdbn_x4")


def test_wrong_commands(network, tmp_path, capsys):
    picture(tmp_path / "in" / "a.png", 9, 12, 3)
    (tmp_path / "none").mkdir()
    files = [f"--in={tmp_path / 'in'}", f"--out={tmp_path / 'out'}"]
    file = network[2][1]
    for argv, words in (
        (["--model=mdbn_x2", *files], "--weights is missing"),
        ([*network[2], files[0]], "the following arguments are required: --out"),
        ([*network[2], files[1]], "the following arguments are required: --in"),
        ([file, *files], "--model is missing"),
        ([*network[2], *files, "--tiel=3"], "The command line was not understood"),
        ([*network[2], *files, "--tile=10"], "tile=10 is too small"),
        ([*network[2], *files, "--tile=-1"], "--tile=-1 is out of range"),
        ([*network[2], *files, "--quality=0"], "--quality=0 is out of range"),
        ([*network[2], *files, "--format=gif"], "The command line was not understood"),
        ([*network[2], *files, "--step=3"], 'step="3" was given'),
        ([*network[2], *files, "--model-arg=num_feat"], "NAME=VALUE"),
        ([*network[2], f"--in={tmp_path / 'none'}", files[1]], "holds no pictures"),
        ([*network[2], f"--in={tmp_path / 'inn'}", files[1]], 'does not exist. Did you mean "in"?'),
        ([*network[2], files[0], f"--out={tmp_path / 'in'}"], "would replace the picture itself"),
        (["--model=deit_tiny_patch16_224", file, *files], "classifies images and cannot enlarge them"),
        (["--model=mdbn_x5", file, *files], 'The model "mdbn_x5" is not registered'),
        (["--model=mdbn_x2", "--weights=/none.safetensors", *files], '"/none.safetensors"'),
    ):
        assert words in complaint(capsys, *argv), argv
    with pytest.raises(SystemExit):
        upscale.main(["--model=mdbn_x4", file, *ARGS, *files])
    said = capsys.readouterr().err
    assert said.startswith("jaxkd: ") and 'models.create("mdbn_x2", num_feat=8, num_block=1)' in said
    assert not (tmp_path / "out").exists()


def test_too_little_memory_for_one_leaves_it_out(network, tmp_path, capsys, monkeypatch):
    from jaxkd.superres.tiling import Enlarger

    for name, size in (("a.png", 9), ("b.png", 10)):
        picture(tmp_path / "in" / name, size, 12, 3)
    parts = Enlarger.parts

    def short(self, image):
        if len(image) == 9:
            raise MemoryError
        return parts(self, image)

    monkeypatch.setattr(Enlarger, "parts", short)
    _, said = enlarged(capsys, *network[2], f"--in={tmp_path / 'in'}", f"--out={tmp_path / 'out'}", code=1)
    assert 'a.png" does not fit into memory' in said
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["b.png"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_leave_no_half_file(network, tmp_path, capsys, monkeypatch, number):
    from jaxkd.superres.tiling import Enlarger

    def interrupt(*_):
        signal.raise_signal(number)
        raise AssertionError

    picture(tmp_path / "a.png", 9, 12, 3)
    monkeypatch.setattr(Enlarger, "parts", interrupt)
    argv = [*network[2], f"--in={tmp_path / 'a.png'}", f"--out={tmp_path / 'out'}"]
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
    try:
        assert upscale.main(argv) == 128 + number
    finally:
        signal.signal(signal.SIGINT, before)
    assert "stopped" in capsys.readouterr().err and not list((tmp_path / "out").iterdir())
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_names_of_any_bytes_and_several_sources(network, tmp_path, capsys):
    names = [b"caf\xe9.png", b"x" * 249 + b".png", b"a\nb.png", b"<i>.png"]
    for name in names:
        picture(tmp_path / "in" / os.fsdecode(name), 8, 8, 3)
    picture(tmp_path / "one.bmp", 8, 8, 3)
    argv = [f"--in={tmp_path / 'in'}", "--in", str(tmp_path / "one.bmp"), f"--out={tmp_path / 'out'}", "--compare"]
    data, _ = enlarged(capsys, *network[2], *argv)
    assert set(os.listdir(os.fsencode(tmp_path / "out"))) == {*names, b"one.png", b"compare.html"}
    assert "caf\ufffd.png" in (tmp_path / "out" / "compare.html").read_text() and len(data["done"]) == 5
    long = tmp_path / "in" / ("x" * 249 + ".png")
    data, _ = enlarged(capsys, *network[2], f"--in={long}", f"--out={tmp_path / 'two' / long.name}", "--compare")
    assert data["compare"].endswith("x_compare.html") and os.path.exists(data["compare"])


def test_transparent_edges_and_sixteen_bits(tmp_path, capsys, repeating):
    y, x = np.mgrid[:40, :40]
    disc = np.zeros((40, 40, 4), np.uint8)
    disc[(y - 20) ** 2 + (x - 20) ** 2 < 144] = (255, 0, 0, 255)
    Image.fromarray(disc).save(tmp_path / "disc.png")
    ramp = np.tile(np.linspace(20_000, 24_000, 100).astype(np.uint16)[None, :, None], (8, 1, 3))
    with open(tmp_path / "ramp.png", "wb") as file:
        sixteen_bits.write_png(file, ramp)
    out = tmp_path / "out"
    assert upscale.main([*repeating, f"--in={tmp_path}/*.png", f"--out={out}"]) == 0
    made = np.asarray(Image.open(out / "disc.png")).astype(int)
    assert made[..., 0][made[..., 3] >= 64].min() == 255 and made[..., 1:3][made[..., 3] >= 64].max() == 0
    wide = read_picture(out / "ramp.png").pixels
    assert wide.shape == (16, 200, 3) and wide.dtype == np.uint16 and len(np.unique(wide[8, 2:-2, 0])) > 190
    capsys.readouterr()


@pytest.fixture(scope="module")
def repeating(tmp_path_factory) -> list[str]:
    """Arguments of an EDSR that repeats every pixel twice and blurs the result by (1, 2, 1) / 4."""
    state = {}
    layers = {"conv_first": (3, 3), "body.0.conv1": (3, 3), "body.0.conv2": (3, 3), "conv_after_body": (3, 3)}
    for name, (inputs, outputs) in (layers | {"upsample.0": (3, 12), "conv_last": (3, 3)}).items():
        state[f"{name}.weight"] = np.zeros((outputs, inputs, 3, 3), np.float32)
        state[f"{name}.bias"] = np.zeros(outputs, np.float32)
    for i in range(3):
        state["conv_first.weight"][i, i, 1, 1] = 1
        state["upsample.0.weight"][4 * i : 4 * i + 4, i, 1, 1] = 1
        state["conv_last.weight"][i, i] = np.outer([1, 2, 1], [1, 2, 1]) / 16
    file = tmp_path_factory.mktemp("repeating") / "w.safetensors"
    save_file(state, file)
    return ["--model=edsr_x2", "--model-arg=num_feat=3", "--model-arg=num_block=1", f"--weights={file}"]
