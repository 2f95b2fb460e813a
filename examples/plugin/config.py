"""Trains a network, a loss term and a data source from `my_plugin.py`, without a change in jaxkd.

    jaxkd train --config=examples/plugin/config.py --workdir=runs/plugin

Two stages of seconds on a CPU: a wide `patch_mixer` is the teacher of a narrow one, whose features are projected.
"""

from ml_collections import ConfigDict

from jaxkd.config import fields


def get_config() -> ConfigDict:
    config = fields.base()
    config.plugins = ("my_plugin",)
    config.task = "distillation"
    config.data.source = "stripes:64"
    config.data.workers = 0
    config.data.augment.hflip = 0.0
    config.student.name = "patch_mixer"
    config.student.args.width = 16
    config.teacher.name = "patch_mixer"
    config.teacher.weights = "stage:teacher"
    config.distill.terms = (
        {"loss": "ce", "weight": 0.5},
        {"loss": "kl", "weight": 0.5, "temperature": 2.0},
        {"loss": "projected_cosine", "weight": {"schedule": "linear", "from": 1.0, "to": 0.0, "end_step": 8}},
    )
    config.distill.pairs = "last"
    config.train.epochs = 4
    config.train.batch_size = 16
    config.optimizer.learning_rate = 2e-3
    config.optimizer.reference_batch = 0
    config.schedule.warmup_epochs = 0
    config.ema.decay = 0.0
    config.log.every_steps = 4
    teacher = {
        "name": "teacher",
        "task": "classification",
        "teacher.name": "",
        "teacher.weights": "",
        "distill.terms": (),
        "distill.pairs": None,
        "student.args": {"width": 32},
    }
    config.stages = (teacher, {"name": "student"})
    return config.lock()
