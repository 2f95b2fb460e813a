"""Analysis of features: spectra, entropy, ranks, PCA, SEP, saliency and similarity, as functions of arrays.

`analysis.pipeline` runs them over a data set, `jaxkd.report` shows the results; `jaxkd analyze` does both.
"""

from jaxkd.analysis.activation import activation_max, activation_mean, gradient_magnitude, kurtosis, massive_share
from jaxkd.analysis.bootstrap import bootstrap_interval
from jaxkd.analysis.comparisons import holm, mean_interval, paired_comparison
from jaxkd.analysis.entropy import channel_entropy, entropy_map
from jaxkd.analysis.layer_selection import suggest_pairs, suggest_stages
from jaxkd.analysis.layer_statistics import LayerStatistic, register_layer_statistic
from jaxkd.analysis.lowrank import (
    captured_energy,
    dataset_pca,
    effective_rank,
    energy_ranks,
    image_energies,
    participation_ratio,
    pca_from_moments,
    ranks_from_energies,
    required_d,
    second_moment,
    stable_rank,
)
from jaxkd.analysis.nulls import null_tokens
from jaxkd.analysis.oracle import oracle_topk
from jaxkd.analysis.permutation import permutation_test
from jaxkd.analysis.ridge import fit_ridge, regress_out
from jaxkd.analysis.saliency import integrated_gradients, layer_gradients, smooth_grad, vanilla_gradient
from jaxkd.analysis.sep import bandwidths, sep_curve, sep_permutation
from jaxkd.analysis.similarity import linear_cka, principal_angles
from jaxkd.analysis.spectrum import channel_spectrum, image_channel_spectrum, radial_profile, spatial_spectrum
