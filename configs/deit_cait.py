"""SpectralKD: DeiT-Tiny learns from CaiT-S24 on ImageNet-1k (arXiv 2412.19055).

    jaxkd train --config=deit_cait --workdir=runs/deit_cait --config.data.source=/data/imagenet
    jaxkd train --config=deit_cait:student=deit_small_patch16_224 ...      (500 epochs)
    jaxkd train --config=deit_cait:embedded --workdir=runs/first_light     (no data, no GPU)

Expected: 77.4 % top-1 for DeiT-Tiny, 82.2 % for DeiT-Small (published, best epoch on the validation set); not yet
measured with jaxkd.
The recipe is the authors' code: see `recipes.published` and the table in docs/recipes.md. Of the embedded run, rate,
steps, seeds and objectives on the command line are those of the teacher; the students have their own
(recipes.embedded_study), 1,200 steps or those of :embedded,steps=N.
"""

from ml_collections import ConfigDict

from jaxkd.config import fields, recipes
from jaxkd.errors import ConfigError


def get_config(arg: str | None = None) -> ConfigDict:
    """`arg`: what follows the colon on the command line."""
    known = {
        "embedded": "the digits in scikit-learn: a teacher, then 5 seeds x 4 objectives with 20 labels a class",
        "steps": "of the embedded students (1200)",
        "student": "a DeiT by timm's name",
    }
    words = fields.parse_arg(arg, known)
    config = recipes.published(fields.base())
    config.task = "distillation"
    config.student.name = words.get("student") or "deit_tiny_patch16_224"
    config.teacher.name = "cait_s24_224"
    config.teacher.weights = "hf-hub:timm/cait_s24_224.fb_dist_in1k"
    config.distill.preset = "soft+spectral"  # 0.1 CE + 0.9 KL + 0.2 spectral
    config.distill.pairs = recipes.DEIT_CAIT_PAIRS
    config.distill.alpha = 0.9
    config.distill.temperature = 1.0
    config.distill.feature_weight = 0.2
    config.train.epochs = 500 if "small" in config.student.name else 400
    if "embedded" in words:
        config = recipes.embedded_study(config, words.get("steps", "1200"))
    elif "steps" in words:
        raise ConfigError('":steps" is the length of the embedded run. Write --config.schedule.steps=N here.')
    return config.lock()
