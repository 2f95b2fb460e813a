"""Distillation Dynamics: which single layers of CaiT-S24 help DeiT-Tiny, 300 epochs at batch 2048 (arXiv 2511.06848).

    jaxkd train --config=dynamics:first_last --workdir=runs/a --config.data.source=/data/imagenet
    jaxkd train --config=dynamics:soft ...        (no feature term; also :first and :last)

Expected (published logs, best epoch on the validation set, one seed each): soft 76.99, first 77.00, last 76.83,
first_last 77.08 % top-1; not yet measured with jaxkd. `last` is also the encoding-mismatch paper's recipe for a plain
DeiT-Tiny.
"""

from ml_collections import ConfigDict

from jaxkd.config import fields, recipes

METHODS = {"soft": None, "first": ((0, 0),), "last": ((11, 23),), "first_last": ((0, 0), (11, 23))}


def get_config(arg: str | None = None) -> ConfigDict:
    """`arg`: soft, first, last or first_last (default)."""
    words = fields.parse_arg(arg or "first_last", {name: "a published setting" for name in METHODS})
    pairs = METHODS[next(iter(words))]
    config = recipes.published(fields.base())
    config.task = "distillation"
    config.student.name = "deit_tiny_patch16_224"
    config.teacher.name = "cait_s24_224"
    config.teacher.weights = "hf-hub:timm/cait_s24_224.fb_dist_in1k"
    config.distill.preset = "soft+spectral" if pairs else "soft"
    config.distill.alpha = 0.9
    config.distill.temperature = 1.0
    if pairs:
        config.distill.pairs = pairs
        config.distill.feature_weight = 0.2
    config.train.epochs = 300
    config.train.batch_size = 2048
    return config.lock()
