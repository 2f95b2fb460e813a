"""Writes docs/reference: commands, fields, networks, terms and the Python interface, read off the code.

python docs/generate_reference.py              (some seconds: numbers of networks that are there stay)
python docs/generate_reference.py --numbers    (a minute or two: counts parameters and multiply-adds anew)
python docs/generate_reference.py --check      (writes nothing; exit code 1 where a page is not current)
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import importlib
import importlib.util
import inspect
import io
import json
import math
import os
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "docs" / "reference"
NUMBERS = OUT / "models.json"  # name -> [parameters, multiply-adds]
# Top-1 in percent on ImageNet-1k by timm: results/results-imagenet.csv of huggingface/pytorch-image-models, 0173a139.
TIMM_TOP1 = json.loads((OUT / "timm_top1.json").read_text())
PACKAGES = ("models", "weights", "losses", "analysis", "metrics", "distill", "data", "train", "tasks")
RUN = "python docs/generate_reference.py"
# Highest top-1 on ImageNet-1k that a paper of this project publishes for a student; docs/published.md has the runs.
PUBLISHED = {
    "deit_tiny_patch16_224": "78.07 (SoftKD, 500 epochs)",
    "deit_small_patch16_224": "82.2 (SpectralKD)",
    "swin_tiny_patch4_window7_224": "82.7 (SpectralKD)",
    "lift_deit_tiny_patch16_224": "77.53",
    "widelast_deit_tiny_patch16_224": "78.23",
}
GROUPS = {
    "": "The run",
    "student": "Student",
    "teacher": "Teacher",
    "distill": "Objective",
    "data": "Data",
    "eval": "Scoring",
    "restoration": "Super-resolution",
    "eeg": "EEG",
    "optimizer": "Optimiser",
    "schedule": "Learning rate",
    "ema": "Moving average",
    "train": "Length and batch",
    "precision": "Precision and memory",
    "mesh": "Devices",
    "checkpoint": "Checkpoints",
    "log": "Log",
    "dynamics": "Statistics during training",
    "study": "Studies",
}


def table(head: Sequence[str], rows: Iterable[Sequence[Any]], right: Sequence[int] = ()) -> str:
    """A table in Markdown; columns of `right` are aligned to the right."""

    def line(cells: Iterable[Any]) -> str:
        return "| " + " | ".join(str(c).replace("|", "\\|").replace("\n", " ") for c in cells) + " |"

    rule = ["---:" if i in right else "---" for i in range(len(head))]
    return "\n".join([line(head), line(rule), *map(line, rows)])


def page(title: str, intro: str, *parts: str) -> str:
    """A page with a title and its paragraphs."""
    return "\n\n".join([f"<!-- Written by `{RUN}`. -->", f"# {title}", intro, *parts]) + "\n"


def first_sentence(text: str) -> str:
    """The first sentence of a docstring, without a code example that follows it."""
    paragraph = " ".join(text.strip().split("\n\n")[0].split())
    return re.split(r"(?<=\.)(?<!e\.g\.)(?<!i\.e\.)\s(?=[A-Z`\"(])", paragraph)[0]


def help_of(name: str) -> str:
    """The text of `jaxkd NAME --help-all` where there is one, else of `jaxkd NAME --help`."""
    from jaxkd.__main__ import main

    said, option = io.StringIO(), "--help-all" if name in ("analyze", "decode") else "--help"
    with (
        mock.patch.object(sys, "argv", ["jaxkd", name, option]),
        mock.patch.dict(os.environ, {"COLUMNS": "110", "NO_COLOR": "1"}),
        contextlib.redirect_stdout(said),
        contextlib.redirect_stderr(io.StringIO()),
        contextlib.suppress(SystemExit),
    ):
        main([name, option] if name else ["--help"])
    return said.getvalue().strip()


def commands() -> str:
    """Every command with its help."""
    from jaxkd.cli.commands import COMMANDS

    parts = []
    for name, (module, sentence) in COMMANDS.items():
        if (ROOT / "jaxkd" / f"{module.replace('.', '/')}.py").is_file():
            parts += [f"## jaxkd {name}", f"{sentence[:1].upper()}{sentence[1:]}.", f"```text\n{help_of(name)}\n```"]
    intro = (
        "`jaxkd COMMAND --help`, of some `--help-all`, prints the same. `python -m jaxkd COMMAND` is `jaxkd COMMAND`."
    )
    return page("Commands", intro, f"```text\n{help_of('')}\n```", *parts)


def recipe_values() -> dict[str, dict[str, Any]]:
    """Recipe -> its fields that differ from the defaults; without words after the colon."""
    from jaxkd.config import fields

    defaults = fields.flatten(fields.base())
    values = {}
    for path in sorted((ROOT / "configs").glob("*.py")):
        spec = importlib.util.spec_from_file_location(f"_recipe_{path.stem}", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        given = fields.flatten(module.get_config())
        values[path.stem] = {k: v for k, v in given.items() if k not in defaults or v != defaults[k]}
    return values


def shown(value: Any) -> str:
    """A value as code; long ones are cut."""
    text = json.dumps(value) if isinstance(value, str) else repr(value)
    return f"`{text if len(text) <= 40 else text[:37] + '...'}`"


def fields() -> str:
    """Every field of a config."""
    from jaxkd.config.field_docs import field_docs

    recipes = recipe_values()
    groups: dict[str, list[Any]] = {}
    for doc in field_docs():
        setting: dict[str, list[str]] = {}
        for recipe, values in recipes.items():
            for name, value in values.items():
                if name == doc.name or (doc.kind == "dict" and name.startswith(f"{doc.name}.")):
                    inner = name.removeprefix(doc.name).lstrip(".")
                    setting.setdefault(f"{inner}={shown(value)}" if inner else shown(value), []).append(recipe)
        by = "; ".join(f"{value} in {', '.join(names)}" for value, names in setting.items())
        first = doc.name.partition(".")[0]
        row = (f"`{doc.name}`", escaped(doc.meaning), f"{shown(doc.default)} {doc.kind}", by)
        groups.setdefault(first if first in GROUPS else "", []).append(row)
    head = ("field", "meaning", "default and type", "recipes that set it")
    intro = (
        "A config is a nested dictionary with exactly these fields. `--config.NAME=VALUE` sets one on the command "
        "line, a recipe in `configs/` sets several; a name that is not here is an error that suggests the nearest one. "
        "`object` takes values of several types. The last column shows the recipes without words after the colon."
    )
    parts = [f"## {GROUPS[group]}\n\n{table(head, rows)}" for group, rows in groups.items()]
    return page("Fields of a config", intro, *parts)


def escaped(text: str) -> str:
    """Text in which `<label>` stays what it is in Markdown; code keeps its characters."""
    parts = text.split("`")
    return "`".join(part if i % 2 else part.replace("<", "&lt;") for i, part in enumerate(parts))


def count(name: str) -> list[int]:
    """[parameters, multiply-adds] of a network at its own input size; super-resolution to 1280 x 720."""
    import jax
    import jax.numpy as jnp

    from jaxkd import models
    from jaxkd.models.flops import multiply_adds

    shape = (1, *input_size(name))
    shape = shape if models.spec(name).task == "eeg_words" else (*shape, 3)
    model, inputs = models.create(name), jax.ShapeDtypeStruct(shape, jnp.float32)
    variables = models.abstract_variables(model, shape)
    program = jax.make_jaxpr(lambda v, x: model.apply(v, x)[0])(variables, inputs)
    parameters = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(variables["params"]))
    return [parameters, multiply_adds(program.jaxpr)]


def input_size(name: str) -> tuple[int, int]:
    """(height, width) that the multiply-adds are counted for."""
    from jaxkd import models

    if models.spec(name).task != "restoration":
        return models.spec(name).input_size
    scale = int(name.rpartition("x")[2])
    return 720 // scale, 1280 // scale


def taps_in_words(names: Sequence[str]) -> str:
    """`block_0` ... `block_11`: runs of numbered names as their first and last."""
    runs: dict[str, list[str]] = {}
    for name in names:
        runs.setdefault(re.sub(r"\d+", "#", name), []).append(name)
    return ", ".join(f"`{r[0]}`" if len(r) == 1 else f"`{r[0]}` to `{r[-1]}`" for r in runs.values())


def with_top1(name: str, tag: str) -> str:
    """A tag, with timm's top-1 of its weights where that is known."""
    top1 = TIMM_TOP1.get(f"{name}.{tag}")
    return tag if top1 is None else f"{tag} ({top1:.2f})"


def networks(numbers: dict[str, list[int]]) -> str:
    """Every network."""
    from jaxkd import models

    families: dict[str, list[Any]] = {}
    taps: dict[str, dict[str, list[str]]] = {}  # family -> taps in words -> networks that have these
    for name in models.list_models():
        spec, family = models.spec(name), name.partition("_")[0]
        height, width = input_size(name)
        tags = ", ".join(with_top1(name, tag) for tag in models.registry.REGISTRY[name].specs if tag)
        parameters, products = numbers[name]
        families.setdefault(family, []).append(
            (
                f"`{name}`",
                f"{parameters:,}",
                f"{products / 1e9:.4g}",
                f"{height} x {width}",
                spec.num_classes or "-",
                tags or "-",
                PUBLISHED.get(name, "-"),
            )
        )
        known = models.tap_names(models.create(name))
        words = f"{taps_in_words(known)} ({len(known)} in all)"
        taps.setdefault(family, {}).setdefault(words, []).append(f"`{name}`")
    head = (
        "name",
        "parameters",
        "GFLOPs",
        "input",
        "classes",
        "tags of weights (timm's top-1, %)",
        "published top-1, %",
    )
    intro = (
        "`models.create(NAME)` builds one, `models.list_models()` lists the names, `NAME.TAG` picks published weights "
        "and their preprocessing. GFLOPs are, as in papers and in timm, multiply-adds (10^9; 2 floating-point "
        "operations each) of matrix products and convolutions for one input of the size in the table (height x width), "
        "counted in the traced program; super-resolution is counted "
        "for an output of 1280 x 720 (x3: 1278 x 720), EEG for a sentence of 56 words of 840 numbers. Parameters are "
        "those of the default number of classes. The number behind a tag is the top-1 on ImageNet-1k that timm reports "
        "for these weights (`results-imagenet.csv` of its repository); tags without one have no classifier for "
        "ImageNet-1k or are not in that list. The last column is the highest figure that one of the papers publishes "
        "for the student on ImageNet-1k. jaxkd has measured none of these accuracies ([published "
        "accuracies](../published.md))."
    )
    parts = []
    for family, rows in families.items():
        lists = [f"Taps of {', '.join(names)}: {words}." for words, names in taps[family].items()]
        parts.append("\n\n".join([f"## {family}", table(head, rows, right=(1, 2)), *lists]))
    return page("Networks", intro, *parts)


def terms() -> str:
    """Every term of an objective with its arguments."""
    from jaxkd import distill  # noqa: F401  registers the terms
    from jaxkd.distill.terms import TERMS

    rows = []
    for name, term in TERMS.items():
        arguments = [
            f"`{key}`" if parameter.default is inspect.Parameter.empty else f"`{key}={parameter.default!r}`"
            for key, parameter in term.arguments.items()
        ]
        options = [f"`{option}`" for option in term.options]
        about = escaped(first_sentence(inspect.getdoc(term.fn) or ""))
        reads = "yes" if term.needs_teacher else "no"
        rows.append((f"`{name}`", about, ", ".join(arguments + options) or "-", reads, "yes" if term.init else "no"))
    head = ("term", "in a sentence", "keys besides loss, weight, name", "reads the teacher", "own parameters")
    intro = (
        "The terms that `distill.terms` may list. [Objectives](../objectives.md) has for each the paper, the cost, "
        "what it reads and an example. `distill.register_term` adds one ([how](../howto/loss.md))."
    )
    return page("Terms of an objective", intro, table(head, rows))


def exported(package: str) -> list[tuple[str, Any]]:
    """(name, object) of each function, class and constant that a package of jaxkd exports."""
    module = importlib.import_module(f"jaxkd.{package}")
    imports = (node for node in ast.parse(inspect.getsource(module)).body if isinstance(node, ast.ImportFrom))
    names = [alias.asname or alias.name for node in imports for alias in node.names]
    found = [(name, getattr(module, name)) for name in names if name not in ("annotations", "Any")]
    return [(name, item) for name, item in found if not inspect.ismodule(item)]


def interface() -> dict[str, str]:
    """The pages of the Python interface by path: an overview, and one for each package."""
    import jaxkd

    pages, overview = {}, []
    top = [(name, getattr(jaxkd, name)) for name in ("load", "predict") if hasattr(jaxkd, name)]
    for package, names in (("jaxkd", top), *((package, exported(package)) for package in PACKAGES)):
        if not names:
            continue
        rows, parts = [], []
        for name, item in names:
            called = f"{package}.{name}"
            documented = getattr(item, "__module__", "").startswith("jaxkd.")  # not clu's classes, not a constant
            if documented:
                about = escaped(first_sentence(inspect.getdoc(item) or ""))
                path = f"{item.__module__}.{item.__qualname__}"
                parts.append(f"::: {path}\n    options:\n      heading: {called}\n      toc_label: {name}")
            elif callable(item):
                about = f"`{item.__module__}.{item.__qualname__}`, exported again."
            else:
                about = f"A constant: {shown(item)}." if "<" not in repr(item) else "A constant."
            link = f"[`{called}`](api/{package}.md)" if documented else f"`{called}`"
            rows.append((link, about))
        about = first_sentence(importlib.import_module("jaxkd" if package == "jaxkd" else f"jaxkd.{package}").__doc__)
        overview.append(f"## {package}\n\n{about}\n\n{table(('name', 'in a sentence'), rows)}")
        intro = f"{about} The [overview](../api.md) lists all packages."
        title = "jaxkd" if package == "jaxkd" else f"jaxkd.{package}"
        pages[f"api/{package}.md"] = page(title, intro, *parts)
    intro = (
        f"`from jaxkd import {', '.join(PACKAGES)}`: what these packages export. Arrays "
        "have channels last. The pages of the site hold signatures, shapes, units and errors; so does "
        "`help(losses.spectral)`."
    )
    pages["api.md"] = page("Python interface", intro, *overview)
    return pages


def pages(numbers: dict[str, list[int]]) -> dict[str, str]:
    """Path below docs/reference -> text."""
    written = {"commands.md": commands(), "fields.md": fields(), "models.md": networks(numbers), "terms.md": terms()}
    return written | interface()


def stale() -> list[str]:
    """Pages that are missing or differ from what the code says; the numbers of networks are taken as they are."""
    numbers = json.loads(NUMBERS.read_text()) if NUMBERS.is_file() else {}
    from jaxkd import models

    if set(numbers) != set(models.list_models()):
        return [NUMBERS.name]
    there = {str(path.relative_to(OUT)): path.read_text() for path in sorted(OUT.rglob("*.md"))}
    wanted = pages(numbers)
    if sys.version_info >= (3, 13):  # whose argparse lays help out in another way
        wanted["commands.md"] = there.get("commands.md")
    return sorted(name for name in {*there, *wanted} if there.get(name) != wanted.get(name))


def main(argv: Sequence[str] | None = None) -> int:
    """Writes or checks the pages; exit code 1: a page is not current."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing, say which pages are not current")
    parser.add_argument("--numbers", action="store_true", help="count parameters and multiply-adds of all networks")
    args = parser.parse_args(argv)
    if args.check:
        names = stale()
        if names:
            print(f"Not current in docs/reference: {', '.join(names)}. Run {RUN} and commit what it writes.")
        return 1 if names else 0
    from jaxkd import models

    kept = json.loads(NUMBERS.read_text()) if NUMBERS.is_file() and not args.numbers else {}
    numbers = {name: kept.get(name) or count(name) for name in models.list_models()}
    (OUT / "api").mkdir(parents=True, exist_ok=True)
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(value)}" for name, value in numbers.items())
    NUMBERS.write_text(f"{{\n{lines}\n}}\n")
    for name, text in pages(numbers).items():
        (OUT / name).write_text(text)
    return 0


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    sys.exit(main())
