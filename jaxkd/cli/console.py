"""Console side of the commands: argument parsing, the error exit and the progress bar."""

from __future__ import annotations

import argparse
import ast
import asyncio
import codecs
import contextlib
import functools
import json
import math
import os
import signal
import sys
import textwrap
import threading
import traceback
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, NoReturn

from jaxkd.cli.commands import error_prefix
from jaxkd.cli.layout import text_width
from jaxkd.errors import ConfigError, JaxkdError, TopologyError, did_you_mean, first_few, storage_error

Main = Callable[..., int]


class Parser(argparse.ArgumentParser):
    """An argument parser that raises ConfigError instead of printing its usage, and takes no abbreviated options.

    Args:
      rare: options that --help leaves out and --help-all shows.

    Attributes:
      replaced: options that do not exist, and what to write instead.
    """

    def __init__(self, *, rare: Collection[str] = (), **options: Any):
        usage = {"usage": "%(prog)s [OPTIONS]", "formatter_class": _Formatter, "allow_abbrev": False}
        super().__init__(**usage | options | {"description": _reflow(options.get("description") or "")})
        self.replaced: dict[str, str] = {}
        self._given: list[str] = []
        self._rare = frozenset(rare)
        if rare:
            words = f"show {len(self._rare)} more options"
            self.add_argument("--help-all", action=_HelpAll, nargs=0, default=argparse.SUPPRESS, help=words)

    def format_help(self, *, rare: bool = False) -> str:
        """The text of --help, or with `rare` of --help-all."""
        hidden = [] if rare else [a for a in self._actions if self._rare & {*a.option_strings}]
        texts = [action.help for action in hidden]
        for action in hidden:
            action.help = argparse.SUPPRESS
        try:
            return super().format_help()
        finally:
            for action, text in zip(hidden, texts, strict=True):
                action.help = text

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:
        """Raises ConfigError for an option of `replaced`."""
        self._given = [a.partition("=")[0] for a in (sys.argv[1:] if args is None else args)]
        for option in self._given:
            if option in self.replaced:
                raise ConfigError(f"{option} is not an option. Write {self.replaced[option]}.")
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """Raises ConfigError; of a misspelt option it says which one may be meant."""
        known = {option for action in self._actions for option in action.option_strings if option.startswith("--")}
        named = (w for w in self._given if w.startswith("--") and not w.startswith(("--config", "--workdir")))
        unknown = next((word for word in named if word not in known), "")
        meant = did_you_mean(unknown, known) if unknown else ""
        meant = f" {unknown} is not an option.{meant}" if meant else ""
        raise ConfigError(f"The command line was not understood: {message}.{meant} See {self.prog} --help.")


class _HelpAll(argparse.Action):
    """--help-all: prints the help with all options, and exits."""

    def __call__(self, parser: Any, *_: Any) -> None:
        print(parser.format_help(rare=True), end="")
        parser.exit()


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Help as wide as the terminal, at most 100 columns, with short names of values: N, X or a|b."""

    def __init__(self, prog: str):
        super().__init__(prog, width=text_width(), max_help_position=30)

    def _metavar_formatter(self, action: argparse.Action, default_metavar: str) -> Callable[[int], tuple[str, ...]]:
        short = {int: "N", float: "X"}.get(action.type, default_metavar if len(default_metavar or "") <= 8 else "NAME")
        choices = None if action.choices is None else "|".join(map(str, action.choices))
        return lambda count: (action.metavar or choices or short,) * count


def _reflow(text: str) -> str:
    """`text` with its paragraphs filled to `text_width()`; indented lines stay as they are."""
    parts = [p if p.startswith(" ") else textwrap.fill(p, text_width()) for p in text.strip("\n").split("\n\n")]
    return "\n\n".join(parts)


def model_argument(text: str) -> tuple[str, Any]:
    """`--model-arg`'s "depth=3" -> ("depth", 3); a value that is not a Python literal stays text."""
    name, separator, value = text.partition("=")
    if not separator:
        raise ConfigError(f'--model-arg="{text}" has no value. Write --model-arg=NAME=VALUE.')
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value


PLAIN = {"·": "-", "×": "x", "–": "-", "—": "-", "…": "...", "±": "+-", "≥": ">=", "≤": "<=", "μ": "u", "→": "->"}


def replace_characters() -> None:
    """Lets stdout and stderr replace what their encoding does not have: dots of a progress line, names of any bytes."""

    def replace(error: UnicodeError) -> tuple[str | bytes, int]:
        if isinstance(error, UnicodeEncodeError):
            known = [PLAIN.get(c) for c in error.object[error.start : error.end]]
            if None not in known:
                return "".join(known), error.end
        return codecs.backslashreplace_errors(error)

    codecs.register_error("jaxkd", replace)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="jaxkd")


def device_error(error: BaseException) -> JaxkdError | None:
    """The user error where JAX finds no device of the kind that JAX_PLATFORMS asks for; else None."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    in_jax = trace is not None and trace.tb_frame.f_code.co_filename.endswith("xla_bridge.py")
    missing_plugin = isinstance(error, AssertionError) and in_jax  # JAX has no words for it
    if not missing_plugin and not (isinstance(error, RuntimeError) and "Unable to initialize backend" in str(error)):
        return None
    reason = " ".join(str(error).split("(set JAX_PLATFORMS")[0].split())
    return TopologyError(
        f'JAX_PLATFORMS="{os.environ.get("JAX_PLATFORMS", "")}", and JAX cannot use such a device on this machine'
        f"{f' ({reason})' if reason else ''}. Install the extra for it (cuda or tpu), set JAX_PLATFORMS=cpu, or "
        "unset it."
    )


def command(stopped: str = "stopped.", *, resumable: bool = False) -> Callable[[Main], Main]:
    """Decorates the `main` of a command: user errors and what a disk refuses exit with 2, signals with 128 + number.

    Args:
      stopped: printed on Ctrl-C, SIGTERM and SIGHUP.
      resumable: the same command continues, and these signals return 3.
    """

    def decorate(main: Main) -> Main:
        @functools.wraps(main)
        def guarded(*args: Any, **options: Any) -> int:
            os.environ.pop("MPLBACKEND", None)  # a notebook's, which matplotlib may not know; figures need none
            replace_characters()
            try:
                with ended_by_signals():
                    return main(*args, **options)
            except KeyboardInterrupt as stop:
                print(f"{error_prefix()}: {stopped}", file=sys.stderr)
                code = 3 if resumable else 128 + (stop.args[0] if stop.args else signal.SIGINT)
                if _in_distributed_run():
                    _leave(code)
                return code
            except JaxkdError as error:
                _ignore_abandoned_coroutines()
                message = str(error)
            except Exception as error:
                refused = storage_error(error, continues=resumable) or device_error(error)
                if refused is None:
                    if _in_distributed_run():
                        traceback.print_exc()
                        _leave(1)
                    raise
                _ignore_abandoned_coroutines()
                message = str(refused)
            print(f"{error_prefix()}: {message}", file=sys.stderr)
            if _in_distributed_run():
                _leave(2)
            raise SystemExit(2)

        return guarded

    return decorate


def _ignore_abandoned_coroutines() -> None:
    """Keeps "coroutine ... was never awaited" off the console; all other warnings stay.

    A write that fails leaves those that Orbax had not started yet. Python notices them when the error is dropped, or
    when it exits, after the one sentence that says what is wrong.
    """
    warnings.filterwarnings("ignore", "coroutine '.*' was never awaited", RuntimeWarning)


def _in_distributed_run() -> bool:
    """Whether this process has joined others; imports no JAX."""
    jax = sys.modules.get("jax")
    return jax is not None and jax.distributed.is_initialized()


def _leave(code: int) -> None:
    """Ends this process at once: at the usual end JAX would wait for the others for minutes, and abort."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def refuse_options(given: Mapping[str, Any], why: str) -> None:
    """Raises ConfigError for options that were given and that nothing reads here.

    Args:
      given: option, such as "crop_pct", -> value; None and False are options that were left out.
      why: "deit_tiny_patch16_224 classifies images".
    """
    for name, value in given.items():
        if value is not None and value is not False:
            option = f"--{name.replace('_', '-')}" + ("" if value is True else f"={value}")
            raise ConfigError(f"{option} was given, but {why}, and nothing reads it there. Leave it out.")


def print_json(result: Mapping[str, Any]) -> None:
    """Prints one line of JSON; NaN and infinity, which JSON does not have, become null, and stderr names them."""
    nulls: list[str] = []

    def finite(value: Any, name: str) -> Any:
        if isinstance(value, Mapping):
            return {k: finite(v, f"{name}.{k}" if name else str(k)) for k, v in value.items()}
        if isinstance(value, list | tuple):
            return [finite(v, f"{name}[{i}]") for i, v in enumerate(value)]
        if isinstance(value, float) and not math.isfinite(value):
            nulls.append(f"{name}={value}")
            return None
        return value

    line = json.dumps(finite(result, ""), allow_nan=False)
    if nulls:
        shown = first_few(nulls, 5)
        print(f"jaxkd: not a finite number, so null in the line of JSON: {shown}", file=sys.stderr)
    print(line)


NOTEBOOK = ("JPY_PARENT_PID", "JPY_SESSION_NAME")  # of Jupyter, Colab and Kaggle in the programs that a cell starts


def terminal(width: int | None = None, *, stderr: bool = False) -> Any:
    """The rich console of a stream, whose bars are redrawn only on a terminal.

    In a file and in the output of a notebook's cell, bars become lines now and then. A notebook gives its programs a
    pseudo-terminal and sets FORCE_COLOR, which rich takes for a terminal.

    Args:
      width: columns where there is no terminal; None is rich's 80.
      stderr: the console of stderr in place of stdout.
    """
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    live = stream.isatty() and not any(name in os.environ for name in NOTEBOOK)
    return Console(stderr=stderr, width=None if live else width, force_terminal=None if live else False)


def progress(*, every_seconds: float = 20.0) -> Any:
    """A `train.Progress` on stderr, the progress bar of every command."""
    from jaxkd.train.progress import Progress

    return Progress(terminal(stderr=True), every_seconds=every_seconds)


def quiet() -> None:
    """Keeps log messages of Orbax and asyncio off the console: their errors are raised too, and said once in words."""
    import logging

    from absl import logging as absl_logging

    absl_logging.set_verbosity(absl_logging.FATAL)
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    asyncio.BaseEventLoop.call_soon_threadsafe = _call_unless_closed


_call_soon_threadsafe = asyncio.BaseEventLoop.call_soon_threadsafe


def _call_unless_closed(loop: asyncio.BaseEventLoop, *args: Any, **options: Any) -> Any:
    # TensorStore reports to a closed loop each write that ends after another one has failed, and prints a traceback.
    return None if loop.is_closed() else _call_soon_threadsafe(loop, *args, **options)


@contextlib.contextmanager
def ended_by_signals() -> Iterator[None]:
    """Context in which SIGTERM and SIGHUP end a program as Ctrl-C does, so that nothing half-written stays.

    A signal that is ignored (nohup) or handled already stays as it is; a second one kills.
    """

    def stop(number: int, frame: Any) -> NoReturn:
        signal.signal(number, signal.SIG_DFL)
        raise KeyboardInterrupt(number)

    def repeat(unraisable: Any) -> None:
        # Python drops an exception that a signal raises inside a finaliser or a callback: the signal would be lost.
        if not isinstance(unraisable.exc_value, KeyboardInterrupt):
            return report(unraisable)
        number = unraisable.exc_value.args[0] if unraisable.exc_value.args else signal.SIGINT
        if number in caught:
            signal.signal(number, stop)
        threading.Timer(0.05, os.kill, (os.getpid(), number)).start()  # from outside, when the finaliser is done

    caught = []
    if threading.current_thread() is threading.main_thread():  # Python allows handlers nowhere else
        names = (n for n in ("SIGTERM", "SIGHUP") if hasattr(signal, n))
        caught = [s for s in map(signal.Signals.__getitem__, names) if signal.getsignal(s) == signal.SIG_DFL]
    for number in caught:
        signal.signal(number, stop)
    report, sys.unraisablehook = sys.unraisablehook, repeat
    try:
        yield
    finally:
        sys.unraisablehook = report
        for number in caught:
            signal.signal(number, signal.SIG_DFL)
