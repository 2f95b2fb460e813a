"""Any registered network on labelled images, without a teacher.

    jaxkd train --config=supervised:cait_xxs24_224 --workdir=runs/a --config.data.source=/data/birds
    jaxkd train --config=supervised:embedded --workdir=runs/digits      (no data, no GPU)

The recipe is DeiT's optimiser (AdamW 5e-4 x batch / 512, decay 0.05, smoothing 0.1) with a per-step cosine over 300
epochs.
"""

from ml_collections import ConfigDict

from jaxkd.config import fields, recipes


def get_config(arg: str | None = None) -> ConfigDict:
    """`arg`: a model's name, or `embedded`."""
    config = fields.base()
    config.train.epochs = 300
    config.student.name = "deit_tiny_patch16_224" if arg in (None, "", "embedded") else arg
    if arg == "embedded":
        config = recipes.digits(
            config, student={"img_size": 16, "patch_size": 4, "embed_dim": 48, "depth": 6, "num_heads": 3}
        )
    return config.lock()
