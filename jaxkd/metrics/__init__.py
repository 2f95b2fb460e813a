"""Metrics: averages of classifiers, PSNR and SSIM of images, retrieval with ties, scores of generated sentences.

The averages are computed per batch on the device and then added up, retrieval and sentences on the host in float64.
"""

from jaxkd.metrics.aggregate import Average, Metrics, average
from jaxkd.metrics.classification import classification_metrics, top_k_correct
from jaxkd.metrics.restoration import luma, name_of, psnr, ssim
from jaxkd.metrics.retrieval import (
    candidate_hits,
    chance,
    mean_chance,
    mean_reciprocal_rank,
    median_rank,
    reciprocal_ranks,
    top_k,
    top_k_hits,
)
from jaxkd.metrics.text import (
    character_error_rate,
    content_bleu1,
    corpus_bleu,
    distinct,
    empty_share,
    identical_share,
    match_prf,
    mean_rouge,
    rouge,
    word_error_rate,
)
