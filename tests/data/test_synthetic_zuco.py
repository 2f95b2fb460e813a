"""The synthetic corpus of EEG: its switches do what they say, and its answers are known."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from jaxkd.data import SyntheticZuco, open_eeg, open_source, synthetic_templates
from jaxkd.errors import DataError, JaxkdError

SMALL = "embedded:synthetic_zuco?subjects=3&sentences=40&vocabulary=60&words=5-9&seed=4"


def bare(word: str) -> str:
    return word.lower().rstrip(".")


def test_a_seed_gives_one_corpus_and_another_seed_another():
    first, again, other = open_eeg(SMALL), open_eeg(SMALL), open_eeg(SMALL.replace("seed=4", "seed=5"))
    for column in dataclasses.fields(first):
        if column.name != "facts":
            np.testing.assert_array_equal(getattr(first, column.name), getattr(again, column.name))
    assert first.text != other.text and first.fingerprint == again.fingerprint != other.fingerprint


def test_more_subjects_do_not_change_the_first_ones():
    few, many = open_eeg(SMALL), open_eeg(SMALL.replace("subjects=3", "subjects=5"))
    mine = many.select(np.isin(many.subject, few.subjects))
    np.testing.assert_array_equal(mine.eeg, few.eeg)
    assert mine.word == few.word and many.subjects == (*few.subjects, "SYN04", "SYN05")


def test_words_stand_in_their_sentences():
    corpus = open_eeg(SMALL + "&tasks=SR,TSR")
    assert len(corpus) == 3 * 2 * 40 and set(corpus.task) == {"SR", "TSR"}
    for reading in range(len(corpus)):
        tokens, words = corpus.text[reading].split(" "), corpus.words_of(reading)
        assert len(tokens) == corpus.word_count[reading] and 5 <= len(tokens) <= 9
        assert [tokens[p] for p in corpus.position[words]] == list(corpus.word[words])
        assert (np.diff(corpus.position[words]) > 0).all()


def test_content_words_are_keywords_to_scikit_learn():
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

    words, _ = synthetic_templates(SyntheticZuco(vocabulary=800, subjects=1))
    content, function = words[:800], words[800:]
    assert len(set(words)) == len(words) and not set(content) & ENGLISH_STOP_WORDS
    assert all(w.isascii() and w.isalpha() and len(w) > 2 for w in content) and set(function) <= ENGLISH_STOP_WORDS


def test_the_matched_filter_has_the_promised_signal_to_noise_ratio():
    settings = SyntheticZuco.parse(SMALL + "&snr=9")
    corpus = open_eeg(SMALL + "&snr=9")
    words, templates = synthetic_templates(settings)
    true = np.array([words.index(bare(w)) for w in corpus.word])
    for s in range(3):
        mine = corpus.subject_index[corpus.reading_of_word] == s
        offset = templates[s].mean(0)  # of all words; the codes are orthogonal
        codes = templates[s] - offset
        gain = np.linalg.norm(codes, axis=1).mean() / 3 / np.sqrt(1 - 1 / len(words))
        scores = (corpus.eeg[mine] - offset) @ codes.T / (3 * gain**2)
        right = scores[np.arange(mine.sum()), true[mine]]
        margin = right - (scores.sum(1) - right) / (len(words) - 1)
        # Mean sqrt(snr); the noise of a score is N(0, 1).
        assert abs(margin.mean() - 3) < 4 / np.sqrt(mine.sum()) + 0.02
        assert abs(margin.std() - 1) < 0.15


def test_no_signal_is_noise_and_offsets_alone():
    corpus = open_eeg(SMALL + "&snr=0&offsets=0&gains=0")
    assert abs(corpus.eeg.mean()) < 0.01 and abs(corpus.eeg.std() - 1) < 0.01


def test_rotation_makes_subjects_differ_and_keeps_energy():
    for rotation, lowest, highest in ((0, 0.999, 1.001), (0.2, 0.5, 0.98), (1, -0.1, 0.1)):
        settings = SyntheticZuco.parse(SMALL + f"&subject_rotation={rotation}&offsets=0&gains=0")
        _, templates = synthetic_templates(settings)
        np.testing.assert_allclose(np.linalg.norm(templates, axis=2), 2, rtol=1e-4)  # sqrt(snr)
        alike = (templates[0] * templates[1]).sum(1).mean() / 4
        assert lowest < alike < highest, rotation


def test_switches_for_gaps_are_counted():
    corpus = open_eeg(SMALL + "&nan_word=0.1&missing_sentence=0.2")
    facts, nan = corpus.facts, np.isnan(corpus.eeg).any(1)
    assert facts["readings"] == len(corpus) and facts["missing_sentences"] == 3 * 40 - len(corpus)
    assert 0.1 < facts["missing_sentences"] / 120 < 0.3
    assert facts["nan_words"] == nan.sum() and 0.05 < nan.mean() < 0.15
    assert (np.isnan(corpus.eeg).all(1) == nan).all() and (corpus.usable == ~nan).all()
    assert sum(f["words"] for f in facts["subjects"].values()) == facts["words"] == len(corpus.word)


def test_planted_leaks():
    holes = open_eeg(SMALL + "&holes=0.5")
    read = [set(holes.index[holes.subject == s]) for s in holes.subjects]
    assert all(len(r) == 20 for r in read) and read[0] != read[1]
    twice = open_eeg(SMALL + "&duplicates=10")
    assert len(twice) == 3 * 50
    late = twice.select(twice.index >= 40)
    assert set(late.text) <= set(twice.select(twice.index < 40).text)
    leak = open_eeg(SMALL + "&snr=0&length_leak=1")
    letters = np.array([len(bare(w)) for w in leak.word])
    assert np.corrcoef(letters, leak.eeg[:, 0])[0, 1] > 0.8 > 0.2 > abs(np.corrcoef(letters, leak.eeg[:, 8])[0, 1])


def test_short_words_are_skipped_and_long_ones_fixated_longer():
    corpus = open_eeg(SMALL.replace("sentences=40", "sentences=200"))
    share = len(corpus.word) / corpus.word_count.sum()
    assert abs(share - 0.7) < 0.03
    letters = np.array([len(bare(w)) for w in corpus.word])
    assert letters.mean() > np.mean([len(bare(w)) for t in corpus.text for w in t.split()]) + 0.3
    fixations, first, single, gaze, past, total = corpus.gaze.T
    assert np.corrcoef(letters, total)[0, 1] > 0.3
    assert (np.isnan(single) == (fixations > 1)).all() and (first <= gaze).all() and (gaze <= past).all()
    assert (gaze <= total).all()
    noise = open_eeg(SMALL.replace("sentences=40", "sentences=200") + "&gaze_letters=0")
    letters = np.array([len(bare(w)) for w in noise.word])
    assert abs(np.corrcoef(letters, noise.gaze[:, -1])[0, 1]) < 0.1


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("embedded:synthetic_zuco?snrr=4", 'has "snrr=4", which is not a setting.*Did you mean "snr"'),
        ("embedded:synthetic_zuco?snr", "Write name=value"),
        ("embedded:synthetic_zuco?snr=loud", 'snr of .* is "loud", which is not a number'),
        ("embedded:synthetic_zuco?subjects=0", "subjects of .*=0 is out of range"),
        ("embedded:synthetic_zuco?skip=1", "skip of .* out of range"),
        ("embedded:synthetic_zuco?words=9-6", 'words="9-6" .* is not a range'),
        ("embedded:synthetic_zuco?vocabulary=10", "more words than vocabulary=10"),
        ("embedded:synthetic_zuco?tasks=SR,XR", 'tasks of .*="XR" is not possible'),
        ("embedded:synthetic_suco", 'does not exist.*Did you mean "embedded:synthetic_zuco"'),
    ],
)
def test_wrong_settings_are_one_sentence(spec, words):
    with pytest.raises(DataError, match=words):
        open_eeg(spec)


def test_an_image_task_says_that_the_corpus_holds_no_images():
    with pytest.raises(JaxkdError, match="holds EEG and no images"):
        open_source(SMALL, "train")


def test_subjects_are_chosen_by_name():
    corpus = open_eeg(SMALL, subjects=("SYN02",))
    assert corpus.subjects == ("SYN02",) and len(corpus) == 40
    with pytest.raises(DataError, match="has no readings of ZAB. The subjects are: SYN01, SYN02, SYN03"):
        open_eeg(SMALL, subjects=("SYN01", "ZAB"))


def test_a_misspelt_corpus_is_found_where_images_are_asked_for():
    with pytest.raises(DataError, match='Did you mean "embedded:synthetic_zuco".*of EEG: embedded:synthetic_zuco'):
        open_source("embedded:synthetic_zucco", "train")
