"""WideLast: DeiT-Tiny with a wide last block learns from CaiT-S24, 300 epochs at batch 2048 (arXiv 2511.15572).

    jaxkd train --config=widelast_cait --workdir=runs/widelast --config.data.source=/data/imagenet
    jaxkd train --config=widelast_cait:alpha=0,feature=spectral ...      (the authors' other script)
    jaxkd train --config=widelast_cait:embedded --workdir=runs/widelast_digits     (no data, no GPU)

Words after the colon: alpha=A (0: without soft KD), feature=spectral|mse|none, small, embedded.
Expected: 78.23 % top-1 (published, the best run of the abstract, best epoch on the validation set; DeiT-Tiny alone
74.86 %). The abstract and the code do not state its objective; notes at second hand say
SoftKD + MSE, as here. Not yet measured with jaxkd. The settings are those of the authors' code.
"""

from ml_collections import ConfigDict

from jaxkd.config import fields, recipes


def get_config(arg: str | None = None) -> ConfigDict:
    """`arg`: what follows the colon on the command line."""
    words = fields.parse_arg(arg, recipes.MISMATCH_WORDS)
    # 0.1 CE + 0.9 KL + 0.2 MSE
    config = recipes.encoding_mismatch(fields.base(), words, kind="widelast", feature="mse")
    if "embedded" in words:
        config = recipes.embedded(
            config,
            student={"img_size": 16, "patch_size": 4, "embed_dim": 48, "depth": 6, "num_heads": 3, "wide_dim": 64},
            teacher={"img_size": 16, "patch_size": 4, "embed_dim": 64, "depth": 12, "num_heads": 4},
            pairs=config.distill.pairs,
        )
    return config.lock()
