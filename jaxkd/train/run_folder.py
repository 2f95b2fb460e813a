"""The files of a work directory: where a run is, and its config, which stands in config.json and in each checkpoint."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from jaxkd.config.fields import base, flatten
from jaxkd.config.paths import has_scheme, user_path
from jaxkd.config.plugins import import_plugins
from jaxkd.config.validate import has_type_of
from jaxkd.errors import CheckpointError
from jaxkd.train.manifest import find_damage

FOLDER = "checkpoints"
LONGEST_VALUE = 100  # characters of a field's value in an error
CLASS_ORDER = "data.class_order"  # runs from before it existed used "text"; their class names are compared instead
# Fields that may differ between a run and its continuation: none of them changes what a step computes.
FREE_FIELDS = (
    *("data.workers", "train.steps", "log.", "checkpoint.", "dynamics.", "eval.batch_size", "mesh."),
    *("precision.remat", "precision.scan_blocks"),
)
# A teacher may lie at another path when a run goes on: its fingerprint in the checkpoint says whether it is the same.
# config.json keeps the path of the first start.
MOVABLE = ("teacher.weights",)


def find_run(path: str | Path) -> Path | None:
    """The work directory that `path` names, or None: `workdir`, `workdir/checkpoints` or `workdir/checkpoints/400`.

    Another file in a work directory, such as exported weights, names itself and not the run.
    """
    if has_scheme(path):
        return None
    path = user_path(path, "the path of weights").absolute()
    run = path
    if path.name == FOLDER:
        run = path.parent
    elif path.parent.name == FOLDER and path.name.isdigit():
        run = path.parent.parent
    try:
        return run if (run / "config.json").is_file() and (run / FOLDER).is_dir() else None
    except OSError:  # a name too long, no permission
        return None


def checkpoint_steps(run: Path) -> list[int]:
    """Steps of the finished checkpoints of `run`, ascending; [] where the folder cannot be read."""
    try:
        return sorted(int(p.name) for p in (run / FOLDER).iterdir() if p.name.isdigit())
    except OSError:
        return []


def checkpoint_config(run: Path) -> dict[str, Any] | None:
    """The config in the newest checkpoint of `run` whose copy of it is undamaged; None if there is none."""
    for step in reversed(checkpoint_steps(run)):
        folder = run / FOLDER / str(step)
        try:
            if find_damage(folder, ("meta",)):
                continue
            config = json.loads((folder / "meta" / "metadata").read_bytes()).get("config")
        except (OSError, ValueError, AttributeError, RecursionError):
            continue
        if not _why_no_config(config):
            return config
    return None


def _why_no_config(content: Any) -> str:
    """The reason why `content` is no config, an object of fields of their types without dots in their names; or ""."""
    try:
        given = ConfigDict(content)
        plugins = given.get("plugins") or ()
    except (ValueError, TypeError, AttributeError, RecursionError):
        return "it is not one JSON object of fields"
    if not isinstance(plugins, list | tuple) or not all(isinstance(p, str) for p in plugins):
        return "its plugins are not a list of names"
    return _wrong_field(given, base(), "")


def _wrong_field(given: ConfigDict, known: ConfigDict, prefix: str) -> str:
    """Words on the first field of `given` whose value is of another type; a field may be absent."""
    for name in (n for n in known if n in given):
        value, default = given.get(name), known.get(name)
        if isinstance(value, ConfigDict) and isinstance(default, ConfigDict):
            wrong = _wrong_field(value, default, f"{prefix}{name}.")
            if wrong:
                return wrong
        elif isinstance(default, ConfigDict) or not has_type_of(value, default, f"{prefix}{name}"):
            return f"{prefix}{name}={value!r} is of the wrong type"
    return ""


def read_config(run: Path) -> dict[str, Any]:
    """The resolved config of a work directory; its plugins are imported, so that its networks are registered.

    In the place of a config.json that is empty, as after a power cut, or missing stands the newest checkpoint's copy.

    Raises:
      CheckpointError: config.json and its copy are missing, it is no JSON object of fields, or it says something else
        than the newest checkpoint.
      ConfigError: a plugin cannot be imported.
    """
    path, saved = run / "config.json", checkpoint_config(run)
    try:
        content = b"" if saved is not None and not path.exists() else path.read_bytes()
        config = saved if saved is not None and not content.strip(b"\0 \n\r\t") else json.loads(content)
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f'"{path}" cannot be read ({" ".join(str(error).split())}). Restore the file, or use another work '
            "directory."
        ) from None
    if wrong := _why_no_config(config):
        raise CheckpointError(f'"{path}" holds no config: {wrong}. Restore the file, or use another work directory.')
    if saved is not None and config is not saved:
        differing = differing_fields(config, saved, "in config.json", "in the checkpoint", ignored=MOVABLE)
        if differing:
            raise CheckpointError(
                f'"{path}" says something else than the newest checkpoint beside it, so one of them was changed after '
                f"the run wrote it. Restore config.json, or empty it to take the checkpoint's. They differ in: "
                f"{differing}."
            )
    import_plugins(config.get("plugins") or ())
    return config


def differing_fields(
    one: Any, other: Any, place: str, other_place: str, *, most: int = 8, ignored: Sequence[str] = ()
) -> str:
    """The fields in which two configs would compute something else, with both values; "" if there are none."""
    defaults, first, second = (flatten(ConfigDict(config)) for config in (base(), one, other))
    # A field that did not exist when the run was started had what is now its default.
    rows = [
        _difference(k, first.get(k, defaults.get(k)), second.get(k, defaults.get(k)), place, other_place)
        for k in sorted(first.keys() | second.keys())
        if not k.startswith(FREE_FIELDS)
        and k not in ignored
        and not (k == CLASS_ORDER and (k not in first or k not in second))
        and _jsonable(first.get(k, defaults.get(k))) != _jsonable(second.get(k, defaults.get(k)))
    ]
    more = f"; and {len(rows) - most} more" if len(rows) > most else ""
    return "; ".join(rows[:most]) + more


def _difference(field: str, one: Any, other: Any, place: str, other_place: str) -> str:
    """A field with both values; of long ones the part around their first difference."""
    texts = [repr(_jsonable(value)) for value in (one, other)]
    if max(map(len, texts)) > LONGEST_VALUE:
        same = next((i for i, (a, b) in enumerate(zip(*texts, strict=False)) if a != b), min(map(len, texts)))
        begin = max(0, same - LONGEST_VALUE // 4)
        room = LONGEST_VALUE - 6
        texts = [
            f"{'...' if begin else ''}{text[begin : begin + room]}{'...' if len(text) > begin + room else ''}"
            for text in texts
        ]
    return f"{field}: {texts[0]} {place}, {texts[1]} {other_place}"


def _jsonable(value: Any) -> Any:
    return json.loads(json.dumps(value.to_dict() if isinstance(value, ConfigDict) else value, default=str))
