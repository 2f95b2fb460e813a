"""Folders for the Hugging Face Hub: timm and jaxkd read them, and an upload to a stand-in of the Hub."""

from __future__ import annotations

import base64
import dataclasses
import json
import logging
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import jax
import numpy as np
import pytest
from random_weights import random_variables

import jaxkd
from jaxkd import convert, weights
from jaxkd.inference import hub_folder
from jaxkd.inference.model_card import model_card

VIT = {"img_size": 16, "patch_size": 8, "embed_dim": 12, "depth": 1, "num_heads": 2, "num_classes": 3}
SWIN = {"img_size": 16, "patch_size": 2, "window_size": 4, "embed_dim": 8, "depths": (2,), "num_heads": (2,)}


def made(name: str, args: dict) -> weights.Network:
    """A small network with three named classes and an origin on this machine."""
    network = weights.build_network(name, args)
    variables = jax.tree.map(lambda x: 4 * np.asarray(x), random_variables(network.model))
    return dataclasses.replace(
        network, variables=variables, class_names=("oak", "elm", "ash"), origin='"/home/me/runs/trees" (raw)'
    )


@pytest.mark.slow
@pytest.mark.parity
@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("deit_tiny_distilled_patch16_224", VIT),
        ("cait_xxs24_224", VIT),
        ("swin_tiny_patch4_window7_224", {**SWIN, "num_classes": 3}),
    ],
)
def test_timm_and_jaxkd_read_the_folder(timm, tmp_path, name, args):
    import torch

    network = made(name, args)
    hub_folder.write_folder(network, tmp_path / "trees", source="")
    peer = timm.create_model(f"local-dir:{tmp_path / 'trees'}", pretrained=True).eval()
    assert peer.pretrained_cfg["crop_pct"] == network.spec.crop_pct and peer.num_classes == 3
    assert tuple(peer.pretrained_cfg["label_names"]) == network.class_names
    again = eval(hub_folder.timm_call(network, tmp_path / "trees" / "model.safetensors"), {"timm": timm}).state_dict()
    assert all(torch.equal(value, again[key]) for key, value in peer.state_dict().items())
    images = np.random.default_rng(0).normal(size=(2, 16, 16, 3)).astype(np.float32)
    with torch.no_grad():
        expected = peer(torch.from_numpy(images.transpose(0, 3, 1, 2))).numpy()
    model, variables = jaxkd.load(tmp_path / "trees")
    assert model.name == name and model.class_names == network.class_names
    output = jax.jit(lambda v, x: model.apply(v, x)[0])(variables, images)
    np.testing.assert_allclose(output, expected, rtol=1e-4, atol=1e-4)


class Hub(BaseHTTPRequestHandler):
    """The part of the Hub's interface that an upload of small files uses."""

    files: dict[str, bytes]
    status: int
    private: bool

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.status != 200:
            return self._answer(self.status, {"error": "no"})
        if self.path == "/api/repos/create":
            self.server.created = json.loads(body)
            return self._answer(200, {"url": "https://huggingface.co/me/trees", "name": "me/trees"})
        if self.path.endswith("/preupload/main"):
            files = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in json.loads(body)["files"]
            ]
            return self._answer(200, {"files": files})
        if self.path == "/api/validate-yaml":  # the header of the card
            return self._answer(200, {"errors": [], "warnings": []})
        assert self.path.startswith("/api/models/me/trees/commit/main"), self.path
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                self.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        return self._answer(200, {"commitUrl": "https://huggingface.co/me/trees/commit/1", "commitOid": "1" * 40})

    def do_GET(self):
        self._answer(200, {"sha": "0" * 40, "id": "me/trees", "private": self.private, "siblings": []})

    def _answer(self, status: int, content: dict) -> None:
        text = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *args):
        """Prints nothing."""


@pytest.fixture
def hub(monkeypatch):
    """A stand-in of the Hub on this machine, which the client uses; set `status` for its answers."""
    from huggingface_hub import constants

    handler = type("OneHub", (Hub,), {"files": {}, "status": 200, "private": True})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("HF_TOKEN", "hf_of_a_test")
    yield handler, server
    server.shutdown()
    server.server_close()


def test_an_upload_and_what_may_go_wrong(hub, tmp_path, capsys, complaint_of, monkeypatch):
    handler, server = hub
    printed, client = [], logging.getLogger("huggingface_hub")
    for logger in (client, logging.getLogger()):  # as the client's own handler, and the one that absl may add
        writes = logging.Handler()
        writes.emit = lambda record: printed.append(record.getMessage())
        monkeypatch.setattr(logger, "handlers", [writes])
    monkeypatch.setattr(client, "propagate", True)
    network = made("deit_tiny_patch16_224", VIT)
    weights.save_safetensors(
        tmp_path / "trees.safetensors", network.model, network.variables, weights.to_metadata(network)
    )
    command = [f"--weights={tmp_path / 'trees.safetensors'}", "--push-to-hub=me/trees"]
    assert convert.main([*command, "--private"]) == 0
    assert server.created["name"] == "trees" and "private" in (server.created.get("visibility"), *server.created)
    assert sorted(handler.files) == ["README.md", "config.json", "model.safetensors"]
    card = handler.files["README.md"].decode()
    assert 'timm.create_model("hf-hub:me/trees", pretrained=True)' in card and "oak, elm, ash" in card
    assert str(tmp_path) not in card + handler.files["model.safetensors"].decode("latin1")
    assert json.loads(handler.files["config.json"])["architecture"] == "deit_tiny_patch16_224"
    client.warning("Retrying in 1s")
    assert printed.count("Retrying in 1s") == 1
    capsys.readouterr()
    handler.files.clear()
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "private.txt").write_text("not for the Hub")
    assert convert.main([*command, f"--out={tmp_path / 'folder'}/"]) == 0
    assert sorted(handler.files) == ["README.md", "config.json", "model.safetensors"]
    handler.private = False
    handler.files.clear()
    assert "exists and is public" in complaint_of(convert.main, [*command, "--private"]) and not handler.files
    for status, words in ((401, "does not accept the token"), (403, "may not write"), (500, "refused the upload")):
        handler.status = status
        assert words in complaint_of(convert.main, command)
    server.shutdown()
    server.server_close()
    assert "could not be reached" in complaint_of(convert.main, command)
    monkeypatch.setenv("HF_TOKEN", "")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))
    assert "There is no token" in complaint_of(convert.main, command)
    for wrong, words in (
        ([*command[:1], "--push-to-hub=trees"], "Write USER/NAME"),
        ([*command[:1], "--push-to-hub=me/t..s"], "Write USER/NAME"),
        ([*command[:1], "--private", "--out=a.onnx"], "--private is for --push-to-hub"),
        (command[:1], "Neither --out nor --push-to-hub"),
    ):
        assert words in complaint_of(convert.main, wrong)
    assert "holds model.safetensors, config.json, README.md already" in complaint_of(
        convert.main, [*command[:1], f"--out={tmp_path / 'folder'}/"]
    )
    (tmp_path / "folder" / "checkpoints").mkdir()  # as a run has them
    assert "is the work directory of a run" in complaint_of(
        convert.main, [*command[:1], f"--out={tmp_path / 'folder'}/", "--overwrite"]
    )


def test_a_card_says_how_long_the_run_was_and_no_folder_of_the_machine():
    network = made("deit_tiny_patch16_224", VIT)
    config = {"train": {"epochs": 300, "steps": 0}, "schedule": {"steps": 20}, "data": {"source": "x:/home/me/trees"}}
    card = model_card(network, "me/trees", is_timm=True, config=hub_folder.without_folders(config))
    assert "| steps | 20 |" in card and "epochs" not in card and "| data | x:trees |" in card
    config["schedule"]["steps"] = 0
    assert "| epochs | 300 |" in model_card(network, "me/trees", is_timm=True, config=config)
