"""`jaxkd analyze`: from images to a folder of results, and what it says to mistakes."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from jaxkd import analyze
from jaxkd.cli.networks import resolve
from jaxkd.errors import JaxkdError

TINY = ["--model-arg=img_size=32", "--model-arg=patch_size=8", "--model-arg=embed_dim=24", "--model-arg=depth=3"]
DEIT = ["--model=deit_tiny_patch16_224", *TINY, "--model-arg=num_heads=2", "--model-arg=num_classes=10"]
CAIT = ["--model=cait_s24_224", *TINY, "--model-arg=num_heads=2", "--model-arg=num_classes=10"]
FEW = ["--permutations=2", "--bootstrap=5", "--saliency=0", "--no-figures"]


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    rng = np.random.default_rng(0)
    for label in ("ant", "bee"):
        (folder / label).mkdir(parents=True)
        for i in range(3):
            Image.fromarray(rng.integers(0, 256, (40, 48, 3), np.uint8)).save(folder / label / f"{i}.png")
    return folder


@pytest.mark.slow
def test_two_networks_side_by_side(pictures, tmp_path, capsys):
    out = tmp_path / "out"
    assert analyze.main([*CAIT, "--label=teacher", *DEIT, f"--images={pictures}", f"--out={out}", *FEW]) == 0
    said = capsys.readouterr().out
    assert all(f"{n}, random weights: 6 images, 3 layers" in said for n in ("teacher", "deit_tiny_patch16_224"))
    results = json.loads((out / "results.json").read_text())
    teacher, student = results["models"]
    assert teacher["layers"] == ["block_0", "block_1", "block_2"]
    assert teacher["last"]["layer"] == "block_2"
    assert set(teacher["per_layer"]) >= {
        "intensity",
        "entropy",
        "activation_mean",
        "gradient",
        "rank_99",
        "stable_rank",
    }
    assert np.all(np.asarray(teacher["per_layer"]["gradient"]["mean"]) > 0)
    comparison = results["comparisons"][0]
    assert comparison["teacher"] == "teacher" and np.shape(comparison["cka"]) == (3, 3)
    assert len(student["spectrum"]) == 3 and len(student["spectrum"][0]) == 24
    for name in ("per_layer", "spectrum", "ranks", "pca", "sep", "entropy_by_layer_teacher", "cka"):
        assert (out / f"{name}.csv").read_text().count("\n") > 1, name
    assert not list(out.glob("jaxkd-tokens-*")), "scratch files are deleted"


def test_class_attention_blocks_by_pattern(pictures, tmp_path):
    out = tmp_path / "o"
    assert analyze.main([*CAIT, "--layers=cls_*,block_*", f"--images={pictures}", f"--out={out}", *FEW]) == 0
    model = json.loads((out / "results.json").read_text())["models"][0]
    assert model["layers"] == ["block_0", "block_1", "block_2", "cls_block_0", "cls_block_1"]
    assert model["last"]["layer"] == "block_2" and model["tokens"][-1] == 1
    assert model["per_layer"]["rank_99"]["mean"][-1] is None and model["per_layer"]["entropy"]["mean"][-1] > 0


def test_one_image_of_each_folder(pictures, tmp_path, capsys):
    assert analyze.main([*DEIT, f"--images={pictures}", "--per-class=1", f"--out={tmp_path / 'o'}", *FEW]) == 0
    assert "2 images" in capsys.readouterr().out


def test_a_broken_image_is_named_and_the_rest_analysed(pictures, tmp_path, capsys):
    (pictures / "ant" / "1.png").write_bytes(b"no image")
    assert analyze.main([*DEIT, f"--images={pictures}", f"--out={tmp_path / 'o'}", *FEW]) == 0
    said = capsys.readouterr().out
    assert "5 images" in said and "1.png" in said


def test_a_function_of_the_user(pictures, tmp_path, monkeypatch, capsys):
    (tmp_path / "mine.py").write_text(
        "import numpy as np\n"
        "def features(images):\n"
        "    assert images.shape[1:] == (16, 16, 3) and images.max() <= 1\n"
        "    return {'stem': images[:, ::2, ::2], 'tokens': images.reshape(len(images), -1, 12) - 0.5}\n"
        "def flat(images):\n"
        "    return {'stem': images[:, 0]}\n"
        "def wrong(images):\n"
        "    return {'stem': images[:, 0, 0]}\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    command = ["--image-size=16", f"--images={pictures}", *FEW]
    assert analyze.main(["--model=mine:features", *command, f"--out={tmp_path / 'o'}"]) == 0
    results = json.loads((tmp_path / "o" / "results.json").read_text())
    assert results["models"][0]["layers"] == ["stem", "tokens"]
    assert results["models"][0]["grids"] == [[8, 8], None]
    assert analyze.main(["--model=mine:flat", *command, f"--out={tmp_path / 'p'}"]) == 0
    said = failing(["--model=mine:wrong", *command, f"--out={tmp_path / 'q'}"], capsys)
    assert '"stem" of "mine:wrong" has shape' in said and "(B, N, C)" in said
    assert 'no function "feature".' in failing(["--model=mine:feature", *command, f"--out={tmp_path / 'q'}"], capsys)
    assert 'Did you mean "features"' in failing(["--model=mine:feature", *command, f"--out={tmp_path / 'q'}"], capsys)


def failing(argv, capsys):
    with pytest.raises(SystemExit) as stopped:
        analyze.main(argv)
    assert stopped.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "No network was given"),
        (["--weights=nowhere.safetensors"], "do not exist"),
        (["--label=x", *DEIT], "stands before any --model"),
        ([*DEIT, "--layers=block_0,block_3"], '"block_3" does not exist'),
        ([*DEIT, "--last=block_7"], 'last="block_7" is not among the layers'),
        ([*DEIT, "--entropy-range=wide"], '--entropy-range="wide" is not a range'),
        ([*DEIT, "--entropy-range=3:1"], '--entropy-range="3:1" is not a range'),
        ([*DEIT, "--batch-size=0"], "--batch-size=0 is out of range"),
        ([*DEIT, "--gradients=loss"], "--gradients=loss needs labels"),
        ([*DEIT, "--checkpoints=runs"], "were both given"),
        (["--checkpoints=runs"], "is not a work directory"),
        (["--model=deit_tinny_patch16_224"], 'Did you mean "deit_tiny_patch16_224"'),
        ([*DEIT, "--model-arg=depth"], "has no value"),
        (["--model=no_such_module:f"], "cannot be imported"),
        ([*DEIT, "--intrpolation=x"], "was not understood"),
        ([*DEIT, "--layers=attn_*"], "holds attention"),
        ([*DEIT, "--layers=value_0"], '"value_0" holds attention'),
        ([*DEIT, "--entropy-range=-inf:inf"], "is not a range"),
        ([*DEIT, "--seed=-1"], "--seed=-1 is out of range"),
        (["--model=mdbn_x2"], "--permutations=2 was given, but mdbn_x2 is a super-resolution network"),
        ([*DEIT, "--step=3"], "has no --weights"),
        ([*DEIT, "--variant=best"], "argument --variant: invalid choice"),
        ([*DEIT, "--old-grid=2x8"], "--old-grid=2x8 was given for deit_tiny_patch16_224, which has no --weights"),
        ([*DEIT, "--image-size=64"], "--model-arg=img_size=SIZE"),
    ],
    ids=lambda v: v[-1] if isinstance(v, list) and v else None,
)
def test_mistakes_are_explained(arguments, words, pictures, tmp_path, capsys):
    said = failing([*arguments, f"--images={pictures}", f"--out={tmp_path / 'o'}", *FEW], capsys)
    assert words in said and "Traceback" not in said
    assert not (tmp_path / "o" / "results.json").exists()


def test_missing_and_empty_folders_and_earlier_results(pictures, tmp_path, capsys):
    said = failing([*DEIT, f"--images={tmp_path / 'picture'}", f"--out={tmp_path / 'o'}", *FEW], capsys)
    assert "does not exist" in said and 'Did you mean "pictures"' in said
    (tmp_path / "empty").mkdir()
    assert "holds no images" in failing([*DEIT, f"--images={tmp_path / 'empty'}", f"--out={tmp_path / 'o'}"], capsys)
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "results.json").write_text("{}")
    said = failing([*DEIT, f"--images={pictures}", f"--out={tmp_path / 'old'}", *FEW], capsys)
    assert "holds an earlier report" in said
    assert (tmp_path / "old" / "results.json").read_text() == "{}"


def test_an_unusable_out_folder(pictures, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    said = failing([*DEIT, f"--images={pictures}", f"--out={tmp_path / 'file' / 'sub'}", *FEW], capsys)
    assert "cannot be used" in said and "Traceback" not in said


def test_overwriting_leaves_nothing_of_the_earlier_report(pictures, tmp_path):
    out = tmp_path / "o"
    assert analyze.main([*DEIT, f"--images={pictures}", f"--out={out}", *FEW]) == 0
    assert (out / "permutation.csv").exists()
    again = ["--permutations=0", "--saliency=0", "--no-figures", "--overwrite"]
    assert analyze.main([*DEIT, f"--images={pictures}", f"--out={out}", *again]) == 0
    assert not (out / "permutation.csv").exists() and (out / "results.json").exists()


def test_labels_are_made_distinct():
    args = analyze._parser().parse_args([*DEIT, *DEIT, "--label=b", "--images=x", "--out=y"])
    assert [w.label for w in resolve(args.networks)] == ["deit_tiny_patch16_224", "b"]
    args = analyze._parser().parse_args([*DEIT, *DEIT, "--images=x", "--out=y"])
    assert [w.label for w in resolve(args.networks)] == ["deit_tiny_patch16_224 (1)", "deit_tiny_patch16_224 (2)"]


def test_the_parser_raises_config_error():
    with pytest.raises(JaxkdError, match="was not understood"):
        analyze._parser().parse_args(["--images=x"])


@pytest.mark.slow
def test_a_report_with_figures_saliency_and_every_file(pictures, tmp_path):
    out = tmp_path / "out"
    command = [*CAIT, *DEIT, f"--images={pictures}", f"--out={out}", "--permutations=2", "--bootstrap=5"]
    assert analyze.main([*command, "--saliency=1"]) == 0
    page = (out / "report.html").read_text()
    assert "http://" not in page.replace("http://www.w3.org", "") and "<script src" not in page
    assert len(list((out / "figures").glob("*.png"))) == len(list((out / "figures").glob("*.pdf"))) > 8
    assert {p.suffix for p in (out / "saliency").iterdir()} == {".png", ".gif"}
    assert json.loads((out / "results.json").read_text())["saliency"][0]["completeness_error"] is not None


def test_functions_of_users_answer_in_many_ways(pictures, tmp_path, monkeypatch, capsys, caplog):
    (tmp_path / "theirs.py").write_text(
        "import numpy as np\n"
        "class Tensor:\n"
        "    def __init__(self, x): self.x = x\n"
        "    def __array__(self, *_, **__): raise RuntimeError('requires grad')\n"
        "    def detach(self): return self\n"
        "    def cpu(self): return self\n"
        "    def is_floating_point(self): return True\n"
        "    def float(self): return self.x\n"
        "def maps(x): return {'a': np.repeat(x[:, ::4, ::4], 4, axis=-1), 'b': x[:, ::2, ::2] - 0.5}\n"
        "def nchw(x): return {k: v.transpose(0, 3, 1, 2) for k, v in maps(x).items()}\n"
        "def tensors(x): return {k: Tensor(v) for k, v in maps(x).items()}\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    command = ["--image-size=16", f"--images={pictures}", "--no-figures", "--permutations=2", "--bootstrap=0"]
    found = {}
    for name, more in (("maps", []), ("nchw", []), ("nchw", ["--layout=nchw"]), ("tensors", ["--layout=nhwc"])):
        caplog.clear()
        out = tmp_path / f"{name}{len(more)}"
        assert analyze.main([f"--model=theirs:{name}", *command, *more, f"--out={out}"]) == 0
        (model,) = json.loads((out / "results.json").read_text())["models"]
        warned = "add --layout=nchw" in caplog.text
        assert warned == ("add --layout=nchw" in capsys.readouterr().out) == (name == "nchw" and not more)
        found[name, len(more)] = model
    wanted = found["maps", 0]
    assert wanted["channels"] == [12, 3] and wanted["last"]["permutation"]["ci"][0] == [None, None]
    for other in (found["nchw", 1], found["tensors", 1]):
        assert other["channels"] == [12, 3] and other["per_layer"] == wanted["per_layer"]
    assert found["nchw", 0]["channels"] == [4, 8]
    said = failing([*DEIT, f"--images={pictures}", "--layout=nchw", f"--out={tmp_path / 'o'}", *FEW], capsys)
    assert "--layout=nchw is for the maps of a function of your own" in said


def test_a_log_file_names_every_phase(pictures, tmp_path, capsys):
    argv = [*DEIT, f"--images={pictures}", "--no-figures", "--permutations=2", "--bootstrap=3", "--saliency=0"]
    assert analyze.main([*argv, f"--out={tmp_path / 'o'}"]) == 0
    said = capsys.readouterr().err
    for phase in (
        "loading",
        "compiling, first images",
        "statistics",
        "PCA",
        "permutations",
        "bootstrap",
        "null models",
    ):
        assert phase in said, phase
