"""Weights in and out: files and the Hub, timm's and BasicSR's names, resizes, merging, freezing and fingerprints."""

from jaxkd.weights.basicsr import from_basicsr, to_basicsr
from jaxkd.weights.file_facts import FileFacts, read_facts, to_metadata
from jaxkd.weights.files import save_safetensors
from jaxkd.weights.fingerprints import fingerprint
from jaxkd.weights.freezing import freeze_mask
from jaxkd.weights.hub import hub_id, locate, published_name
from jaxkd.weights.merging import for_inference, merge_branches, split_branches
from jaxkd.weights.network import (
    DTYPES,
    Network,
    build_network,
    load,
    load_weights,
    load_with_origin,
    network_from_run,
    recorded_network,
)
from jaxkd.weights.resize import resize_position_embedding, resize_relative_bias_table
from jaxkd.weights.timm import from_timm, to_timm
