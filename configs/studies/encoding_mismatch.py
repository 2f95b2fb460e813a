"""Encoding mismatch and late alignment with error bars: CIFAR-10, students half as wide as their teacher.

    jaxkd study --config=encoding_mismatch --workdir=runs/mismatch --config.data.source=DIR
    ... --config=encoding_mismatch:scale=gpu     (minutes on one GPU; depth and length reduced)
    ... --config=encoding_mismatch:scale=cpu     (hours on 2 cores; width and data reduced too)
    ... --config=encoding_mismatch:parts=first+a (only these parts)

DIR holds train/<label>/* and val/<label>/* with 32x32 images. The CaiT teacher is trained first, on the images of part
"first". Every student has the same recipe. Parts, in order (docs/studies/README.md has the files that come out):

    first  what the three questions need: late alignment, the share of logits in Lift and WideLast, spectral or MSE
    a      SpectralKD first, first + last and all layers, MSE at both ends of its weight's range, without and with
           SoftKD
    b      a projector on the last layer: frozen as published or trained, with BatchNorm or without, without SoftKD
    c      {DeiT, Lift, Lift-CLS, WideLast, UniformWide} x {none, SoftKD, MSE, SpectralKD, SoftKD + each of the two}
    e      the students of DeiT's size in "first" and "a" with 10, 20 and 50 % of the labels

Agreement with the teacher, CKA and effective rank of the last layer (part d of the plan) are measured for every run.
"""

from ml_collections import ConfigDict

from jaxkd.config import fields, recipes
from jaxkd.config.studies import cifar_students, encoding_mismatch

# width, heads and depth of the students; of the teacher; UniformWide's width, the multiple of 3 that comes closest to
# WideLast in parameters (219 in the paper, for 1,000 classes); patch; epochs of teacher and students
SIZES = {
    "": {"student": (192, 3, 12), "teacher": (384, 8, 24), "uniform": 216, "patch": 4, "epochs": (300, 300)},
    "gpu": {"student": (192, 3, 4), "teacher": (384, 8, 6), "uniform": 258, "patch": 4, "epochs": (12, 6)},
    "cpu": {"student": (48, 3, 4), "teacher": (96, 4, 6), "uniform": 63, "patch": 8, "epochs": (12, 6)},
    "tiny": {"student": (24, 3, 2), "teacher": (48, 4, 2), "uniform": 30, "patch": 16, "epochs": (1, 1)},
}


def get_config(arg: str | None = None) -> ConfigDict:
    """`arg`: what follows the colon on the command line."""
    words = fields.parse_arg(
        arg,
        {"scale": "gpu or cpu, reduced; tiny, a trial", "parts": "some of first, a, b, c, e, joined by +"},
    )
    scale = words.get("scale", "")
    config = cifar_students(recipes.published(fields.base()), SIZES, scale)
    return encoding_mismatch(config, SIZES[scale], parts=words.get("parts", "")).lock()
