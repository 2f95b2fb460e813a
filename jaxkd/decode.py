"""Decodes the test readings of an EEG run: anchors, retrieval beside chance, controls and sentences.

    jaxkd decode --weights=runs/eeg --out=runs/eeg_report
    jaxkd decode --weights=runs/zuco_cross --data=/data/zuco --split=cross_subject --anchors=5 \\
        --llm=http://127.0.0.1:8080/v1 --llm-model=NAME --out=report
    jaxkd decode --weights=runs/eeg --llm=/models/llama --out=report

--out receives report.html, tables and sentences.jsonl. Everything is computed here. With --llm=URL, anchors of the test
readings and texts (training sentences as examples, or candidates) go to that server; EEG, subjects and which text was
read do not. With --llm=PATH, a Llama answers in this process: a .bin file of llama2.c, or a Hugging Face folder of
a LlamaForCausalLM. Its prompts are plain text, without a chat template.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxkd.cli import compile_cache, console
from jaxkd.cli.commands import program
from jaxkd.errors import ConfigError, check_range
from jaxkd.language.sentences import LOCAL_MODES, MODEL_MODES

RARE = ("--allow-leaks", "--pool", "--montage", "--llm-key-variable", "--llm-concurrency", "--llm-cache")


def _parser() -> argparse.ArgumentParser:
    parser = console.Parser(prog=program("decode"), description=__doc__, rare=RARE)
    group = parser.add_argument_group("run")
    group.add_argument("--weights", required=True, metavar="WORKDIR", help="work directory of a contrastive run")
    group.add_argument("--variant", default="", choices=("raw", "ema"), help="raw weights (default) or the average")
    group.add_argument("--step", default="", help='a number, "last" (default) or "best"')
    group.add_argument("--data", default="", help="recordings; default: as in training")
    group.add_argument("--split", default="", help="checked against that of the run")
    group.add_argument("--allow-leaks", action="store_true", help="although parts of the split share texts")
    group = parser.add_argument_group("anchors and candidates")
    group.add_argument("--anchors", default="dev", metavar="K|all|dev", help="dev: chosen on the development part")
    group.add_argument(
        "--pool", action="append", type=int, default=[], metavar="N", help="a further number of candidates"
    )
    group.add_argument("--skip-retraining", action="store_true", help="leave out controls that train networks")
    group.add_argument("--montage", default="", metavar="FILE", help=".npz with coords (electrodes, 3), for maps")
    group = parser.add_argument_group("sentences")
    modes = (*LOCAL_MODES, *MODEL_MODES)
    group.add_argument("--mode", action="append", default=[], choices=modes, help="may be repeated; default: all")
    group.add_argument("--llm", default="", metavar="URL|PATH", help="OpenAI-compatible server (.../v1), or a Llama")
    group.add_argument("--llm-model", default="", metavar="NAME", help="model at that server")
    group.add_argument("--llm-key-variable", default="", metavar="NAME", help="environment variable with the key")
    group.add_argument(
        "--llm-extra", default="", metavar="JSON", help='further fields of a request, such as {"top_k": 1}'
    )
    group.add_argument("--llm-concurrency", type=int, default=4, metavar="N", help="requests at once")
    group.add_argument("--llm-cache", default="", metavar="PATH", help="file or folder of kept answers; default: --out")
    group = parser.add_argument_group("output")
    group.add_argument("--out", required=True, help="folder of the report")
    group.add_argument("--overwrite", action="store_true", help="replace an earlier report in --out")
    group.add_argument("--no-figures", action="store_true", help="numbers only")
    compile_cache.add_option(parser)
    return parser


def _anchors(text: str) -> int | None:
    """ "dev" -> 0, "all" -> None, "5" -> 5."""
    if text in ("dev", "all"):
        return 0 if text == "dev" else None
    if not text.isdigit() or int(text) < 1:
        raise ConfigError(f'--anchors="{text}" is no number of anchors. Give a number above 0, "all" or "dev".')
    return int(text)


def decode(args: argparse.Namespace, command: str) -> dict[str, Any]:
    """Runs the decoding that `args` (see `--help`) describe; returns what results.json holds."""
    from jaxkd.analysis.pipeline import open_report
    from jaxkd.experiment.eeg import decode as decoding
    from jaxkd.experiment.eeg import sentences as sentence_parts
    from jaxkd.experiment.eeg.results import collect, read_scalp
    from jaxkd.report.decoding import write_decoding

    begin, k = time.perf_counter(), _anchors(args.anchors)
    for number in args.pool:
        check_range("--pool", number, 2, whole=True, meaning="the number of candidates")
    check_range("--llm-concurrency", args.llm_concurrency, 1, 256, whole=True)
    out = open_report(args.out, overwrite=args.overwrite)
    model = _language_model(args, out)
    changes = {"data.source": args.data} if args.data else {}
    changes |= {"eeg.split": args.split} if args.split else {}
    with console.progress() as progress:
        opened = decoding.open_run(
            args.weights,
            changes=changes,
            allow_leaks=args.allow_leaks,
            variant=args.variant,
            step=args.step,
            on_progress=lambda *done: progress.show("reading", *done),
        )
        scalp = read_scalp(opened, args.montage) if args.montage else None
        progress.say(f"{opened.origin} · {len(opened.eeg_data.split.test):,} test readings")
        found = decoding.decode(opened, k=k, pools=[str(number) for number in args.pool])
        shown = ", ".join(f"{r['k'] or 'all'}: {r['top5']:.1f}" for r in found.curve if r["part"] == "dev")
        progress.say(f"top-5 on the development part by number of anchors: {shown} · {found.k or 'all'} anchors")
        trained: dict[str, Any] = {}
        rows = decoding.run_controls(
            opened, found, retrain=not args.skip_retraining, trained=trained, progress=progress
        )
        sentences, text_metrics, reranked = sentence_parts.make_sentences(
            *(opened, found, args.mode, model),
            concurrency=args.llm_concurrency,
            progress=progress,
            noise=trained.get("noise"),
        )
    sentence_parts.write_sentences([row for rows in sentences for row in rows], out)
    results = collect(
        opened,
        decoding.with_methods(found, reranked),
        rows,
        sentences=sentences[0],
        text_metrics=text_metrics,
        scalp=scalp,
        settings={"command": command, "seconds": time.perf_counter() - begin, "date": time.strftime("%Y-%m-%d %H:%M")},
    )
    write_decoding(results, out, figures=not args.no_figures)
    return results


def _extra(text: str) -> dict[str, Any]:
    """The fields of `--llm-extra`."""
    try:
        found = json.loads(text or "{}")
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise ConfigError(f'--llm-extra="{text}" is no JSON object. Give one such as {{"top_k": 1}}.')
    return found


def _language_model(args: argparse.Namespace, out: Path) -> Any:
    """The language model of the command line with its cache, or None."""
    from jaxkd.experiment.eeg.local_model import LocalLlama, is_local
    from jaxkd.language.models import ANSWERS, CachedModel, OpenAiCompatible

    wanted = [mode for mode in args.mode if mode in MODEL_MODES]
    if not args.llm:
        names = ("llm_model", "llm_key_variable", "llm_extra", "llm_cache")
        console.refuse_options({k: getattr(args, k) or None for k in names}, "no --llm was given")
        if wanted:
            raise ConfigError(f"--mode={wanted[0]} needs a language model. Give its address with --llm.")
        return None
    if is_local(args.llm):
        names = ("llm_model", "llm_key_variable", "llm_extra")
        console.refuse_options({k: getattr(args, k) or None for k in names}, "--llm names a Llama on this machine")
        model = LocalLlama(args.llm)
    elif not args.llm_model:
        raise ConfigError("--llm was given without --llm-model. Give the name of the model at that server.")
    else:
        extra = _extra(args.llm_extra)
        model = OpenAiCompatible(args.llm, args.llm_model, key_variable=args.llm_key_variable, extra=extra)
    cache = Path(args.llm_cache).expanduser() if args.llm_cache else out / ANSWERS
    return CachedModel(model, cache)


@console.command("stopped; answers of the language model stay, and the same command continues.", resumable=True)
def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; exit code 0, or 2 for a user error."""
    from jaxkd.report.decoding import print_decoding

    argv = sys.argv[1:] if argv is None else list(argv)
    args = _parser().parse_args(argv)
    console.quiet()
    compile_cache.use_compile_cache(not args.no_compile_cache)
    results = decode(args, f"{program('decode')} {shlex.join(argv)}")
    print_decoding(results)
    written = Path(args.out).expanduser() / ("results.json" if args.no_figures else "report.html")
    print(f"{written} ({results['settings']['seconds']:.1f} s)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
