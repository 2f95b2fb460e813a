"""Photographs that come inside scikit-image's wheel: enough to train a small super-resolution network without data.

Only photographs, no drawings, text or measurements. The package calls all of them CC0 or free of known copyright
restrictions (scikit-image 0.26, the docstrings of `skimage.data`), but for the stereo pair of the motorcycle
(Middlebury 2014), of which it names the authors and no licence. Nothing is downloaded, and scikit-image is not
imported: only its files are read.

| split | photographs
| ----- | -----------
| train | astronaut, brick*, camera*, coins*, grass*, gravel*, motorcycle (left and right), rocket
| val   | chelsea (a cat), coffee

An asterisk marks greyscale. Whole photographs are held out rather than parts of all: a wall next to the wall that was
trained on would flatter. Two pictures decide the score, so it says whether training works, and ranks no networks.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

from jaxkd.errors import DataError

PHOTOS = {
    "train": (
        *("astronaut.png", "brick.png", "camera.png", "coins.png", "grass.png", "gravel.png"),
        *("motorcycle_left.png", "motorcycle_right.png", "rocket.jpg"),
    ),
    "val": ("chelsea.png", "coffee.png"),
}


def photo_files(split: str) -> list[str]:
    """Paths of the photographs of "train" (9) or "val" (2), in the order of `PHOTOS`."""
    found = importlib.util.find_spec("skimage")
    if found is None or not found.submodule_search_locations:
        raise DataError(
            'data.source="embedded:photos" needs scikit-image, which is not installed. '
            "Install it with pip install 'jaxkd[photos]', or name a folder of images."
        )
    folder = Path(found.submodule_search_locations[0], "data")
    missing = [name for name in PHOTOS[split] if not (folder / name).is_file()]
    if missing:
        raise DataError(
            f'data.source="embedded:photos": "{folder}" has no {", ".join(missing)}. Releases of scikit-image differ '
            "in the photographs that they bring. Install the one this was made with: pip install 'scikit-image==0.26'."
        )
    return [str(folder / name) for name in PHOTOS[split]]
