"""`jaxkd analyze` of super-resolution networks: what it reads, what it writes, what it says to mistakes."""

from __future__ import annotations

import csv
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jaxkd import analyze, models, weights
from jaxkd.analysis.pipeline.branches import BranchNetwork, analyse_branches, untrained
from jaxkd.data import imresize

SMALL = {"num_feat": 8, "num_block": 1}
ARGS = [f"--model-arg={k}={v}" for k, v in SMALL.items()]
DEIT = ["--model=deit_tiny_patch16_224", "--model-arg=img_size=32", "--model-arg=patch_size=8"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three large pictures of several sizes, all of which give more than 16 pixels at x2."""
    root = tmp_path_factory.mktemp("large")
    rng = np.random.default_rng(0)
    for i, size in enumerate(((48, 41), (60, 52), (37, 70))):
        Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)).save(root / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Weights files of an MDBN and an EDSR, drawn apart from any seed of the command line."""
    root, files = tmp_path_factory.mktemp("weights"), {}
    rng = np.random.default_rng(3)
    for name in ("mdbn_x2", "edsr_x2"):
        model = models.create(name, **SMALL)
        shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
        variables = jax.tree.map(lambda p: rng.uniform(-0.2, 0.2, p.shape).astype(np.float32), shapes)
        weights.save_safetensors(root / f"{name}.safetensors", model, variables)
        files[name] = (root / f"{name}.safetensors", model, variables)
    return files


def network(trained, name: str, label: str = "") -> list[str]:
    options = [f"--model={name}", f"--weights={trained[name][0]}", *ARGS]
    return [*options, f"--label={label}"] if label else options


def results_of(out) -> dict:
    return json.loads((out / "results.json").read_text())


def failing(argv, capsys) -> str:
    with pytest.raises(SystemExit) as stopped:
        analyze.main([str(a) for a in argv])
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said
    return said


@pytest.mark.slow
def test_an_mdbn_its_one_branch_control_and_both_untrained(folder, trained, tmp_path, capsys):
    out = tmp_path / "out"
    both = [*network(trained, "mdbn_x2", "mine <b>"), *network(trained, "edsr_x2")]
    assert analyze.main([*both, f"--images={folder}", f"--out={out}", "--seed=7"]) == 0
    said = capsys.readouterr().out
    assert "mine <b>: differentiation " in said and "edsr_x2 has one branch per block" in said
    results = results_of(out)
    labels = ["mine <b>", "mine <b>, untrained", "edsr_x2", "edsr_x2, untrained"]
    assert [n["label"] for n in results["networks"]] == labels
    assert [n["control"] for n in results["networks"]] == [labels[1], "", labels[3], ""]
    assert results["networks"][1]["weights"] == "random, seed 7" and results["skipped"] == []
    # the same numbers as the functions give for images that are shrunk here
    _, model, variables = trained["mdbn_x2"]
    images = [np.asarray(Image.open(folder / f"{i}.png")) for i in range(3)]
    small = [imresize(i[: i.shape[0] // 2 * 2, : i.shape[1] // 2 * 2], 1 / 2) for i in images]
    start = BranchNetwork("mine <b>", model, variables)
    expected = analyse_branches([start, untrained(start, seed=7)], small)
    assert results["settings"]["crop"] == expected["settings"]["crop"] == [18, 20]
    for found, wanted in zip(results["networks"], expected["networks"], strict=False):
        for one, other in zip(found["blocks"], wanted["blocks"], strict=True):
            assert one["differentiation"] == pytest.approx(other["differentiation"], rel=1e-4)
    with (out / "branches.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 2 * 5 + 2 * 1
    assert (out / "branch_profiles.csv").stat().st_size
    names = ["differentiation", "high_low", "outputs", "profiles_0", "maps_0_0", "maps_0_1", "profiles_1", "maps_1_0"]
    assert {p.stem for p in (out / "figures").glob("*.png")} == set(names)
    assert {p.stem for p in (out / "figures").glob("*.pdf")} == set(names)
    page = (out / "report.html").read_text()
    assert "is not published" in page and "mine &lt;b&gt;, untrained" in page and "<b>, untrained" not in page
    assert page.count("<img ") == len(names) and not re.search(r'(src|href)="(?!data:|#)', page)


def test_numbers_only_an_earlier_report_and_the_first_images(folder, trained, tmp_path, capsys):
    out = tmp_path / "out"
    command = [*network(trained, "mdbn_x2"), f"--images={folder}", f"--out={out}", "--no-figures"]
    assert analyze.main([*command, "--max-images=1"]) == 0
    assert capsys.readouterr().out.strip().splitlines()[-1].startswith(f"{out / 'results.json'} (")
    assert results_of(out)["settings"]["images"] == 1 and results_of(out)["settings"]["crop"] == [24, 20]
    assert {p.name for p in out.iterdir()} == {"results.json", "branches.csv", "branch_profiles.csv"}
    (out / "pca.csv").write_text("of an earlier report")
    assert "holds an earlier report" in failing(command, capsys)
    assert analyze.main([*command, "--overwrite"]) == 0
    assert results_of(out)["settings"]["images"] == 3 and not (out / "pca.csv").exists()


def test_images_that_are_small_already_and_pairs(folder, trained, tmp_path):
    command = [*network(trained, "mdbn_x2"), "--no-figures"]
    found = {}
    (tmp_path / "set" / "HR").mkdir(parents=True)
    (tmp_path / "set" / "LR").mkdir()
    for file in sorted(folder.iterdir()):
        large = np.asarray(Image.open(file))
        Image.fromarray(large).save(tmp_path / "set" / "HR" / file.name)
        small = imresize(large[: large.shape[0] // 2 * 2, : large.shape[1] // 2 * 2], 1 / 2)
        Image.fromarray(small).save(tmp_path / "set" / "LR" / file.name)
    for name, options in {
        "shrunk": [f"--images={folder}"],
        "pairs": [f"--images={tmp_path / 'set'}?lr=LR"],
        "small": [f"--images={tmp_path / 'set' / 'LR'}", "--small-images"],
    }.items():
        assert analyze.main([*command, *options, f"--out={tmp_path / name}"]) == 0
        found[name] = results_of(tmp_path / name)
    assert found["shrunk"]["networks"] == found["pairs"]["networks"] == found["small"]["networks"]
    assert found["small"]["settings"]["crop"] == [18, 20]
    assert "as given" in found["small"]["settings"]["small_images"]


def test_networks_of_several_scales_need_small_images(folder, trained, tmp_path, capsys):
    both = [*network(trained, "mdbn_x2"), "--model=edsr_x4", *ARGS, f"--images={folder}", f"--out={tmp_path / 'o'}"]
    said = failing(both, capsys)
    assert '"mdbn_x2" by 2 and "edsr_x4" by 4' in said and "--small-images" in said
    assert analyze.main([*both, "--small-images", "--no-figures"]) == 0
    results = results_of(tmp_path / "o")
    assert [n["label"] for n in results["networks"]] == ["mdbn_x2", "mdbn_x2, untrained", "edsr_x4"]
    assert results["networks"][2]["weights"] == "random, seed 2026"


def test_networks_alike_share_their_control(folder, trained, tmp_path):
    both = [*network(trained, "mdbn_x2", "a"), *network(trained, "mdbn_x2", "b")]
    assert analyze.main([*both, f"--images={folder}", f"--out={tmp_path / 'o'}", "--no-figures"]) == 0
    networks = results_of(tmp_path / "o")["networks"]
    assert [(n["label"], n["control"]) for n in networks] == [
        ("a", "a, untrained"),
        ("a, untrained", ""),
        ("b", "a, untrained"),
    ]


def test_images_that_cannot_be_used_are_named_and_the_rest_analysed(folder, trained, tmp_path, capsys):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for file in folder.iterdir():
        (pictures / file.name).write_bytes(file.read_bytes())
    (pictures / "empty.png").write_bytes(b"")
    (pictures / "torn.png").write_bytes((folder / "0.png").read_bytes()[:300])
    Image.new("RGB", (30, 50)).save(pictures / "tiny.png")
    command = [*network(trained, "mdbn_x2"), f"--out={tmp_path / 'o'}"]
    assert analyze.main([*command, f"--images={pictures}"]) == 0
    said = capsys.readouterr().err
    assert said.count("left out. The") == 3 and 'tiny.png" shrunk by 2 has 15 x 25 pixels' in said
    results = results_of(tmp_path / "o")
    assert results["settings"]["images"] == 3 and results["settings"]["crop"] == [18, 20]
    assert sum(name in s for s in results["skipped"] for name in ("empty.png", "torn.png", "tiny.png")) == 3
    assert "Images left out" in (tmp_path / "o" / "report.html").read_text()
    for file in folder.iterdir():
        (pictures / file.name).unlink()
    said = failing([*command, f"--images={pictures}", "--overwrite"], capsys)
    assert "None of the 3 images" in said and "--small-images" in said
    assert (tmp_path / "o" / "report.html").exists(), "an earlier report goes only when there is a new one"


@pytest.mark.slow
def test_weights_of_basicsr_and_which_of_them(folder, tmp_path, capsys):
    torch = pytest.importorskip("torch")
    model = models.create("mdbn_x2", **SMALL)
    variables = untrained(BranchNetwork("", model, None), seed=1).variables
    state = {k: torch.from_numpy(np.array(v)) for k, v in weights.to_basicsr(model, variables).items()}
    torch.save({"params": state, "params_ema": {k: -v for k, v in state.items()}}, tmp_path / "net_g.pth")
    command = ["--model=mdbn_x2", f"--weights={tmp_path / 'net_g.pth'}", *ARGS, f"--images={folder}", "--no-figures"]
    found = {}
    for name, options in {"": [], "raw": ["--variant=raw"], "own": ["--variant=ema"]}.items():
        assert analyze.main([*command, *options, f"--out={tmp_path / ('o' + name)}"]) == 0
        found[name] = results_of(tmp_path / f"o{name}")["networks"][0]
    assert "params_ema" in found["own"]["weights"] and "params_ema" not in found["raw"]["weights"]
    assert found["own"]["blocks"] == found[""]["blocks"] != found["raw"]["blocks"]
    said = failing([*command, "--step=3", f"--out={tmp_path / 'x'}"], capsys)
    assert "is not a work directory" in said


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--permutations=100"], "--permutations="),  # the default, and asked for all the same
        (["--saliency=0"], "--saliency="),
        (["--layers=block_0"], "--layers="),
        (["--no-compare"], "--no-compare was given"),
        (["--per-class=1"], "--per-class="),
        (["--batch-size=2"], "--batch-size="),
        (["--resize"], "--resize was given"),
        (DEIT, "is a super-resolution network and"),
        (["--model-arg=num_fate=8"], "num_fate"),
        (["--step=5"], "no --weights"),
        (["--seed=-1"], "--seed=-1 is out of range"),
        (["--max-images=-1"], "--max-images=-1 is out of range"),
        (["--images=nowhere"], 'The data folder "nowhere" does not exist'),
        (["--images=nowhere", "--small-images"], '--images="nowhere" does not exist'),
    ],
    ids=lambda v: v[-1] if isinstance(v, list) else None,
)
def test_mistakes_are_explained(arguments, words, folder, tmp_path, capsys):
    command = [f"--images={folder}", "--model=mdbn_x2", *ARGS, *arguments, f"--out={tmp_path / 'o'}"]
    assert words in failing(command, capsys)
    assert not (tmp_path / "o" / "results.json").exists()


def test_an_empty_folder_and_small_images_for_a_classifier(folder, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    out = f"--out={tmp_path / 'o'}"
    for more in ([], ["--small-images"]):
        said = failing(["--model=mdbn_x2", *ARGS, f"--images={tmp_path / 'empty'}", out, *more], capsys)
        assert "holds no images" in said
    assert "the networks classify" in failing([*DEIT, f"--images={folder}", "--small-images", out], capsys)


def test_the_help_says_which_options_do_nothing_for_them():
    text = analyze._parser().format_help(rare=True)
    statistics = text[text.index("statistics (*)") : text.index("\noutput and resources:")]
    for name in analyze.NOT_OF_BRANCHES:
        option = f"--{name.replace('_', '-')}"
        marked = re.search(rf"\n  {option} (?:(?!\n  --).)*\(\*\)", text, re.DOTALL)
        assert f"\n  {option} " in statistics or marked, option
