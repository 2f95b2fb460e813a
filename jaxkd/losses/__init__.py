"""Losses as pure array functions: computed in at least fp32, one value per example, with an optional mask."""

from jaxkd.losses.attention import (
    attention_cosine,
    attention_kl,
    manifold_inter,
    manifold_intra,
    manifold_random,
    relation_kl,
)
from jaxkd.losses.features import (
    attention_transfer,
    feature_cosine,
    feature_mse,
    normalized_mse,
    nst,
    pool_channels,
)
from jaxkd.losses.generation import mgd, mgd_mask, vitkd_generation, vitkd_mask
from jaxkd.losses.logits import (
    cross_entropy,
    decoupled_kl,
    dist,
    distillation_token,
    hard,
    kl,
    standardized_kl,
)
from jaxkd.losses.projected import (
    hint,
    project,
    simkd,
    simkd_logits,
    simkd_project,
    vid,
    vid_variance,
    vitkd_mimic,
)
from jaxkd.losses.relational import (
    correlation_congruence,
    linear_cka,
    pkt,
    rkd_angle,
    rkd_distance,
    similarity_preserving,
)
from jaxkd.losses.restoration import charbonnier, fft_l1, l1
from jaxkd.losses.splitting import transforms_applied_by

# These names hide the modules of the same name: users type losses.spectral(...). `from jaxkd.losses.spectral import
# DEFAULT_METHOD` still works, as it finds the module by its path.
from jaxkd.losses.contrastive import (  # isort: skip
    clip_log_scale,
    contrastive,
    info_nce,
    info_nce_multi,
    info_nce_vocabulary,
    siglip,
)
from jaxkd.losses.spectral import spectral
