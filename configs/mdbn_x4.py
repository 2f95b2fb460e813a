"""MDBN, x4 super-resolution, by its authors' protocol (arXiv 2309.17334, options/train/MDBN).

    jaxkd train --config=mdbn_x4 --workdir=runs/mdbn_x4 --config.data.source=/data/DF2K_sub \\
        --config.eval.sets="('Set5=/data/Set5','Set14=/data/Set14')"
    jaxkd train --config=mdbn_x4:embedded --workdir=runs/enlarge      (no data, no GPU, 4 minutes)
    jaxkd train --config=mdbn_x4:scale=3 --workdir=runs/mdbn_x3 --config.data.source=/data/DF2K_sub
    jaxkd train --config=mdbn_x4:network=edsr --workdir=runs/edsr --config.data.source=/data/DF2K
    jaxkd train --config=mdbn_x4:control --workdir=runs/control --config.data.source=/data/DF2K_sub
    jaxkd train --config=mdbn_x4:control,embedded --workdir=runs/small_control      (4x as long)

L1, Adam 2e-4 (0.9, 0.99), cosine to 1e-7 over 2,000,000 steps of 16 patches of 256 pixels (255 for x3), moving average
0.999, scored every 5,000 steps. `control` trains four networks alike and compares them in a table and curves.png:
`mdbn` as published, on images in [0, 1]; `mdbn_range` with the range and mean colour of EDSR; `mdbn_skip`, as published
with a bicubic global skip; `edsr`, EDSR-baseline (x4: 1,665,283 and 1,517,571 parameters; embedded: 251,459 each). Only
mdbn_range and edsr differ in their blocks alone. `control=mdbn_range+edsr` selects, --config.seed=1 is another seed.
Published figures were not found.
"""

from ml_collections import ConfigDict

from jaxkd.config import fields, recipes

WORDS = {
    "embedded": "photographs inside scikit-image, a small network, a few minutes",
    "scale": "2, 3, 4 or 8",
    "network": "mdbn or edsr",
    "control": "MDBN in three forms and EDSR-baseline, compared at the end; or stages of it: mdbn_range+edsr",
}


def get_config(arg: str | None = None) -> ConfigDict:
    """`arg`: words of `WORDS`."""
    words = fields.parse_arg(arg, WORDS)
    name = f"{words.get('network') or 'mdbn'}_x{words.get('scale') or 4}"
    how = {"embedded": "embedded" in words, "control": words.get("control")}
    return recipes.super_resolution(fields.base(), name, **how).lock()
