"""Paths as users write them."""

from __future__ import annotations

from pathlib import Path

from jaxkd.errors import ConfigError


def user_path(text: str | Path, name: str) -> Path:
    """`text` with `~` and `~user` replaced: a shell leaves them as they are after an equals sign.

    Args:
      text: a path.
      name: of the option or field, for the message.

    Raises:
      ConfigError: no such user, or a NUL character, which no path can hold.
    """
    if "\0" in str(text):
        raise ConfigError(f"{name}={str(text)!r} holds a NUL character, which no path can hold. Choose another path.")
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise ConfigError(
            f'{name}="{text}" begins with the home folder of a user who does not exist. Write the whole path.'
        ) from None
