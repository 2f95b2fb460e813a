"""Batches of word-level EEG: normalised as published, complete, grouped, resumable, the same on any hosts."""

from __future__ import annotations

import numpy as np
import pytest

from jaxkd.data import EegCorpus, EegEvalBatches, EegLabels, EegPipeline, Prefetcher, normalise_words, open_eeg
from jaxkd.data.sources.eeg_corpus import FEATURES, GAZE
from jaxkd.errors import CheckpointError, ConfigError, DataError, ShapeError

SOURCE = "embedded:synthetic_zuco?subjects=5&sentences=12&vocabulary=40&words=4-8&seed=1&missing_sentence=0.1"


@pytest.fixture(scope="module")
def corpus() -> EegCorpus:
    return open_eeg(SOURCE + "&nan_word=0.1&duplicates=3")


def pipeline(corpus: EegCorpus, **kwargs) -> EegPipeline:
    options = {"batch_size": 8, "seed": 0, "max_words": 8} | kwargs
    return EegPipeline(corpus, EegLabels.of(corpus), **options)


def assert_same(a: dict, b: dict) -> None:
    assert set(a) == set(b)
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def joined(batches: list[dict]) -> dict:
    return {name: np.concatenate([b[name] for b in batches]) for name in batches[0]}


def one_subject(lengths: list[int]) -> EegCorpus:
    """A corpus of sentences with the given numbers of fixated words, each twice as long as that."""
    words, readings = sum(lengths), len(lengths)
    position = np.concatenate([2 * np.arange(n) for n in lengths]).astype(np.int32)
    return EegCorpus(
        subject=np.full(readings, "ZAB"),
        corpus=np.full(readings, "zuco1"),
        task=np.full(readings, "NR"),
        index=np.arange(readings),
        text=tuple(f"sentence {i}" for i in range(readings)),
        word_count=2 * np.array(lengths),
        start=np.concatenate([[0], np.cumsum(lengths)]),
        word=tuple(f"w{i}" for i in range(words)),
        position=position,
        eeg=np.random.default_rng(0).normal(3, 2, (words, FEATURES)).astype(np.float32),
        gaze=np.ones((words, len(GAZE)), np.float32),
    )


def test_words_are_normalised_and_padded_as_in_the_golden_file(golden):
    expected = golden("eeg_text")
    raw = expected["words_raw"]
    np.testing.assert_allclose(normalise_words(raw), expected["words_padded"][:5], rtol=1e-6, atol=1e-6)
    base = one_subject([5])
    corpus = EegCorpus(**{**base.__dict__, "eeg": raw})
    batch = next(iter(EegEvalBatches(corpus, EegLabels.of(corpus), batch_size=1)))
    np.testing.assert_array_equal(batch["where"][0], expected["words_mask"].astype(bool))
    np.testing.assert_allclose(batch["eeg"][0, :6], expected["words_padded"], rtol=1e-6, atol=1e-6)
    assert not batch["eeg"][0, 6:].any()


def test_normalising_by_hand():
    out = normalise_words(np.array([[1.0, 2.0, 3.0], [5, 5, 5], [0.1, 0.1, 0.1], [1, np.nan, 2], [1, np.inf, 2]]))
    np.testing.assert_allclose(out[0], [-1, 0, 1], atol=1e-7)  # variance 1 with N - 1
    assert np.isnan(out[1:]).all()
    large = normalise_words(np.array([[1e8, 1e8 + 8, 1e8 + 16]], np.float32))  # fp32 alone would lose the digits
    np.testing.assert_allclose(large[0], [-1, 0, 1], atol=1e-6)


def test_each_reading_is_evaluated_once_and_the_last_batch_is_filled(corpus):
    batches = list(EegEvalBatches(corpus, EegLabels.of(corpus), batch_size=16, max_words=8))
    assert len({b["eeg"].shape for b in batches}) == 1
    all_ = joined(batches)
    real = all_["mask"]
    assert all_["reading"][real].tolist() == list(range(len(corpus))) and 0 < (~real).sum() < 16
    assert not all_["eeg"][~real].any() and not all_["where"][~real].any() and (all_["group"][~real] == -1).all()
    assert [corpus.subjects[s] for s in all_["subject"][real]] == corpus.subject.tolist()
    for i in range(len(corpus)):
        words = corpus.words_of(i)
        count = words.stop - words.start
        nan = np.isnan(corpus.eeg[words]).any(1)
        np.testing.assert_array_equal(
            all_["where"][i], np.arange(8) < count if not nan.any() else np.pad(~nan, (0, 8 - count))
        )
        np.testing.assert_array_equal(
            all_["position"][i], np.pad(corpus.position[words], (0, 8 - count), constant_values=-1)
        )
        expected = (corpus.eeg[words] - corpus.eeg[words].mean(1, keepdims=True)) / corpus.eeg[words].std(
            1, keepdims=True, ddof=1
        )
        np.testing.assert_allclose(all_["eeg"][i, :count], np.where(nan[:, None], 0, expected), atol=2e-6)
    assert all_["where"].any(1)[real].sum() > 0 and all_["where"].sum() == corpus.usable.sum()


def test_labels_of_the_caller_arrive_where_they_belong(corpus):
    word_class = np.arange(len(corpus.word))
    labels = EegLabels.of(corpus, group=7 * np.arange(len(corpus)), word_class=word_class)
    batch = next(iter(EegEvalBatches(corpus, labels, batch_size=4, readings=[5, 2, 9], max_words=8)))
    assert batch["group"].tolist() == [35, 14, 63, -1] and batch["reading"].tolist() == [5, 2, 9, -1]
    for row, reading in enumerate((5, 2, 9)):
        words = corpus.words_of(reading)
        shown = batch["word_class"][row, : words.stop - words.start]
        usable = ~np.isnan(corpus.eeg[words]).any(1)
        np.testing.assert_array_equal(shown, np.where(usable, word_class[words], -1))
    for wrong in ({"group": np.zeros(3, int)}, {"word_class": np.zeros(len(corpus.word))}):
        with pytest.raises(ShapeError, match="integers, one for each"):
            EegLabels.of(corpus, **wrong)


def test_a_sentence_of_65_words_is_cut_to_56():
    corpus = one_subject([3, 65])
    batch = next(iter(EegEvalBatches(corpus, EegLabels.of(corpus), batch_size=2)))
    assert batch["eeg"].shape == (2, 56, FEATURES) and batch["where"].sum(1).tolist() == [3, 56]
    assert batch["position"][1].tolist() == list(range(0, 112, 2))


def test_an_epoch_shows_every_reading_once_in_pairs_of_different_subjects(corpus):
    train = pipeline(corpus)
    for _ in range(3):  # epochs
        batches = joined([next(train) for _ in range(train.steps_per_epoch)])
        assert len(set(batches["reading"])) == len(batches["reading"]) > len(corpus) - 8
        assert batches["mask"].all()
        group, subject = batches["group"].reshape(-1, 2), batches["subject"].reshape(-1, 2)
        pairs = group[:, 0] == group[:, 1]
        assert (subject[pairs, 0] != subject[pairs, 1]).all()
        sizes = np.bincount(corpus.text_index)
        left_out = -(-(len(corpus) - len(group) * 2) // 2)
        assert pairs.sum() >= (sizes // 2).sum() - left_out
    assert not np.array_equal(next(pipeline(corpus))["reading"], next(pipeline(corpus, seed=1))["reading"])


def test_a_batch_has_a_group_twice_only_where_there_are_few():
    corpus = open_eeg("embedded:synthetic_zuco?subjects=6&sentences=40&vocabulary=40&words=4-8")
    train = pipeline(corpus, batch_size=16)
    repeats = met = 0
    meetings = set()
    for _ in range(train.steps_per_epoch):
        batch = next(train)
        repeats += 8 - len(set(batch["group"]))
        met += 1
        meetings |= {tuple(sorted(pair)) for pair in batch["subject"].reshape(-1, 2).tolist()}
    assert repeats <= met // 2 and len(meetings) == 15  # every two subjects


def test_groups_of_three_and_readings_without_groups(corpus):
    batch = next(pipeline(corpus, batch_size=9, readings_per_group=3))
    assert batch["group"].shape == (9,) and len(set(batch["group"])) <= 5
    train = pipeline(corpus, readings_per_group=1)
    seen = joined([next(train) for _ in range(train.steps_per_epoch)])["reading"]
    assert len(set(seen)) == len(seen) == len(corpus) // 8 * 8


def test_one_subject_and_one_reading_a_text_still_fill_batches():
    corpus = one_subject([3] * 9)
    train = pipeline(corpus)
    assert train.steps_per_epoch == 1 and len(set(next(train)["reading"])) == 8


def test_only_the_chosen_readings_are_shown(corpus):
    chosen = corpus.subject != "SYN03"
    train = pipeline(corpus, readings=chosen)
    seen = joined([next(train) for _ in range(train.steps_per_epoch)])
    assert chosen[seen["reading"]].all()
    with pytest.raises(ShapeError, match="mask of readings"):
        pipeline(corpus, readings=chosen[:-1])
    with pytest.raises(ShapeError, match="counted from 0"):
        pipeline(corpus, readings=np.arange(len(corpus) + 1))


def test_hosts_share_the_batches_of_one_host(corpus):
    alone = pipeline(corpus)
    hosts = [pipeline(corpus, host_index=i, host_count=4) for i in range(4)]
    for _ in range(alone.steps_per_epoch + 1):
        assert_same(next(alone), joined([next(h) for h in hosts]))
    labels = EegLabels.of(corpus)
    whole = list(EegEvalBatches(corpus, labels, batch_size=8, max_words=8))
    parts = [
        list(EegEvalBatches(corpus, labels, batch_size=8, max_words=8, host_index=i, host_count=2)) for i in (0, 1)
    ]
    for together, *of_hosts in zip(whole, *parts, strict=True):
        assert_same(together, joined(of_hosts))


@pytest.mark.parametrize("prefetch", [False, True])
def test_a_restored_pipeline_goes_on_where_it_stopped(corpus, prefetch):
    straight = pipeline(corpus)
    expected = [next(straight) for _ in range(2 * straight.steps_per_epoch + 3)]
    first = Prefetcher(pipeline(corpus)) if prefetch else pipeline(corpus)
    for _ in range(straight.steps_per_epoch + 1):
        next(first)
    state = first.get_state()
    first.close()
    again = pipeline(corpus)
    again.set_state(state)
    for batch in expected[straight.steps_per_epoch + 1 :]:
        assert_same(next(again), batch)


def test_a_position_of_another_corpus_is_refused(corpus):
    state = pipeline(corpus).get_state()
    other = open_eeg(SOURCE.replace("seed=1", "seed=2") + "&nan_word=0.1&duplicates=3")
    with pytest.raises(CheckpointError, match="corpus=|records="):
        pipeline(other).set_state(state)


def test_batches_that_cannot_be_made_are_refused(corpus):
    with pytest.raises(ConfigError, match="batch_size=9 does not divide by eeg.readings_per_text=2"):
        pipeline(corpus, batch_size=9)
    with pytest.raises(DataError, match=r"has 3 readings, which is less than train.batch_size=8"):
        pipeline(corpus, readings=[0, 1, 2])
    with pytest.raises(DataError, match="start does not rise from 0"):
        EegCorpus(**{**one_subject([2]).__dict__, "start": np.array([0, 1])})
    with pytest.raises(DataError, match=r"eeg has the shape \(2, 3\)"):
        EegCorpus(**{**one_subject([2]).__dict__, "eeg": np.zeros((2, 3))})


def test_a_selection_holds_the_same_readings(corpus):
    for chosen in (np.arange(4, 9), np.array([7, 0, 3]), corpus.subject == "SYN02"):
        part = corpus.select(chosen)
        numbers = np.flatnonzero(chosen) if np.asarray(chosen).dtype == bool else chosen
        assert len(part) == len(numbers)
        for i, j in enumerate(numbers):
            mine, theirs = part.words_of(i), corpus.words_of(j)
            assert part.word[mine] == corpus.word[theirs] and part.text[i] == corpus.text[j]
            np.testing.assert_array_equal(part.eeg[mine], corpus.eeg[theirs])
            assert part.subject[i] == corpus.subject[j] and part.index[i] == corpus.index[j]
