"""Command lines of commands that train: --config with its overrides, --workdir, and what errors say of them."""

from __future__ import annotations

import ast
import contextlib
import io
import itertools
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from absl import flags
from ml_collections import ConfigDict, config_flags

from jaxkd.cli.commands import program
from jaxkd.config.fields import ARGS, base, change, flatten, kind_of
from jaxkd.config.packaged import is_recipe_name, recipes
from jaxkd.config.paths import user_path
from jaxkd.config.plugins import add_plugin_folder
from jaxkd.config.stages import objective_fields_of_stages, overridden_fields
from jaxkd.config.validate import OBJECTIVE, SWITCHES, check_stages, forget_unread
from jaxkd.errors import ConfigError, JaxkdError, MemberFieldError, check_range, did_you_mean

EXAMPLES = {
    "train": "--config=deit_cait:embedded --workdir=runs/first_light",
    "study": "--config=encoding_mismatch --workdir=runs/mismatch --dry-run",
    "plan": "--config=deit_cait --topology=v5e:4x4",
}
OPTIONS = ("config", "workdir", "distributed", "profile", "no-compile-cache")
# A trace file holds a million events; a step of a CaiT of 6 blocks on a CPU has 5,000, and larger networks have more.
MOST_PROFILED = 50


class Given(NamedTuple):
    """Options of a command that trains."""

    config: ConfigDict
    workdir: str
    distributed: bool | None
    compile_cache: bool
    profile: int  # steps to trace, 0 for none


def usage(command: str) -> str:
    """A sentence with a command line that works, spelt as the user started `command`."""
    return f"For example: {program(command)} {EXAMPLES[command]}"


def _with_config_file(argv: Sequence[str], command: str) -> tuple[list[str], str]:
    """(the command line with the path of its config file, that path): `--config=deit_cait:embedded` names a recipe.

    Raises:
      ConfigError: no --config, no such file, or no such recipe.
    """
    given = [a.split("=", 1)[1] for a in argv if a.startswith("--config=")]
    given += [b for a, b in itertools.pairwise(argv) if a == "--config"]
    if not given:
        raise ConfigError(f"No --config was given. {usage(command)}")
    name, colon, words = given[0].partition(":")
    known = recipes()
    if is_recipe_name(name) and (name in known or not Path(name).is_file()):
        if name not in known:
            raise ConfigError(
                f'--config="{name}" is no recipe of jaxkd.{did_you_mean(name, known)} There are '
                f"{', '.join(known) or 'none'}; a config file of your own is given by its path, such as mine.py."
            )
        file = str(known[name])
    else:
        file = str(user_path(name, "--config")) if name.startswith("~") else name
    if not Path(file).is_file():
        folder = Path(file).parent if Path(file).parent.is_dir() else Path("configs")
        there = sorted(str(p) for p in folder.glob("*.py"))
        meant = f' Did you mean "{Path(file).stem}"?' if Path(file).stem in known else did_you_mean(file, there)
        here = f" Here are: {', '.join(there)}." if there else ""
        raise ConfigError(
            f'--config="{file}" is not a file.{meant} A '
            f"config is a Python file with get_config(), or a recipe of jaxkd: {', '.join(known)}.{here}"
        )
    path = file + colon + words
    replaced = [f"--config={path}" if a == f"--config={given[0]}" else a for a in argv]
    return [path if a == given[0] and b == "--config" else a for b, a in itertools.pairwise(["", *replaced])], file


def parse(argv: Sequence[str], command: str = "train") -> Given:
    """Reads a command line.

    Args:
      argv: without the program's name.
      command: whose command line it is, for the examples in messages.

    Raises:
      JaxkdError: something is wrong with it.
    """
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", None, "a config file, perhaps with :arguments", flag_values=values)
    flags.DEFINE_string("workdir", "", "where checkpoints and metrics go", flag_values=values)
    flags.DEFINE_bool("distributed", None, "join the other processes of a pod or cluster", flag_values=values)
    flags.DEFINE_integer("profile", None, "steps to trace", flag_values=values)
    flags.DEFINE_bool("no-compile-cache", False, "neither keep nor load compiled programs", flag_values=values)
    argv, file = _with_config_file(argv, command)
    argv, network_args = _split_network_args(_spell_switches(argv))
    sys_argv, sys.argv = sys.argv, ["jaxkd", *argv]  # where ml_collections looks for overrides, whatever it is given
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            rest = values(sys.argv)
    except JaxkdError:
        raise
    except (ImportError, NameError, SyntaxError) as error:
        raise ConfigError(
            f'The config file "{file}" cannot be run: {type(error).__name__}: {error}. Correct it, or start '
            "from the recipe supervised."
        ) from None
    except (AttributeError, KeyError, TypeError, ValueError, flags.Error) as error:
        raise _flag_error(argv, error, command) from None
    finally:
        sys.argv = sys_argv
    if rest[1:]:
        raise ConfigError(f'"{rest[1]}" is not an option; options start with two dashes. {usage(command)}')
    if not values.workdir:
        raise ConfigError(f"No --workdir was given. {usage(command)}")
    given = _given_fields(argv)
    config = change(values.config, network_args).lock()
    if config.plugins:
        add_plugin_folder(Path(file).parent)
    if given & OBJECTIVE:
        check_stages(config)
        config = forget_unread(config, given | objective_fields_of_stages(config))
    workdir = str(user_path(values.workdir, "--workdir"))
    if values.profile is not None:
        check_range("--profile", values.profile, 1, MOST_PROFILED, whole=True, meaning="the number of steps to trace")
    return Given(config, workdir, values.distributed, not values["no-compile-cache"].value, values.profile or 0)


def _given_fields(argv: Sequence[str]) -> set[str]:
    """Fields that a command line sets, without its --config."""
    return {a.split("=", 1)[0].removeprefix("--config.") for a in argv if a.startswith("--config.")}


def print_overridden(config: ConfigDict, argv: Sequence[str], *, stage: str = "") -> None:
    """Says on stderr which fields of the command line have other values in a stage (all stages), which sets them.

    Args:
      config: as `parse` returned it, with stages of the right form.
      argv: the command line.
      stage: the only one that matters; "" for all.
    """
    found = overridden_fields(config, _given_fields(argv))
    words = [
        f"{name} has {', '.join(f'{field}={value!r}' for field, value in own.items())}"
        for name, own in found.items()
        if stage in ("", name)
    ]
    if words:
        print(
            f"jaxkd: stages have values of their own for fields of the command line: {'; '.join(words)}. The config "
            "file sets them.",
            file=sys.stderr,
        )


@contextlib.contextmanager
def explain_recipe(config: ConfigDict, argv: Sequence[str]) -> Iterator[None]:
    """Adds to a user error which of the fields that its message names were set by the config file, not by `argv`."""
    try:
        yield
    except JaxkdError as error:
        known, values, given = flatten(base()), flatten(config), _given_fields(argv)
        named = dict.fromkeys(re.findall(r"\b[a-z0-9_]+(?:\.[a-z0-9_]+)+", str(error)))
        set_here = [f for f in named if f in values and f not in given and values[f] != known.get(f)]
        # A stage may have another value than the config that it changes.
        set_here = [f for f in set_here if f"{f}=" not in str(error) or f"{f}={values[f]!r}" in str(error)]
        # The fields that a MemberFieldError lists are not wrong.
        if isinstance(error, MemberFieldError) or not set_here or given.isdisjoint(values):
            raise
        words = ", ".join(f"{f}={values[f]!r}" for f in set_here)
        error.args = (f"{error} The config file set {words}; --config.{set_here[0]}=VALUE changes it.",)
        raise


def _spell_switches(argv: Sequence[str]) -> list[str]:
    """Options of switches with True for `--config.precision.remat` alone and for `=true`, which would be a word."""
    spelt = list(argv)
    for i, word in enumerate(argv):
        name, equals, text = word.partition("=")
        if name.removeprefix("--config.") in SWITCHES:
            alone = not equals and all(following.startswith("-") for following in argv[i + 1 : i + 2])
            text = {"true": "True", "false": "False"}.get(text.lower(), text)
            spelt[i] = f"{name}=True" if alone else name + equals + text
    return spelt


def _split_network_args(argv: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """(the other arguments, {"student.args.depth": 3, ...}): a config has no fields for a constructor's arguments."""
    rest, found = [], {}
    words = iter(argv)
    for word in words:
        name, equals, text = word.partition("=")
        field = name.lstrip("-").removeprefix("config.")
        if not (name.startswith("-") and field.startswith(ARGS) and field not in ARGS):
            rest.append(word)
            continue
        text = text if equals else next(words, "")
        try:
            found[field] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            found[field] = {"true": True, "false": False}.get(text.lower(), text)
    return rest, found


def _flag_error(argv: Sequence[str], error: Exception, command: str) -> ConfigError:
    """The paragraph for what absl and ml_collections raise: it names the option, the nearest field and the type."""
    known = flatten(base())
    for arg in argv:
        name, _, value = arg.removeprefix("--").partition("=")
        if name.startswith("config."):
            field = name.removeprefix("config.")
            if field not in known:
                return ConfigError(
                    f"--{name} is not a field of the config.{did_you_mean(field, known)} jaxkd train "
                    "--fields lists every field."
                )
            if str(error).find(value) >= 0 and name in str(error):
                kind = kind_of(field)
                return ConfigError(
                    f'--{name}="{value}" has a value of the wrong type. Give a value of type {kind}, such as the '
                    f"default {known[field]!r}."
                )
        elif name not in OPTIONS and arg.startswith("--"):
            return ConfigError(
                f'"{arg}" is not an option.{did_you_mean(name, OPTIONS)} There are --config.<field>, '
                f"{', '.join(f'--{option}' for option in OPTIONS)}. {usage(command)}"
            )
    text = " ".join(str(error).split())
    return ConfigError(f"The command line or the config file was not understood: {text}. {usage(command)}")
