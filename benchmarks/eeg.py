"""Seconds that a corpus of word-level EEG takes from files to batches.

    python benchmarks/eeg.py --folder=/tmp/zuco > eeg.json
    python benchmarks/eeg.py --folder=/tmp/zuco --formats zuco2          # files that are there are not written again
    python benchmarks/eeg.py --formats --network=eeg_words_base          # training and decoding as well, no files

Makes the synthetic corpus (12 subjects x 1,107 sentences, the size of ZuCo 1.0), writes it as files of ZuCo 1.0, of
ZuCo 2.0 and as a pickle, and times reading each, making the cache, the next start, which checks and maps the cache,
and one epoch of training batches from memory and from the cache. `dominates` names the functions that took most of the
time of reading one subject, or of 5 batches, with their share under a profiler, which slows down Python more than it
does HDF5 and NumPy. `cpu_seconds` are of the processor, of this process and those it waited for: on a machine with
other work they can be compared, and `seconds` cannot. Files that were just written or read are in the memory of the
operating system: disks are not timed. The files hold one measure of the EEG and no raw signals, which make those of
ZuCo many times as large.
Prints one JSON object; progress goes to standard error.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import os
import platform
import pstats
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from jaxkd.data import EegCorpus, EegLabels, EegPipeline, open_eeg
from jaxkd.data.sources.synthetic_zuco import SYNTHETIC_ZUCO
from jaxkd.data.sources.zuco_write import FORMATS, write_zuco
from jaxkd.errors import JaxkdError

MEASURE = "GD"


def say(text: str) -> None:
    """Progress, beside the result."""
    print(text, file=sys.stderr, flush=True)


def parse(argv: list[str]) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--subjects", type=int, default=12, help="readers (12)")
    parser.add_argument("--sentences", type=int, default=1107, help="sentences that each reads (1107)")
    parser.add_argument("--words", default="6-14", help="words of a sentence (6-14)")
    parser.add_argument("--batch-size", type=int, default=256, help="readings in a batch (256)")
    parser.add_argument("--formats", nargs="*", choices=FORMATS, default=list(FORMATS), help="files to read (all)")
    parser.add_argument("--folder", type=Path, help="where the files are made and kept (a temporary folder)")
    parser.add_argument("--network", default="", help="also train it for an epoch and decode the test part (no)")
    return parser.parse_args(argv)


def timed(function: Callable[[], Any]) -> tuple[Any, float]:
    """The result of a call, and its seconds of wall time."""
    begin = time.perf_counter()
    result = function()
    return result, round(time.perf_counter() - begin, 3)


def processor() -> float:
    """Seconds of processor time of this process and of those it waited for."""
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


def timed_twice(function: Callable[[], Any]) -> tuple[Any, float, float]:
    """The result of a call, its seconds of wall time, and those of the processor."""
    begin = processor()
    result, seconds = timed(function)
    return result, seconds, round(processor() - begin, 3)


def dominating(function: Callable[[], Any], most: int = 4) -> dict[str, float]:
    """The functions in which a call spent most of its time, callees not counted, and their shares."""
    profile = cProfile.Profile()
    profile.runcall(function)
    stats = pstats.Stats(profile).stats
    seconds = {f"{Path(file).name}:{name}".removeprefix("~:"): row[2] for (file, _, name), row in stats.items()}
    total = sum(row[2] for row in stats.values())
    largest = sorted(seconds.items(), key=lambda item: -item[1])[:most]
    return {name: round(value / total, 3) for name, value in largest}


def time_format(corpus: EegCorpus, name: str, folder: Path) -> dict[str, Any]:
    """Seconds to write (None where the files were there), to read, to make the cache, and to start with it."""
    seconds: dict[str, Any] = {"write": None}
    cpu: dict[str, Any] = {"write": None}
    files = folder / name
    if not files.exists():
        say(f"writing {name}")
        part = folder / f"{name}.part"
        _, seconds["write"], cpu["write"] = timed_twice(lambda: write_zuco(corpus, part, name, measures=(MEASURE,)))
        part.rename(files)
    cache = folder / f"{name}.cache"
    shutil.rmtree(cache, ignore_errors=True)
    say(f"reading {name}")
    begin, used, last = time.perf_counter(), processor(), [0.0, 0.0]

    def on_progress(done: int, total: int, status: str) -> None:
        last[:] = time.perf_counter() - begin, processor() - used

    found, both, both_cpu = timed_twice(lambda: open_eeg(files, measure=MEASURE, cache=cache, on_progress=on_progress))
    if found.fingerprint != corpus.fingerprint:
        raise JaxkdError(f'"{files}" holds another corpus. Remove it, or choose another --folder.')
    del found
    for kind, whole, reading in ((seconds, both, last[0]), (cpu, both_cpu, last[1])):
        kind |= {"read": round(reading, 3), "make_corpus_and_cache": round(whole - reading, 3)}
    _, seconds["start_with_cache"], cpu["start_with_cache"] = timed_twice(
        lambda: open_eeg(files, measure=MEASURE, cache=cache)
    )
    one = corpus.subjects[:1]
    share = dominating(lambda: open_eeg(files, measure=MEASURE, subjects=one))
    size = sum(path.stat().st_size for path in files.iterdir())
    return {"megabytes": round(size / 1e6, 1), "seconds": seconds, "cpu_seconds": cpu, "dominates": share}


def time_epoch(corpus: EegCorpus, batch_size: int) -> dict[str, Any]:
    """Seconds of one epoch of batches, after its first batch."""
    pipeline, made = timed(lambda: EegPipeline(corpus, EegLabels.of(corpus), batch_size=batch_size, seed=0))
    next(pipeline)

    def epoch() -> None:
        for _ in range(pipeline.steps_per_epoch):
            next(pipeline)

    _, seconds = timed(epoch)
    steps = pipeline.steps_per_epoch
    return {
        "batch_size": batch_size,
        "steps": steps,
        "seconds": seconds,
        "seconds_to_make_the_pipeline": made,
        "readings_per_second": round(steps * batch_size / seconds),
        "dominates": dominating(lambda: [next(pipeline) for _ in range(5)]),
    }


def time_run(corpus: EegCorpus, network: str, batch_size: int) -> dict[str, Any]:
    """Seconds of an epoch of training, and of the test part through the network and its retrieval without controls."""
    import jax

    from jaxkd import parallel
    from jaxkd.config import fields, recipes
    from jaxkd.experiment.build import assemble
    from jaxkd.experiment.eeg import decode
    from jaxkd.experiment.eeg.components import components_of
    from jaxkd.experiment.eeg.data import open_eeg_data
    from jaxkd.experiment.eeg.fit import Fitted, compile_embed

    changes = {"student.name": network, "train.batch_size": batch_size, "data.source": SYNTHETIC_ZUCO}
    config = fields.change(recipes.contrastive(fields.base()), changes)
    eeg_data, opening = timed(lambda: open_eeg_data(config, corpus=corpus))
    config = fields.change(config, {"student.args.in_features": eeg_data.width}).lock()
    mesh = parallel.make_mesh(1)
    experiment = assemble(components_of(config, eeg_data, mesh), mesh)
    step, held = experiment.compile_step(), [experiment.init_state()]

    def train(steps: int) -> None:
        for _ in range(steps):
            batch = {k: v for k, v in next(experiment.pipeline).items() if k in experiment.abstract_batch}
            held[0], _ = step(held[0], parallel.put_batch(batch, mesh), experiment.key, experiment.constants)
        jax.block_until_ready(held[0].step)

    steps = experiment.pipeline.steps_per_epoch
    say("training")
    _, first = timed(lambda: train(1))
    _, epoch = timed(lambda: train(steps))
    embed = compile_embed(experiment.task)
    fitted = Fitted(experiment.task, held[0].params, embed, mesh, batch_size, config.eeg.max_words)
    say("decoding")
    test = eeg_data.split.test
    _, network_alone = timed(lambda: fitted.decode(eeg_data, test))
    opened = decode.Opened(config, eeg_data, fitted, "")
    _, decoding = timed(lambda: decode.decode(opened, k=5))
    return {
        "network": network,
        "steps": steps,
        "test_readings": len(test),
        "test_texts": len(set(eeg_data.split.group[test].tolist())),
        "seconds": {
            "split, leaks and keywords": opening,
            "first step with compiling": first,
            "epoch": epoch,
            "test part through the network": network_alone,
            "decoding of both parts with intervals": decoding,
        },
        "dominates": dominating(lambda: decode.decode(opened, k=5)),
    }


def main(argv: list[str] | None = None) -> int:
    """Prints one JSON object."""
    args = parse(sys.argv[1:] if argv is None else argv)
    spec = (
        f"embedded:synthetic_zuco?subjects={args.subjects}&sentences={args.sentences}&vocabulary=800&words={args.words}"
    )
    say("making the corpus")
    corpus, seconds = timed(lambda: open_eeg(spec))
    result: dict[str, Any] = {
        "corpus": {
            "spec": spec,
            "readings": len(corpus),
            "words": len(corpus.word),
            "megabytes": round(corpus.eeg.nbytes / 1e6, 1),
            "seconds_to_make": seconds,
        },
        "machine": {"cpu_count": os.cpu_count(), "platform": platform.platform(), "load": os.getloadavg()[0]},
        "versions": {"python": platform.python_version()} | {n: version(n) for n in ("numpy", "scipy", "h5py")},
        "epoch": time_epoch(corpus, args.batch_size),
        "formats": {},
    }
    if args.network:
        result["run"] = time_run(corpus, args.network, args.batch_size)
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        for name in args.formats:
            result["formats"][name] = time_format(corpus, name, folder)
        if args.formats:
            name = args.formats[-1]
            mapped = open_eeg(folder / name, measure=MEASURE, cache=folder / f"{name}.cache")
            result["epoch_from_cache"] = time_epoch(mapped, args.batch_size)
    print(json.dumps(result, indent=1))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except JaxkdError as error:
        sys.exit(f"benchmarks/eeg.py: {error}")
