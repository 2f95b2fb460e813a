"""Lift: DeiT-Tiny with a retained projector learns from CaiT-S24, 300 epochs at batch 2048 (arXiv 2511.15572).

    jaxkd train --config=lift_cait --workdir=runs/lift --config.data.source=/data/imagenet
    jaxkd train --config=lift_cait:alpha=0,feature=mse ...      (the authors' other script)
    jaxkd train --config=lift_cait:embedded --workdir=runs/lift_digits     (no data, no GPU)

Words after the colon: alpha=A (0: without soft KD), feature=spectral|mse|none, small, embedded.
Expected: 77.53 % top-1 (published, the best run of the abstract, best epoch on the validation set; DeiT-Tiny alone
74.86 %). The abstract and the code do not state its objective; notes at second hand say
SoftKD + SpectralKD, as here. Not yet measured with jaxkd. The settings are those of the authors' code.
"""

from ml_collections import ConfigDict

from jaxkd.config import fields, recipes


def get_config(arg: str | None = None) -> ConfigDict:
    """`arg`: what follows the colon on the command line."""
    words = fields.parse_arg(arg, recipes.MISMATCH_WORDS)
    # 0.1 CE + 0.9 KL + 0.2 spectral
    config = recipes.encoding_mismatch(fields.base(), words, kind="lift", feature="spectral")
    if "small" in words:  # the teacher's width; the network's own default is twice the student's
        config.student.args.target_dim = 384
    if "embedded" in words:
        config = recipes.embedded(
            config,
            student={"img_size": 16, "patch_size": 4, "embed_dim": 48, "depth": 6, "num_heads": 3, "target_dim": 64},
            teacher={"img_size": 16, "patch_size": 4, "embed_dim": 64, "depth": 12, "num_heads": 4},
            pairs=config.distill.pairs,
        )
    return config.lock()
