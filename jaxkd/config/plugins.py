"""Import of a user's own modules, which register networks, terms and data sources; imports no JAX itself."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterable
from pathlib import Path

from jaxkd.errors import ConfigError, JaxkdError


def add_plugin_folder(folder: str | Path) -> None:
    """Lets `import_plugins` find modules in `folder`, such as the config file's."""
    # At the end, so that no file beside a config hides a package; for good, as worker processes copy the path.
    place = str(Path(folder).absolute())
    if place not in sys.path:
        sys.path.append(place)


def import_plugins(names: Iterable[str]) -> None:
    """Imports the modules of `config.plugins`, each once in a process.

    Args:
      names: of modules, such as ("my_networks",), in the current folder, in one given to `add_plugin_folder` or on
        Python's path.
    """
    if isinstance(names, str):
        raise ConfigError(f'plugins="{names}" is one string, but plugins are a tuple of names. Write ("{names}",).')
    if names:
        add_plugin_folder(Path.cwd())
    for name in names:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name != name.partition(".")[0] and error.name != name:
                raise _failed(name, error) from error
            raise ConfigError(
                f'plugins names "{name}", and there is no such module. Put {name.partition(".")[0]}.py into the '
                "current folder or beside the config file, or its folder on PYTHONPATH."
            ) from None
        except JaxkdError as error:
            raise ConfigError(f'The plugin "{name}" cannot be used. {error}') from error
        except Exception as error:  # whatever a user's module raises
            raise _failed(name, error) from error


def _failed(name: str, error: Exception) -> ConfigError:
    text = " ".join(str(error).split())
    return ConfigError(
        f'The plugin "{name}" fails while it is imported: {type(error).__name__}: {text}. Correct the module; '
        f'`python -c "import {name}"` shows where it fails.'
    )
