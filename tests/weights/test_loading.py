"""`load`: paths and Hub ids told apart, the Hub's cache, and errors that name the source."""

from __future__ import annotations

import hashlib
import subprocess
import sys

import jax
import numpy as np
import pytest

import jaxkd
from jaxkd import weights
from jaxkd.errors import WeightMismatchError, WeightSourceError
from jaxkd.weights.hub import known_ids, parse


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache of the Hub's client, which is told to be offline."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def put(cache, repo: str, files: dict[str, bytes], revision: str = "main") -> None:
    """Files of a repository, laid out as the Hub's client lays out its cache."""
    folder = cache / f"models--{repo.replace('/', '--')}"
    commit = hashlib.sha1(revision.encode()).hexdigest()
    (folder / "refs").mkdir(parents=True, exist_ok=True)
    (folder / "refs" / revision).write_text(commit)
    snapshot = folder / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (folder / "blobs").mkdir(exist_ok=True)
    for name, content in files.items():
        blob = folder / "blobs" / hashlib.sha256(content).hexdigest()
        blob.write_bytes(content)
        (snapshot / name).symlink_to(blob)


@pytest.fixture
def as_bytes(tmp_path, write_safetensors):
    return lambda state: write_safetensors(tmp_path / "bytes.safetensors", state).read_bytes()


def norm_of(variables) -> np.ndarray:
    return np.asarray(variables["params"]["norm"]["scale"])


# --- files


def test_a_file_loads_and_computes_what_timm_computed(golden_state, tmp_path, write_safetensors):
    model, state, data = golden_state("cait")
    variables = weights.load(model, write_safetensors(tmp_path / "m.safetensors", state))
    logits = model.apply(variables, data["input_nchw"].transpose(0, 2, 3, 1))[0]
    np.testing.assert_allclose(logits, data["logits"], rtol=1e-4, atol=1e-4)


def test_options_reach_the_conversion(golden_state, tmp_path, write_safetensors):
    small, state, _ = golden_state("deit")
    path = write_safetensors(tmp_path / "m.safetensors", state)
    size = tuple(2 * s for s in small.img_size)
    model, _, _ = golden_state("deit", img_size=size, num_classes=3)
    got = weights.load(model, path, resize=True, new_head=True, key=jax.random.key(0))["params"]
    assert got["head"]["bias"].shape == (3,)
    assert got["pos_embed"].shape[1] == small.num_prefix_tokens + model.grid_size[0] * model.grid_size[1]


def test_a_training_checkpoint_of_pytorch_with_both_variants(golden_state, tmp_path):
    torch = pytest.importorskip("torch")
    model, state, _ = golden_state("deit")
    raw = {f"module.{k}": torch.from_numpy(np.array(v)) for k, v in state.items()}
    torch.save({"state_dict": raw, "state_dict_ema": {k: v + 1 for k, v in raw.items()}}, tmp_path / "m.pth.tar")
    np.testing.assert_array_equal(norm_of(weights.load(model, tmp_path / "m.pth.tar")), state["norm.weight"])
    ema = weights.load(model, str(tmp_path / "m.pth.tar"), variant="ema")
    np.testing.assert_array_equal(norm_of(ema), state["norm.weight"] + np.float32(1))


def test_a_mismatch_names_the_file_and_a_foreign_dialect(golden_state, tmp_path, write_safetensors):
    model, _, _ = golden_state("deit")
    name = "model.embeddings.patch_embeddings.weight"
    path = write_safetensors(tmp_path / "m.safetensors", {name: np.zeros((2, 2), np.float32)})
    with pytest.raises(WeightMismatchError) as caught:
        weights.load(model, path)
    first, second = str(caught.value).split("\n")[:2]
    assert first.startswith(f'The file "{path}" does not fit this VisionTransformer.')
    assert "a network of Hugging Face transformers that jaxkd does not have" in first
    assert "missing from the file:" in second


def test_a_home_folder_is_expanded(golden_state, tmp_path, write_safetensors, monkeypatch):
    model, state, _ = golden_state("deit")
    write_safetensors(tmp_path / "m.safetensors", state)
    monkeypatch.setenv("HOME", str(tmp_path))
    np.testing.assert_array_equal(norm_of(weights.load(model, "~/m.safetensors")), state["norm.weight"])


# --- the Hub


def test_ids_are_told_from_other_words():
    hub_id = parse("hf-hub:timm/cait_s24_224.fb_dist_in1k@v1.0")
    assert (hub_id.repo, hub_id.revision, hub_id.explicit) == ("timm/cait_s24_224.fb_dist_in1k", "v1.0", True)
    assert parse("timm/cait_s24_224.fb_dist_in1k").revision is None
    for word in ("cait_s24_224", "a/b/c", "/a/b", "a/b c", "https://huggingface.co/a/b"):
        assert parse(word) is None, word


def test_known_ids_are_repositories_of_timm():
    ids = known_ids()
    assert "timm/deit_tiny_patch16_224.fb_in1k" in ids
    assert "timm/vit_base_patch16_clip_224.openai" in ids  # also of the quick-GELU network
    assert not any("quickgelu" in i for i in ids) and len(ids) == len(set(ids))


def test_weights_come_out_of_the_hubs_cache(golden_state, cache, as_bytes):
    model, state, _ = golden_state("deit")
    put(cache, "timm/tiny.tag", {"model.safetensors": as_bytes(state), "pytorch_model.bin": b"never read"})
    for source in ("timm/tiny.tag", "hf-hub:timm/tiny.tag", "hf_hub:timm/tiny.tag", "timm/tiny.tag@main"):
        np.testing.assert_array_equal(norm_of(weights.load(model, source)), state["norm.weight"])


def test_a_revision_is_honoured(golden_state, cache, as_bytes):
    model, state, _ = golden_state("deit")
    other = {k: v + np.float32(1) for k, v in state.items()}
    put(cache, "a/b", {"model.safetensors": as_bytes(state)})
    put(cache, "a/b", {"model.safetensors": as_bytes(other)}, revision="v2")
    np.testing.assert_array_equal(norm_of(weights.load(model, "a/b@v2")), other["norm.weight"])


def test_other_file_names_are_tried(golden_state, cache, tmp_path, as_bytes):
    torch = pytest.importorskip("torch")
    model, state, _ = golden_state("deit")
    torch.save({k: torch.from_numpy(np.array(v)) for k, v in state.items()}, tmp_path / "m.bin")
    put(cache, "a/pickle", {"pytorch_model.bin": (tmp_path / "m.bin").read_bytes()})
    np.testing.assert_array_equal(norm_of(weights.load(model, "a/pickle")), state["norm.weight"])


def test_shards_come_from_the_hub_too(golden_state, cache, as_bytes, monkeypatch):
    import huggingface_hub

    model, state, _ = golden_state("deit")
    first = {k: v for k, v in state.items() if k.startswith("blocks")}
    rest = {k: v for k, v in state.items() if not k.startswith("blocks")}
    index = str({"weight_map": {k: "1.safetensors" if k in first else "2.safetensors" for k in state}})
    files = {"model.safetensors.index.json": index.replace("'", '"').encode()}
    put(cache, "a/shards", {**files, "1.safetensors": as_bytes(first), "2.safetensors": as_bytes(rest)})
    fetched, download = [], huggingface_hub.hf_hub_download
    monkeypatch.setattr(
        huggingface_hub, "hf_hub_download", lambda repo, name, **k: fetched.append(name) or download(repo, name, **k)
    )
    np.testing.assert_array_equal(norm_of(weights.load(model, "a/shards")), state["norm.weight"])
    assert fetched[-2:] == ["1.safetensors", "2.safetensors"]


def test_the_prefix_makes_an_id_of_what_is_spelt_like_a_file(golden_state, cache, as_bytes):
    model, state, _ = golden_state("deit")
    put(cache, "a/net.bin", {"model.safetensors": as_bytes(state)})
    np.testing.assert_array_equal(norm_of(weights.load(model, "hf-hub:a/net.bin")), state["norm.weight"])
    with pytest.raises(WeightSourceError, match=r'write "hf-hub:a/net\.bin" if that is meant'):
        weights.load(model, "a/net.bin")


def test_a_local_path_wins_over_an_id(golden_state, cache, as_bytes, tmp_path, write_safetensors, monkeypatch):
    model, state, _ = golden_state("deit")
    put(cache, "timm/tiny", {"model.safetensors": as_bytes(state)})
    monkeypatch.chdir(tmp_path)
    local = {k: v + np.float32(1) for k, v in state.items()}
    write_safetensors(tmp_path / "timm" / "tiny" / "model.safetensors", local)
    np.testing.assert_array_equal(norm_of(weights.load(model, "timm/tiny")), local["norm.weight"])
    np.testing.assert_array_equal(norm_of(weights.load(model, "hf-hub:timm/tiny")), state["norm.weight"])


def test_offline_the_error_says_how_to_fetch_the_file(golden_state, cache):
    model, _, _ = golden_state("deit")
    with pytest.raises(WeightSourceError) as caught:
        weights.load(model, "timm/cait_s24_224.fb_dist_in1k@abc123")
    text = str(caught.value)
    assert text.startswith(
        'The weights "timm/cait_s24_224.fb_dist_in1k" could not be fetched from the Hugging Face Hub. '
    )
    assert f'HF_HUB_OFFLINE is set, and the cache "{cache}" does not hold them.' in text
    command = "hf download timm/cait_s24_224.fb_dist_in1k model.safetensors --revision abc123 --local-dir DIR"
    assert f"`{command}`" in text
    assert "https://huggingface.co/timm/cait_s24_224.fb_dist_in1k/resolve/abc123/model.safetensors" in text
    assert "\n" not in text and "Did you mean" not in text


def test_a_misspelt_id_of_timm_is_corrected(golden_state, cache):
    model, _, _ = golden_state("deit")
    with pytest.raises(WeightSourceError, match=r'Did you mean "timm/cait_s24_224\.fb_dist_in1k"'):
        weights.load(model, "timm/cait_s24_224")


def hub_error(kind: str):
    from huggingface_hub import errors

    class Response:
        headers, request, status_code = {}, None, 404

    cls = getattr(errors, kind)
    try:
        return cls("what the server said", response=Response())
    except TypeError:
        return cls("what the server said")


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("RepositoryNotFoundError", "There is no such repository, or it is private"),
        ("GatedRepoError", "Access is restricted: accept the terms on https://huggingface.co/a/b"),
        ("RevisionNotFoundError", 'has no revision "v9"'),
        ("RemoteEntryNotFoundError", "has none of the files model.safetensors, "),
        ("LocalEntryNotFoundError", "The Hub cannot be reached"),
        ("HfHubHTTPError", "HfHubHTTPError: what the server said"),
    ],
)
def test_each_failure_of_the_hub_has_its_reason(golden_state, monkeypatch, kind, why):
    import huggingface_hub

    def fail(*args, **kwargs):
        raise hub_error(kind)

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)
    model, _, _ = golden_state("deit")
    with pytest.raises(WeightSourceError) as caught:
        weights.load(model, "a/b@v9")
    assert why in str(caught.value)


def test_an_unreachable_hub_is_waited_for_once(golden_state, monkeypatch):
    import huggingface_hub

    calls = []

    def fail(repo, name, *, revision, local_files_only):
        calls.append((name, local_files_only))
        raise hub_error("LocalEntryNotFoundError")

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)
    model, _, _ = golden_state("deit")
    with pytest.raises(WeightSourceError, match="The Hub cannot be reached"):
        weights.load(model, "a/b")
    assert calls[0] == ("model.safetensors", False)
    assert ("pytorch_model.bin", True) in calls  # which the cache may hold
    assert sum(not only_cache for _, only_cache in calls) == 1


def test_jaxkd_load_names_the_network_of_an_id(cache, tmp_path, golden_state):
    model, state, _ = golden_state("deit")
    args = {k: getattr(model, k) for k in ("img_size", "embed_dim", "depth", "num_heads", "num_classes", "patch_size")}
    variables = weights.from_timm(model, state)
    metadata = weights.to_metadata(weights.build_network("deit_tiny_patch16_224", args))
    for repo, given, facts in (
        ("timm/deit_tiny_patch16_224.fb_in1k", {"model_args": args}, None),  # its own name says which network it is
        ("someone/trees", {}, metadata),  # its file says it
    ):
        file = tmp_path / repo.replace("/", "-") / "model.safetensors"
        weights.save_safetensors(file, model, variables, facts)
        put(cache, repo, {"model.safetensors": file.read_bytes()})
        loaded, params = jaxkd.load(repo, **given)
        assert loaded.name == "deit_tiny_patch16_224" and loaded.class_names == tuple("0123456789")
        jax.tree.map(np.testing.assert_array_equal, params, variables)


# --- words that are neither


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("nowhere/m.safetensors", 'it is spelt like a path; write "hf-hub:nowhere/m.safetensors"'),
        ("./nowhere/model", 'has no "nowhere"'),
        ("runs/model", 'it lies below the folder "runs"; write "hf-hub:runs/model"'),
        (
            "deit_tiny_patch16_224",
            'names a network, not its weights; those are on the Hub as "timm/deit_tiny_patch16_224.fb_',
        ),
        ("swin_tiny_patch4_window7_224.ms_in22k", 'as "timm/swin_tiny_patch4_window7_224.ms_in22k"'),
        ("nonsense", "not a Hugging Face id, which has the form owner/name"),
        ("", "The source of the weights is empty"),
    ],
)
def test_what_is_neither_a_path_nor_an_id_is_explained(golden_state, tmp_path, monkeypatch, source, said):
    model, _, _ = golden_state("deit")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    with pytest.raises(WeightSourceError) as caught:
        weights.load(model, source)
    assert said in str(caught.value)


def test_importing_weights_stays_light():
    heavy = ("torch", "timm", "tensorflow", "matplotlib", "huggingface_hub", "scipy", "onnx")
    code = f"import sys, jaxkd.weights; print([m for m in {heavy} if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert run.stdout.strip() == "[]"
