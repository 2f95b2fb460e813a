"""Recipes that come with jaxkd: the files of configs/, which an installation holds as the package `jaxkd_recipes`."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

PACKAGE = "jaxkd_recipes"


def recipe_folders() -> list[Path]:
    """Folders with recipes: configs/ of a source tree, else the installed package; [] where neither is there."""
    tree = Path(__file__).resolve().parents[2]
    if (tree / "pyproject.toml").is_file() and (tree / "configs").is_dir():
        return [tree / "configs"]
    spec = importlib.util.find_spec(PACKAGE)
    return [Path(place) for place in (spec.submodule_search_locations or ())] if spec else []


def recipes() -> dict[str, Path]:
    """Name -> file of every recipe, those of studies last."""
    files = [file for folder in recipe_folders() for part in ("*.py", "*/*.py") for file in sorted(folder.glob(part))]
    return {file.stem: file for file in files if file.stem != "__init__"}


def is_recipe_name(text: str) -> bool:
    """Whether `text` can be the name of a recipe: one word, without a folder or an ending."""
    return re.fullmatch(r"\w+", text) is not None
