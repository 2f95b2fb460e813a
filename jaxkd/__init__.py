"""jaxkd: distil, analyse and compress vision models in JAX. `import jaxkd` imports no framework; submodules do."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:  # what `__getattr__` imports later, for type checkers and editors
    from jaxkd.inference import load as load
    from jaxkd.inference import predict as predict

__version__ = "0.2.0"

_LAZY = {"load": "jaxkd.inference", "predict": "jaxkd.inference"}  # name -> module that has it


def __getattr__(name: str):
    """Imports what `jaxkd.load` and `jaxkd.predict` need when they are first asked for."""
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])
