"""Saliency of a network with more than ten blocks: columns and frames in their order, one file for each network."""

from __future__ import annotations

import numpy as np
import pytest

from jaxkd import data, parallel, weights
from jaxkd.analysis import pipeline
from jaxkd.analysis.pipeline.saliency_maps import TITLES, write_saliency
from jaxkd.report import saliency_figures


@pytest.mark.slow
def test_layers_come_in_depth_order_and_networks_keep_their_own_files(tmp_path, monkeypatch):
    seen = []
    drawn = saliency_figures.draw_saliency, saliency_figures.draw_layer_animation
    monkeypatch.setattr(
        saliency_figures,
        "draw_saliency",
        lambda x, maps, *a, **k: (seen.append(tuple(maps)), drawn[0](x, maps, *a, **k)),
    )
    monkeypatch.setattr(
        saliency_figures,
        "draw_layer_animation",
        lambda x, maps, *a, **k: (seen.append(tuple(maps)), drawn[1](x, maps, *a, **k)),
    )
    args = {"img_size": 16, "patch_size": 8, "embed_dim": 12, "depth": 12, "num_heads": 2, "num_classes": 10}
    network = weights.build_network("deit_tiny_patch16_224", args)
    mesh = parallel.make_mesh()
    networks = [pipeline.network_features(network, mesh, label=label) for label in ("a b", "a/b")]
    found = write_saliency(networks, data.open_source("embedded:digits", "val"), tmp_path / "saliency", count=1)
    assert seen == [TITLES, tuple(f"block_{i}" for i in range(12))] * 2
    assert len({entry["png"] for entry in found}) == len(list((tmp_path / "saliency").glob("*.png"))) == 2
    assert all(np.isfinite(entry["completeness_error"]) for entry in found)
