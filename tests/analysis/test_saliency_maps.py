"""Saliency of a network with more than ten blocks: maps and layers in their order, one file for each network."""

from __future__ import annotations

import numpy as np
import pytest

from jaxkd import data, parallel, weights
from jaxkd.analysis import pipeline
from jaxkd.analysis.pipeline.saliency_maps import TITLES, saliency_maps
from jaxkd.report.saliency_figures import write_saliency


@pytest.mark.slow
def test_layers_come_in_depth_order_and_networks_keep_their_own_files(tmp_path):
    args = {"img_size": 16, "patch_size": 8, "embed_dim": 12, "depth": 12, "num_heads": 2, "num_classes": 10}
    network = weights.build_network("deit_tiny_patch16_224", args)
    mesh = parallel.make_mesh()
    networks = [pipeline.network_features(network, mesh, label=label) for label in ("a b", "a/b")]
    found = list(saliency_maps(networks, data.open_source("embedded:digits", "val"), count=1))
    assert [tuple(f.maps) for f in found] == [TITLES] * 2
    assert [tuple(f.layers) for f in found] == [tuple(f"block_{i}" for i in range(12))] * 2
    entries = write_saliency(found, tmp_path / "saliency")
    assert len({entry["png"] for entry in entries}) == len(list((tmp_path / "saliency").glob("*.png"))) == 2
    assert all((tmp_path / entry[kind]).is_file() for entry in entries for kind in ("png", "gif"))
    assert all(np.isfinite(entry["completeness_error"]) for entry in entries)
