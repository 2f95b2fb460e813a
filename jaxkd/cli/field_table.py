"""Fields of a config as text, for `jaxkd train --fields`: type, default, meaning, and the recipes that set them."""

from __future__ import annotations

import importlib.util
import textwrap
from typing import Any

from jaxkd.cli.layout import text_width
from jaxkd.config.field_docs import field_docs
from jaxkd.config.fields import base, flatten
from jaxkd.config.packaged import recipes
from jaxkd.errors import ConfigError, did_you_mean

LONGEST = 60  # characters of a value


def field_table(pattern: str) -> str:
    """A paragraph for each field that `pattern` names; the recipes are read without words after their colon.

    Args:
      pattern: a part of a name, or a shell pattern such as "optimizer.*"; "" is every field.

    Raises:
      ConfigError: no field has such a name.
    """
    docs = field_docs(pattern or "*")
    if not docs:
        names = [doc.name for doc in field_docs()]
        leaves = dict.fromkeys(name.rpartition(".")[2] for name in names)
        raise ConfigError(
            f'--fields="{pattern}" matches no field.{did_you_mean(pattern, [*names, *leaves])} Give a part of a name, '
            'a pattern such as "optimizer.*", or nothing for all fields.'
        )
    known, set_by = flatten(base()), _changes_of_recipes()
    paragraphs = []
    for doc in docs:
        lines = [f"--config.{doc.name}={_short(doc.default)}    ({doc.kind})"]
        values: dict[str, list[str]] = {}
        for recipe, config in set_by.items():
            if doc.name in config and config[doc.name] != known.get(doc.name):
                values.setdefault(_short(config[doc.name]), []).append(recipe)
        texts = [doc.meaning, "; ".join(f"{value} in {', '.join(names)}" for value, names in values.items())]
        for text in filter(None, texts):
            lines += textwrap.wrap(text, text_width(), initial_indent="    ", subsequent_indent="    ")
        paragraphs.append("\n".join(lines))
    return "\n".join(paragraphs)


def _changes_of_recipes() -> dict[str, dict[str, Any]]:
    """Recipe -> its fields by their dotted names."""
    found = {}
    for name, file in recipes().items():
        spec = importlib.util.spec_from_file_location(f"jaxkd_recipe_{name}", file)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        found[name] = flatten(module.get_config())
    return found


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} ..."
