"""The picture of what super-resolution networks do to photographs: original, bicubic, and each network, in one PNG.

    python benchmarks/before_after.py --weights=MDBN=runs/mdbn_x4 --weights=EDSR=runs/edsr_x4 --out=before_after.png
    python benchmarks/before_after.py --weights=MDBN=runs/mdbn_x4 --image=photo.png:100,200,96,96 --out=after.png

Each photograph is shrunk by MATLAB's bicubic, enlarged again, and shown around the box top,left,height,width; PSNR is
that of the whole photograph, on luma, without a border of one scale. Without --image they are the two photographs
inside scikit-image that no embedded run trains on (a cat and a cup of coffee). Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

from jaxkd import data, metrics, train, weights
from jaxkd.data.sources.photos import photo_files
from jaxkd.data.transforms.decode import decode_rgb
from jaxkd.errors import ConfigError, JaxkdError
from jaxkd.superres.tiling import Enlarger

BOXES = {"chelsea.png": (65, 120, 140, 140), "coffee.png": (225, 290, 140, 140)}


def parse(argv: list[str]) -> argparse.Namespace:
    """`weights` is label -> work directory, `images` a list of (path, box). Raises ConfigError."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--weights", action="append", default=[], metavar="LABEL=WORKDIR", help="of jaxkd; repeatable")
    parser.add_argument("--image", action="append", default=[], metavar="FILE:TOP,LEFT,HEIGHT,WIDTH")
    parser.add_argument("--variant", choices=("raw", "ema"), default="raw", help="raw weights or their moving average")
    parser.add_argument("--out", required=True, help="the PNG")
    options = parser.parse_args(argv)
    named = [entry.partition("=") for entry in options.weights]
    if not named or not all(label and folder and train.find_run(folder) for label, _, folder in named):
        raise ConfigError(
            f"--weights={options.weights} names no work directory of jaxkd, or no label. The pictures are of trained "
            "networks. Give --weights=LABEL=WORKDIR, for example --weights=MDBN=runs/mdbn_x4."
        )
    options.weights = {label: folder for label, _, folder in named}
    if len(options.weights) < len(named) or set(options.weights) & {"bicubic", "original"}:
        raise ConfigError(f"The labels of --weights={[n[0] for n in named]} are not told apart. Give each its own.")
    out = Path(options.out)
    if out.suffix != ".png" or not out.parent.is_dir():
        raise ConfigError(f'--out="{out}" is not a PNG in a folder that exists. The picture is written there. Mend it.')
    options.images = [_image(entry) for entry in options.image] or [(Path(p), BOXES[Path(p).name]) for p in _inside()]
    return options


def _inside() -> list[str]:
    return [path for path in photo_files("val") if Path(path).name in BOXES]


def _image(entry: str) -> tuple[Path, tuple[int, ...]]:
    path, _, box = entry.rpartition(":")
    try:
        numbers = tuple(int(n) for n in box.split(","))
        if len(numbers) != 4 or min(numbers) < 0 or min(numbers[2:]) < 1 or not Path(path).is_file():
            raise ValueError
    except ValueError:
        raise ConfigError(
            f'--image="{entry}" is not a file and a box. The box is shown enlarged. Write FILE:TOP,LEFT,HEIGHT,WIDTH.'
        ) from None
    return Path(path), numbers


def load(folder: str, variant: str) -> Any:
    """A trained network of a work directory. Raises ConfigError: it does not enlarge."""
    student = train.read_config(train.find_run(folder))["student"]
    network = weights.build_network(student["name"], {k: v for k, v in student["args"].items() if v is not None})
    if network.spec.task != "restoration":
        raise ConfigError(f'--weights="{folder}" trained {student["name"]}, which enlarges nothing. Name another run.')
    return weights.load_weights(network, folder, variant=variant)


def enlarge(
    networks: dict[str, Any], path: Path, box: tuple[int, ...]
) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """({name: picture (H, W, 3) uint8}, {name: PSNR in dB}) of bicubic, each network and the original.

    Raises:
      ConfigError: networks of several scales, or a box (top, left, height, width) that leaves the picture.
    """
    scales = {network.model.scale for network in networks.values()}
    if len(scales) > 1:
        raise ConfigError(f"The networks enlarge by {sorted(scales)}. One picture shows one scale. Choose one.")
    (scale,) = scales
    original = np.asarray(decode_rgb(path.read_bytes(), str(path)))
    height, width = (side // scale * scale for side in original.shape[:2])
    if box[0] + box[2] > height or box[1] + box[3] > width:
        raise ConfigError(f'"{path}" has {height} x {width} pixels, which the box {box} leaves. Choose it inside.')
    original = original[:height, :width]
    small = data.imresize(original, 1 / scale)
    pictures = {"bicubic": data.imresize(small, scale)}
    for label, network in networks.items():
        pictures[label] = Enlarger(network.model, network.variables)(small)
    scores = {name: float(metrics.psnr(made, original, scale, True)) for name, made in pictures.items()}
    return pictures | {"original": original}, scores


def draw(rows: list[tuple[dict[str, np.ndarray], dict[str, float], tuple[int, ...]]], out: Path) -> None:
    """Writes the PNG: a row for each photograph, the boxes side by side, whole pixels."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    columns = len(rows[0][0])
    figure, axes = plt.subplots(
        len(rows), columns, figsize=(2.6 * columns, 2.95 * len(rows)), layout="constrained", squeeze=False
    )
    for line, (pictures, scores, (top, left, height, width)) in zip(axes, rows, strict=True):
        for axis, (name, picture) in zip(line, pictures.items(), strict=True):
            axis.imshow(picture[top : top + height, left : left + width], interpolation="nearest")
            axis.set_title(f"{name}\n{scores[name]:.2f} dB" if name in scores else f"{name}\n", fontsize=10)
            axis.set_axis_off()
    figure.savefig(out, dpi=130)
    plt.close(figure)


def main(argv: list[str] | None = None) -> int:
    """Entry point; 0 is success, 2 that the user can mend something."""
    try:
        options = parse(sys.argv[1:] if argv is None else argv)
        networks = {k: load(folder, options.variant) for k, folder in options.weights.items()}
        rows = [(*enlarge(networks, path, box), box) for path, box in options.images]
        draw(rows, Path(options.out))
    except JaxkdError as error:
        print(f"jaxkd: {error}", file=sys.stderr)
        return 2
    shown = {str(path): scores for (path, _), (_, scores, _) in zip(options.images, rows, strict=True)}
    print(json.dumps({"out": options.out, "psnr_y": shown, "origin": {k: n.origin for k, n in networks.items()}}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
