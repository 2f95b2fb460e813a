"""Saliency of a network with more than ten blocks: maps and layers in their order, one file for each network."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from jaxkd import data, parallel, weights
from jaxkd.analysis import pipeline
from jaxkd.analysis.pipeline.saliency_maps import TITLES, saliency_maps
from jaxkd.report.saliency_figures import write_saliency


@pytest.mark.slow
def test_layers_come_in_depth_order_and_networks_keep_their_own_files(tmp_path):
    args = {"img_size": 16, "patch_size": 8, "embed_dim": 12, "depth": 11, "num_heads": 2, "num_classes": 10}
    network = weights.build_network("deit_tiny_patch16_224", args)
    networks = [pipeline.network_features(network, parallel.make_mesh(), label="a b")]
    (one,) = saliency_maps(networks, data.open_source("embedded:digits", "val"), count=1)
    assert one.model == "a b" and tuple(one.maps) == TITLES
    assert tuple(one.layers) == tuple(f"block_{i}" for i in range(11))
    entries = write_saliency([one, replace(one, model="a/b")], tmp_path / "saliency")
    assert len({entry["png"] for entry in entries}) == len(list((tmp_path / "saliency").glob("*.png"))) == 2
    assert all((tmp_path / entry[kind]).is_file() for entry in entries for kind in ("png", "gif"))
    assert all(np.isfinite(entry["completeness_error"]) for entry in entries)
