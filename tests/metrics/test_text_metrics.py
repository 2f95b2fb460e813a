"""Scores of sentences against nltk's, sacrebleu's, rouge's, rouge-score's and jiwer's values, and by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from jaxkd import metrics
from jaxkd.errors import DataError, ShapeError
from jaxkd.metrics.text import tokens


@pytest.fixture(scope="module")
def texts(golden):
    """(golden arrays, hypotheses, references)."""
    g = golden("eeg_text")
    return g, g["text_hypothesis"].tolist(), g["text_reference"].tolist()


def test_the_tokeniser_keeps_golden_texts_and_splits_others(texts):
    _, hypotheses, references = texts
    assert all(tokens(text) == text.split() for text in hypotheses + references)
    said = tokens("It’s 1,250.5 km -- “far”, O'Neill_2!")
    assert said == ["it's", "1,250.5", "km", "-", "-", "“", "far", "”", ",", "o'neill_2", "!"]
    assert tokens("ﬁlm\u00a0X") == ["film", "x"] and tokens(" \n") == []


def test_golden_bleu(texts):
    g, hypotheses, references = texts
    np.testing.assert_allclose(metrics.corpus_bleu(hypotheses, references), g["bleu_nltk"], rtol=0, atol=1e-12)
    smoothed = metrics.corpus_bleu(hypotheses, references, epsilon=0.1)
    np.testing.assert_allclose(smoothed, g["bleu_nltk_method1"], rtol=0, atol=1e-12)
    np.testing.assert_allclose(metrics.corpus_bleu(hypotheses, references)[3], g["bleu_sacre_score"], atol=1e-12)


def test_golden_parts_of_bleu(texts):
    """sacrebleu's precisions, penalty for brevity and lengths are those that the score is made of."""
    g, hypotheses, references = texts
    lengths = [sum(len(tokens(text)) for text in held) for held in (hypotheses, references)]
    assert lengths == g["bleu_lengths"].tolist()
    assert math.exp(1 - lengths[1] / lengths[0]) == pytest.approx(float(g["bleu_sacre_bp"]), rel=1e-12)
    means = np.exp(np.cumsum(np.log(g["bleu_sacre_precisions"])) / np.arange(1, 5))
    np.testing.assert_allclose(metrics.corpus_bleu(hypotheses, references), g["bleu_sacre_bp"] * means, rtol=1e-12)


def test_sacrebleu_and_rouge_score_compute_the_same(texts):
    sacrebleu = pytest.importorskip("sacrebleu", reason="needs the extra `test`")
    scorer = pytest.importorskip("rouge_score.rouge_scorer", reason="needs the extra `test`")
    hypotheses = [*texts[1], "It was 3.5 km, he's told -- twice.", "a longer one than the other by far"]
    references = [*texts[2], "It is 3.5 km, he's told; twice, at least.", "a short one than"]
    split = [[" ".join(tokens(text)) for text in held] for held in (hypotheses, references)]
    found = sacrebleu.corpus_bleu(split[0], [split[1]], smooth_method="none", tokenize="none")
    assert metrics.corpus_bleu(hypotheses, references)[3] == pytest.approx(found.score / 100, rel=1e-12)
    package = scorer.RougeScorer(["rouge1", "rougeL"], use_stemmer=False)
    for hypothesis, reference in zip(hypotheses, references, strict=True):
        own, other = metrics.rouge(hypothesis, reference), package.score(reference, hypothesis)
        for name in ("rouge1", "rougeL"):
            np.testing.assert_allclose(own[name], tuple(other[name]), rtol=1e-12, err_msg=hypothesis)


def test_bleu_by_hand():
    # Of "a b c d" against "a b x d": 3 of 4 words, 1 of 3 pairs, no triple; nltk's method1 counts .1 triples.
    found = metrics.corpus_bleu(["A b c d"], ["a b x d"])
    np.testing.assert_allclose(found, [3 / 4, math.sqrt(3 / 4 / 3), 0, 0], rtol=1e-12)
    smoothed = metrics.corpus_bleu(["a b c d"], ["a b x d"], epsilon=0.1)
    np.testing.assert_allclose(smoothed[2], (3 / 4 / 3 * 0.1 / 2) ** (1 / 3), rtol=1e-12)
    np.testing.assert_allclose(smoothed[3], (3 / 4 / 3 * 0.1 / 2 * 0.1) ** (1 / 4), rtol=1e-12)
    # The brevity penalty is that of the corpus: 3 tokens against 5. The second text has no pair, which counts as one.
    short = metrics.corpus_bleu(["a b", "c"], ["a b c", "c d"])
    np.testing.assert_allclose(short[:2], math.exp(1 - 5 / 3) * np.array([1, math.sqrt(1 / 2)]), rtol=1e-12)
    assert (
        not metrics.corpus_bleu(["", ""], ["a", "b"]).any() and not metrics.corpus_bleu(["x"], ["a"], epsilon=0.1).any()
    )


def test_golden_rouge(texts):
    g, hypotheses, references = texts
    each = [metrics.rouge(h, r) for h, r in zip(hypotheses, references, strict=True)]
    for name, key in (
        ("rouge1", "rouge1_google"),
        ("rougeL", "rougeL_google"),
        ("rouge1_sets", "rouge1_rouge_package"),
    ):
        np.testing.assert_allclose([one[name] for one in each], g[f"{key}_prf"], rtol=0, atol=1e-12, err_msg=name)
    plain = [metrics.rouge(h, r, tokenizer=str.split)["rouge1"] for h, r in zip(hypotheses, references, strict=True)]
    np.testing.assert_allclose(plain, g["rouge1_clipped_whitespace_prf"], rtol=0, atol=1e-12)
    means = metrics.mean_rouge(hypotheses, references)
    np.testing.assert_allclose(means["rougeL"], g["rougeL_google_prf"].mean(axis=0), rtol=1e-12)
    assert metrics.rouge("", "a b") == metrics.rouge("a", "") == dict.fromkeys(each[0], (0.0, 0.0, 0.0))


def test_the_longest_common_subsequence_by_hand():
    # a c d of "a b c d a" and "a c x d"; precision 3/5, recall 3/4
    np.testing.assert_allclose(metrics.rouge("a b c d a", "a c x d")["rougeL"], (3 / 5, 3 / 4, 2 / 3), rtol=1e-12)


def test_golden_error_rates(texts):
    g, hypotheses, references = texts
    each = [metrics.word_error_rate([h], [r]) for h, r in zip(hypotheses, references, strict=True)]
    np.testing.assert_allclose(each, g["wer_each"], rtol=0, atol=1e-12)
    assert metrics.word_error_rate(hypotheses, references) == pytest.approx(float(g["wer_corpus"]), abs=1e-12)
    assert metrics.character_error_rate(hypotheses, references) == pytest.approx(float(g["cer_corpus"]), abs=1e-12)


def test_error_rates_by_hand():
    assert metrics.word_error_rate(["a b c d e"], ["x"]) == 5.0  # 1 substitution, 4 insertions
    assert metrics.word_error_rate(["", "b"], ["a b c", "b"]) == 0.75
    assert metrics.character_error_rate(["kitten"], ["sitting"]) == 3 / 7
    assert metrics.word_error_rate(["Same text."], ["same text ."]) == 0.0


def test_golden_matching(golden):
    g = golden("eeg_text")
    np.testing.assert_allclose(metrics.match_prf(g["match_hyp"], g["match_ref"]), g["match_prf"], rtol=0, atol=1e-12)
    scaled = metrics.match_prf(3 * g["match_hyp"], 0.1 * g["match_ref"])
    np.testing.assert_allclose(scaled, g["match_prf"], rtol=1e-12)
    assert metrics.match_prf(np.zeros((0, 16)), g["match_ref"]) == (0.0, 0.0, 0.0)
    assert metrics.match_prf(np.zeros((2, 16)), g["match_ref"]) == (0.0, 0.0, 0.0)


def test_content_words_and_collapsed_output():
    # Of "the film is dull ." the content words are film and dull; "the", "is" and the full stop match in vain.
    assert metrics.content_bleu1(["the film is great ."], ["the film is dull ."]) == 0.5
    assert metrics.content_bleu1(["he was in the ."], ["the film is dull ."]) == 0.0
    # "the" of one word against two: precision 1, brevity exp(1 - 2 / 1)
    assert metrics.content_bleu1(["the film"], ["the book"], stop_words={"film"}) == pytest.approx(math.exp(-1))
    same = ["a b a", "A b a", "c", ""]
    assert metrics.identical_share(same) == 0.5 and metrics.empty_share(same) == 0.25
    assert metrics.distinct(same, 1) == 3 / 7 and metrics.distinct(same, 2) == 2 / 4
    assert metrics.distinct([""], 1) == metrics.identical_share([]) == metrics.empty_share([]) == 0.0


def test_mistakes_are_explained():
    for mistake, error, words in (
        (lambda: metrics.corpus_bleu(["a"], ["a", "b"]), DataError, "1 hypotheses and 2 references"),
        (lambda: metrics.corpus_bleu([], []), DataError, "at least one"),
        (lambda: metrics.corpus_bleu("a", ["a"]), DataError, "single text"),
        (lambda: metrics.word_error_rate(["a"], [" "]), DataError, "no word error rate"),
        (lambda: metrics.match_prf(np.zeros(3), np.zeros((2, 3))), ShapeError, "of one width"),
    ):
        with pytest.raises(error, match=words):
            mistake()
