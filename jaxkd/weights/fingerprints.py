"""Fingerprints of weights: equal for equal weights, so that runs can be compared."""

from __future__ import annotations

import hashlib
from typing import Any

import jax
import numpy as np
from flax import serialization
from flax.traverse_util import flatten_dict

PyTree = Any


def fingerprint(variables: PyTree) -> str:
    """Hash of names, shapes, dtypes and bytes, whatever the order of the leaves.

    Args:
      variables: nested dict of arrays, e.g. `{"params": ...}`.

    Returns:
      16 hexadecimal digits, the first 64 bits of a SHA-256.
    """
    digest = hashlib.sha256()
    flat = flatten_dict(serialization.to_state_dict(variables), sep="/")
    for path in sorted(flat):
        array = np.asarray(jax.device_get(flat[path]))
        digest.update(f"{path}\0{array.dtype.name}\0{array.shape}\0".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()[:16]
