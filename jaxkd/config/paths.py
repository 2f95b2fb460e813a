"""Paths as users write them."""

from __future__ import annotations

import os
import re
from pathlib import Path

from jaxkd.errors import ConfigError

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


def has_scheme(text: str | Path) -> bool:
    """Whether `text` is an address such as gs://bucket/folder, and no path."""
    return _SCHEME.match(str(text)) is not None


def user_cache_folder() -> Path | None:
    """~/.cache/jaxkd, or below XDG_CACHE_HOME; None where there is no home folder."""
    home = os.environ.get("XDG_CACHE_HOME", "")
    try:
        return (Path(home) if os.path.isabs(home) else Path.home() / ".cache") / "jaxkd"
    except RuntimeError:
        return None


def user_path(text: str | Path, name: str) -> Path:
    """`text` with `~` and `~user` replaced: a shell leaves them as they are after an equals sign.

    Args:
      text: a path.
      name: of the option or field, for the message.

    Raises:
      ConfigError: no such user, a NUL character, which no path can hold, or the address of an object store.
    """
    if has_scheme(text):
        raise ConfigError(
            f'{name}="{text}" is an address, and {name} is a path. Give a folder or file of this machine; of object '
            "stores only data.source is read (shards). Copy others with gcloud storage cp -r or aws s3 cp --recursive."
        )
    if "\0" in str(text):
        raise ConfigError(f"{name}={str(text)!r} holds a NUL character, which no path can hold. Choose another path.")
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise ConfigError(
            f'{name}="{text}" begins with the home folder of a user who does not exist. Write the whole path.'
        ) from None
