"""Rate at which training images get from files to batches, against PyTorch's DataLoader with timm's transform.

    python benchmarks/input_pipeline.py --images=IMAGENET/train --peer=torch > input_pipeline.json

Times jaxkd's whole train pipeline (read, decode, RandomResizedCrop, mirror, RandAugment, batch; worker processes; uint8
batches arrive in the main process, where they could be put on a device) in three ways: `pillow`, `region` (decodes
only the crop; the same pixels, and the default where TurboJPEG is installed) and `region_dct` (with DCT scaling: other
pixels). With --peer=torch also `timm`, which normalises and erases on the host, as its train script does with
--no-prefetcher, and `timm_prefetcher`, which leaves that to the device, as jaxkd does. Prints one JSON object.

All run in turns in one process, on the same images in the same order; worker processes that are not in turn are
stopped. Ratios are the result, and those of CPU time are the steadier ones; absolute numbers are of this machine at
this time. A ratio above 1 says that jaxkd is faster. Needs Linux.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import multiprocessing
import os
import platform
import signal
import sys
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from peer_timm import ERASE_MODE, ERASE_PROBABILITY, Recipe
from PIL import Image

from jaxkd import data
from jaxkd.data.pipeline.sampler import EpochSampler, record_rng
from jaxkd.data.sources.folder import EXTENSIONS
from jaxkd.data.transforms.crops import Box, random_resized_box
from jaxkd.data.transforms.decode import decode_rgb, read_file
from jaxkd.data.transforms.fast_decode import DecodeOptions, decode_crop_resize, region_decoding
from jaxkd.data.transforms.randaugment import auto_augment, fill_from_mean
from jaxkd.errors import ConfigError, DataError, JaxkdError

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SEED = 0
VARIANTS = {
    "pillow": DecodeOptions(region="off"),
    "region": DecodeOptions(),
    "region_dct": DecodeOptions(dct_scaling=True),
}


def say(text: str) -> None:
    """Progress, beside the result."""
    print(text, file=sys.stderr, flush=True)


def parse(argv: list[str]) -> argparse.Namespace:
    """The options.

    Raises:
      ConfigError: a number that is too small, or another system than Linux.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--images", required=True, help="folder with images, at any depth")
    parser.add_argument("--peer", choices=("torch",), help="also time torch's DataLoader with timm's transform")
    parser.add_argument("--workers", type=int, default=2, help="processes of each pipeline (2)")
    parser.add_argument("--batch-size", type=int, default=64, help="images in a batch (64)")
    parser.add_argument("--image-size", type=int, default=224, help="side of the crops (224)")
    parser.add_argument("--policy", default="rand-m9-mstd0.5-inc1", help="of RandAugment (rand-m9-mstd0.5-inc1)")
    parser.add_argument("--turns", type=int, default=15, help="timed turns of each pipeline (15)")
    parser.add_argument("--batches", type=int, default=4, help="timed batches in a turn (4)")
    parser.add_argument("--profile", type=int, default=200, help="images whose stages are timed one by one (200)")
    parser.add_argument(
        "--rates", type=int, nargs="+", default=[1000, 2500, 5000, 10000], help="images/s to be fed, for the cores"
    )
    options = parser.parse_args(argv)
    for name in ("workers", "batch_size", "image_size", "turns", "batches", "profile"):
        if getattr(options, name) < 1:
            raise ConfigError(
                f"--{name.replace('_', '-')}={getattr(options, name)} must be at least 1. Nothing would be timed. "
                "Leave it out for its default."
            )
    if not Path("/proc/self/stat").exists():
        raise ConfigError(
            f"This benchmark runs on Linux only, not on {platform.system()}. It reads the CPU time of worker "
            "processes from /proc. Run it on the machine that shall train."
        )
    return options


class Files:
    """All images below a folder, as a `data.Source` with one class.

    Raises:
      DataError: there are none.
    """

    def __init__(self, folder: str, at_least: int):
        paths = sorted(str(p) for p in Path(folder).rglob("*") if p.suffix.lower() in EXTENSIONS)
        if not paths:
            raise DataError(
                f'There is no image below --images="{folder}". Something has to be read. Give a folder with files '
                f"that end in {', '.join(EXTENSIONS[:4])}, ..."
            )
        self.different = len(paths)
        self.paths = paths * math.ceil(at_least / len(paths))
        self.class_names = self.class_words = ("image",)
        self.class_counts = np.array([len(self.paths)])
        self.exif = False

    def __len__(self) -> int:
        return len(self.paths)

    def label(self, index: int) -> int:
        """See `data.Source`."""
        return 0

    def name(self, index: int) -> str:
        """See `data.Source`."""
        return self.paths[index]

    def bytes(self, index: int) -> bytes:
        """See `data.Source`."""
        return read_file(self.paths[index])

    def image(self, index: int) -> Image.Image:
        """See `data.Source`."""
        return decode_rgb(self.bytes(index), self.name(index))


class Feed:
    """A pipeline whose worker processes run only in its turns.

    Args:
      start: returns endless batches; before, there are no workers.
    """

    def __init__(self, start: Callable[[], Iterator[Any]]):
        others = set(multiprocessing.active_children())
        self._batches = start()
        next(self._batches)
        self._workers = [p.pid for p in set(multiprocessing.active_children()) - others]
        assert self._workers, "a pipeline without worker processes would run in the turns of the others"
        self.seconds: list[float] = []
        self.cpu_seconds: list[float] = []
        self._signal(signal.SIGSTOP)

    def _signal(self, number: int) -> None:
        for worker in self._workers:
            os.kill(worker, number)

    def _cpu(self) -> float:
        """Seconds that the workers and this process have computed."""
        ticks = 0
        for worker in self._workers:
            fields = Path(f"/proc/{worker}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK") + time.process_time()

    def turn(self, batches: int, warm_up: int) -> None:
        """Times some batches by the clock, after some that are not; CPU time is that of all of them.

        Nothing is made while the workers are stopped, so over many turns they are charged for what they hand out.
        """
        cpu = self._cpu()
        self._signal(signal.SIGCONT)
        for _ in range(warm_up):
            next(self._batches)
        start = time.perf_counter()
        for _ in range(batches):
            next(self._batches)
        self.seconds.append((time.perf_counter() - start) / batches)
        self._signal(signal.SIGSTOP)
        self.cpu_seconds.append((self._cpu() - cpu) / (batches + warm_up))

    def close(self) -> None:
        """Ends the workers."""
        self._signal(signal.SIGCONT)
        getattr(self._batches, "close", lambda: None)()
        del self._batches  # torch's workers end when nobody holds the iterator
        gc.collect()


def start_feeds(options: argparse.Namespace, source: Files, recipe: Recipe, feeds: dict[str, Feed]) -> None:
    """Adds name -> pipeline to `feeds`; each has handed out its first batch."""
    for name, decode in VARIANTS.items():
        say(f"starting {name} ...")
        pipeline = data.TrainPipeline(
            source,
            batch_size=options.batch_size,
            image_size=(options.image_size, options.image_size),
            seed=SEED,
            augment=data.AugmentConfig(
                auto_augment=options.policy, region_decode=decode.region, dct_scaling=decode.dct_scaling
            ),
            fill=fill_from_mean(MEAN),
            workers=options.workers,
        )
        feeds[name] = Feed(lambda pipeline=pipeline: pipeline)
    if options.peer:
        from peer_timm import loader

        sampler = EpochSampler(len(source), options.batch_size, SEED)
        for name, on_device in (("timm", False), ("timm_prefetcher", True)):
            say(f"starting {name} ...")
            batches = loader(source.paths, recipe, sampler, workers=options.workers, on_device=on_device)
            feeds[name] = Feed(lambda batches=batches: iter(batches))


def throughput(options: argparse.Namespace, source: Files, recipe: Recipe) -> dict[str, dict[str, np.ndarray]]:
    """Name -> mean seconds and CPU seconds of a batch in each turn."""
    feeds: dict[str, Feed] = {}
    try:
        start_feeds(options, source, recipe, feeds)
        for number in range(options.turns):
            say(f"turn {number + 1} of {options.turns} ...")
            for feed in feeds.values():
                feed.turn(options.batches, warm_up=options.workers)
        return {n: {"wall": np.array(f.seconds), "cpu": np.array(f.cpu_seconds)} for n, f in feeds.items()}
    finally:
        for feed in feeds.values():
            feed.close()


def stages(options: argparse.Namespace, source: Files, recipe: Recipe) -> dict[str, dict[str, float]]:
    """Mean milliseconds of CPU time an image, stage by stage, in this process."""
    size = (options.image_size, options.image_size)
    policy = auto_augment(options.policy, fill=fill_from_mean(MEAN), image_size=size)
    batch = np.zeros((*size, 3), np.uint8)
    spent: dict[str, dict[str, float]] = {"ours": {}, "decode_crop_resize": {}, "timm": {}}
    theirs = []
    if options.peer:
        from peer_timm import import_peer

        import_peer()[0].set_num_threads(1)  # as in the DataLoader's workers
        theirs = recipe.transform(on_device=False).transforms

    def timed(group: str, stage: str, call: Callable[..., Any], *args: Any) -> Any:
        start = time.thread_time()
        result = call(*args)
        spent[group][stage] = spent[group].get(stage, 0.0) + time.thread_time() - start
        return result

    order = EpochSampler(len(source), options.batch_size, SEED)
    records = (int(r) for position in range(1 << 30) for r in order.batch(position)[1])
    for count in range(options.profile):
        record = next(records)
        rng = timed("ours", "seed", record_rng, SEED, 0, record, count)
        encoded = timed("ours", "read", source.bytes, record)
        decoded = timed("ours", "decode", decode_rgb, encoded, source.name(record))
        box = random_resized_box((decoded.height, decoded.width), (0.08, 1.0), (3 / 4, 4 / 3), rng)
        image = timed("ours", "crop", decoded.crop, box)
        image = timed("ours", "resize", image.resize, size, Image.Resampling.BICUBIC)
        mirrored = timed("ours", "mirror", image.transpose, Image.Transpose.FLIP_LEFT_RIGHT)
        image = timed("ours", "policy", policy, mirrored if count % 2 else image, rng)
        timed("ours", "batch", lambda image=image: np.copyto(batch, np.asarray(image)))

        def choose(_: Any, box: Box = box) -> Box:
            return box

        for name, decode in VARIANTS.items():

            def fast(encoded: bytes = encoded, decode: DecodeOptions = decode) -> Image.Image:
                return decode_crop_resize(encoded, "", size, choose, options=decode)

            timed("decode_crop_resize", name, fast)
        for transform in theirs:
            decoded = timed("timm", type(transform).__name__, transform, decoded)
    spent["ours"]["mirror"] /= 2  # done for all, needed by half
    return {
        group: {stage: round(1e3 * seconds / options.profile, 4) for stage, seconds in times.items()}
        for group, times in spent.items()
        if times
    }


def device_cost(options: argparse.Namespace) -> dict[str, Any]:
    """A batch as the network sees it: normalised and erased."""
    import jax
    from timing import compile_program, interleaved, summary

    from jaxkd.data.transforms.erasing import EraseConfig
    from jaxkd.data.transforms.on_device import prepare_train_images

    shape = (options.batch_size, options.image_size, options.image_size, 3)
    images = jax.device_put(np.random.default_rng(0).integers(0, 256, shape, np.uint8))
    labels, key = jax.device_put(np.zeros(shape[0], np.int32)), jax.random.key(0)
    runs = {}
    for name, erase in (
        ("normalise", None),
        ("normalise_and_erase", EraseConfig(probability=ERASE_PROBABILITY, mode=ERASE_MODE)),
    ):

        def prepare(key: Any, images: Any, labels: Any, erase: EraseConfig | None = erase) -> Any:
            return prepare_train_images(key, images, labels, mean=MEAN, std=STD, erase=erase, mix=None, num_classes=0)

        call = compile_program(jax.jit(prepare), key, images, labels).call
        runs[name] = lambda call=call: jax.block_until_ready(call(key, images, labels))
    seconds = interleaved(runs, options.turns)
    return {
        "device": f"{jax.devices()[0].device_kind} ({jax.default_backend()})",
        "ms_per_batch": {name: summary(s) for name, s in seconds.items()},
        "ms_per_image": {name: round(1e3 * float(np.median(s)) / shape[0], 4) for name, s in seconds.items()},
    }


def described(options: argparse.Namespace, taken: dict[str, np.ndarray]) -> dict[str, Any]:
    """Rates of one pipeline."""
    images = options.batch_size
    per_core = images / float(np.mean(taken["cpu"]))
    return {
        "images_per_second": {
            "median": round(images / float(np.median(taken["wall"])), 1),
            "best": round(images / float(taken["wall"].min()), 1),
        },
        "cpu_ms_per_image": round(1e3 / per_core, 3),
        "images_per_second_per_core": round(per_core, 1),
        "cores_for_images_per_second": {str(rate): round(rate / per_core, 1) for rate in options.rates},
    }


def compared(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> dict[str, float]:
    """Images per second of jaxkd over those of the peer: by the clock, median over turns; and by all CPU time."""
    return {
        "wall": round(float(np.median(theirs["wall"] / ours["wall"])), 3),
        "cpu": round(float(theirs["cpu"].sum() / ours["cpu"].sum()), 3),
    }


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Everything that is printed."""
    recipe = Recipe(options.image_size, options.policy, MEAN, STD)
    if options.peer:
        from peer_timm import versions

        peer_versions = versions()
    source = Files(options.images, at_least=options.batch_size)
    taken = throughput(options, source, recipe)
    say("stages ...")
    sizes = [Image.open(path).size for path in source.paths[: source.different]]
    result = {
        "images": {
            "folder": options.images,
            "files": source.different,
            "median_longer_side": float(np.median([max(size) for size in sizes])),
            "mean_megapixels": round(float(np.mean([w * h for w, h in sizes])) / 1e6, 3),
        },
        "recipe": {"image_size": options.image_size, "policy": options.policy, "interpolation": "bicubic"},
        "workers": options.workers,
        "batch_size": options.batch_size,
        "timed_images": options.turns * options.batches * options.batch_size,
        "host": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        "load_average": [round(v, 1) for v in os.getloadavg()],
        "versions": {"python": platform.python_version()} | {p: version(p) for p in ("pillow", "grain", "numpy")},
        "region_decoding": region_decoding(),
        "throughput": {name: described(options, t) for name, t in taken.items()},
        "stages_cpu_ms_per_image": stages(options, source, recipe),
        "device": device_cost(options),
    }
    if options.peer:
        result["versions"] |= peer_versions
        result["ratio"] = {
            f"{ours}_to_{theirs}": compared(taken[ours], taken[theirs])
            for theirs in ("timm", "timm_prefetcher")
            for ours in VARIANTS
        }
    return result


def main(argv: list[str] | None = None) -> int:
    """Entry point; 0 is success, 2 that the user can mend something."""
    try:
        print(json.dumps(measure(parse(sys.argv[1:] if argv is None else argv)), indent=2))
    except JaxkdError as error:
        print(f"jaxkd: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
