"""Freezing of parameters by patterns over their paths."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable
from typing import Any

from flax.traverse_util import flatten_dict, unflatten_dict

from jaxkd.errors import ConfigError, did_you_mean

PyTree = Any


def _matches(path: tuple[str, ...], pattern: tuple[str, ...]) -> bool:
    """Whether `pattern` covers the first components of `path`, component by component."""
    return len(pattern) <= len(path) and all(
        fnmatch.fnmatchcase(name, part) for name, part in zip(path, pattern, strict=False)
    )


def freeze_mask(params: PyTree, patterns: Iterable[str]) -> PyTree:
    """Marks the parameters that one of `patterns` names, and everything below them.

    A pattern is a parameter path, or its beginning, cut at slashes: "blocks_1" means block 1 and not block 10,
    "blocks_1/attn" its attention. `*`, `?` and `[...]` stand for characters within one component, as in a shell:
    "blocks_[0-5]", "blocks_*/norm1". Nothing is frozen by an empty tuple.

    Args:
      params: nested dict of arrays or of their shapes (`variables["params"]`).
      patterns: e.g. ("patch_embed", "pos_embed", "blocks_0").

    Returns:
      The tree of `params` with True (frozen) or False at its leaves.

    Raises:
      ConfigError: a pattern that matches no parameter.
    """
    patterns = (patterns,) if isinstance(patterns, str) else tuple(patterns)
    paths = list(flatten_dict(params))
    split = {pattern: tuple(pattern.strip("/").split("/")) for pattern in patterns}
    for pattern, parts in split.items():
        if not any(_matches(path, parts) for path in paths):
            begins = dict.fromkeys("/".join(path[:n]) for path in paths for n in range(1, len(path) + 1))
            top = ", ".join(dict.fromkeys(path[0] for path in paths))
            raise ConfigError(
                f'"{pattern}" freezes nothing: no parameter has such a path.{did_you_mean(pattern, begins)} '
                "Give whole components of a path from its beginning, with * and ? inside one component. "
                f"The paths begin with: {top}."
            )
    return unflatten_dict({path: any(_matches(path, parts) for parts in split.values()) for path in paths})
