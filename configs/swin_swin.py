"""SpectralKD: Swin-Tiny learns from Swin-Small on ImageNet-1k (arXiv 2412.19055).

    jaxkd train --config=swin_swin --workdir=runs/swin_swin --config.data.source=/data/imagenet
    jaxkd train --config=swin_swin:embedded --workdir=runs/swin_digits   (no data; ten minutes)

Expected: 82.7 % top-1 (published, best epoch on the validation set); not yet measured with jaxkd.
The recipe is the authors' code: see `recipes.published` and the table in docs/recipes.md.
"""

from ml_collections import ConfigDict

from jaxkd.config import fields, recipes


def get_config(arg: str | None = None) -> ConfigDict:
    """`arg`: what follows the colon on the command line."""
    words = fields.parse_arg(arg, {"embedded": "the digits in scikit-learn"})
    config = recipes.published(fields.base())
    config.task = "distillation"
    config.student.name = "swin_tiny_patch4_window7_224"
    config.teacher.name = "swin_small_patch4_window7_224"
    config.teacher.weights = "hf-hub:timm/swin_small_patch4_window7_224.ms_in1k"
    config.distill.preset = "soft+spectral"  # 0.1 CE + 0.9 KL + 0.05 spectral
    config.distill.pairs = "stages"
    config.distill.alpha = 0.9
    config.distill.temperature = 1.0
    config.distill.feature_weight = 0.05
    config.schedule.warmup_epochs = 20
    config.train.epochs = 500
    if "embedded" in words:
        small = {"img_size": 16, "patch_size": 2, "window_size": 4}
        config = recipes.embedded(
            config,
            student={**small, "embed_dim": 32, "depths": (2, 2), "num_heads": (2, 4)},
            teacher={**small, "embed_dim": 48, "depths": (2, 4), "num_heads": (3, 6)},
            pairs="stages",
        )
    return config.lock()
