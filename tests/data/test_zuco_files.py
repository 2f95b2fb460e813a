"""Files of ZuCo: one corpus through three formats, everything that is odd in them, and files that are damaged."""

from __future__ import annotations

import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest

from jaxkd.data import EegCorpus, EegEvalBatches, EegLabels, EegPipeline, open_eeg
from jaxkd.data.sources.eeg_corpus import BANDS, FEATURES, GAZE
from jaxkd.data.sources.zuco_write import FORMATS, write_zuco
from jaxkd.errors import ConfigError, DataError

pytest.importorskip("h5py", reason="needs the extra `eeg`")

SOURCE = (
    "embedded:synthetic_zuco?subjects=3&sentences=5&vocabulary=30&words=1-5&tasks=SR,NR&seed=2"
    "&nan_word=0.1&missing_sentence=0.2"
)
NAMES = {"zuco1": "resultsSYN02_NR.mat", "zuco2": "resultsSYN02_NR.mat", "pickle": "task-NR-dataset.pickle"}


@pytest.fixture(scope="module")
def corpus() -> EegCorpus:
    return open_eeg(SOURCE)


@pytest.fixture(scope="module")
def written(tmp_path_factory, corpus) -> dict[str, Path]:
    """Format -> folder with the corpus in it; not to be changed."""
    folders = {name: tmp_path_factory.mktemp(name) for name in FORMATS}
    for name, folder in folders.items():
        write_zuco(corpus, folder, name)
    return folders


@pytest.fixture
def copied(written, tmp_path):
    """`copied("zuco1")` -> a copy of that folder, to be spoiled."""
    return lambda name: Path(shutil.copytree(written[name], tmp_path / "zuco"))


def reader(texts: dict[str, list[int]], subject: str = "ZAB", seed: int = 0) -> EegCorpus:
    """A corpus of one subject: sentence -> places of the fixated words."""
    words, readings = sum(map(len, texts.values())), len(texts)
    return EegCorpus(
        subject=np.full(readings, subject),
        corpus=np.full(readings, "zuco1"),
        task=np.full(readings, "NR"),
        index=np.arange(readings),
        text=tuple(texts),
        word_count=np.array([len(text.split(" ")) for text in texts]),
        start=np.concatenate([[0], np.cumsum([len(places) for places in texts.values()])]),
        word=tuple(text.split(" ")[place] for text, places in texts.items() for place in places),
        position=np.array([place for places in texts.values() for place in places], np.int32),
        eeg=np.random.default_rng(seed).normal(0, 1, (words, FEATURES)).astype(np.float32),
        gaze=np.ones((words, len(GAZE)), np.float32),
    )


def assert_equal_corpora(a: EegCorpus, b: EegCorpus) -> None:
    for name in ("subject", "task", "index", "text", "word_count", "start", "word", "position", "eeg", "gaze"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)


# --- the same through all formats


@pytest.mark.parametrize("name", FORMATS)
def test_a_corpus_comes_back_from_every_format_with_equal_batches(corpus, written, name):
    found = open_eeg(written[name])
    assert_equal_corpora(found, corpus)
    assert set(found.corpus) == {"synthetic"}
    for count in ("readings", "words", "missing_sentences", "nan_words"):
        assert found.facts[count] == corpus.facts[count] > 0, count
    sequences = []
    for one in (found, corpus):
        labels = EegLabels.of(one)
        train = EegPipeline(one, labels, batch_size=8, seed=0, max_words=6)
        sequences.append([*EegEvalBatches(one, labels, batch_size=8, max_words=6), next(train), next(train)])
    for a, b in zip(*sequences, strict=True):
        assert set(a) == set(b)
        for key in a:
            np.testing.assert_array_equal(a[key], b[key], err_msg=key)


@pytest.mark.parametrize("name", FORMATS)
def test_strict_nan_leaves_out_whole_sentences(corpus, written, name):
    broken = [bool(np.isnan(corpus.eeg[corpus.words_of(i)]).any()) for i in range(len(corpus))]
    found = open_eeg(written[name], strict_nan=True)
    assert 0 < found.facts["strict_nan_sentences"] == sum(broken)
    assert_equal_corpora(found, corpus.select(~np.array(broken)))
    assert_equal_corpora(found, open_eeg(SOURCE, strict_nan=True))


def test_subjects_are_read_by_name(written, corpus):
    for name in FORMATS:
        found = open_eeg(written[name], subjects=["SYN03"])
        assert found.subjects == ("SYN03",) and len(found) == (corpus.subject == "SYN03").sum()
        with pytest.raises(DataError, match="has no readings of ZAB. The subjects are: SYN01"):
            open_eeg(written[name], subjects=["SYN01", "ZAB"])


def test_progress_tells_files_rate_and_time_left(written):
    calls = []
    open_eeg(written["zuco1"], on_progress=lambda *call: calls.append(call))
    assert [done for done, _, _ in calls] == list(range(7)) and {total for _, total, _ in calls} == {6}
    assert calls[0][2] == "resultsSYN01_NR.mat" and "MB/s, " in calls[3][2] and "s left" in calls[3][2]


def test_folders_of_both_corpora_are_one_corpus(tmp_path):
    write_zuco(reader({"one two": [0, 1]}), tmp_path / "1", "zuco1")
    write_zuco(reader({"three four five": [1]}, "YAC"), tmp_path / "2", "zuco2")
    write_zuco(reader({"left out": [1]}, "YMH"), tmp_path / "2", "zuco2")
    (tmp_path / "1" / "wordbounds_SR_ZAB.mat").write_bytes(b"another kind of file")
    found = open_eeg(tmp_path)
    assert found.subjects == ("YAC", "ZAB") and found.corpus.tolist() == ["zuco2", "zuco1"]
    assert found.facts["left_out_files"] == ["2/resultsYMH_NR.mat"]
    assert found.facts["ignored_files"] == ["1/wordbounds_SR_ZAB.mat"]
    assert open_eeg(tmp_path, subjects=["YMH"]).text == ("left out",)


# --- what is odd in the files


def test_words_without_letters_count_in_zuco_1_and_are_dropped_in_zuco_2(tmp_path):
    corpus = reader({"He , too -- ran": [0, 1, 4]})
    for name, words, positions, count in (
        ("zuco1", ("He", ",", "ran"), [0, 1, 4], 5),
        ("zuco2", ("He", "ran"), [0, 2], 3),
    ):
        write_zuco(corpus, tmp_path / name, name)
        found = open_eeg(tmp_path / name)
        assert found.word == words and found.position.tolist() == positions and found.word_count.tolist() == [count]
        assert found.facts["dropped_tokens"] == (2 if name == "zuco2" else 0)
        np.testing.assert_array_equal(found.eeg, corpus.eeg[[0, 2] if name == "zuco2" else [0, 1, 2]])


@pytest.mark.parametrize("name", FORMATS)
def test_typing_errors_of_the_stimuli_are_mended(tmp_path, name):
    write_zuco(reader({"An emp11111ty film.1": [1, 2]}), tmp_path, name)
    found = open_eeg(tmp_path)
    assert found.text == ("An empty film.",) and found.word == ("empty", "film.")


def mat_word(**fields):
    """A word of ZuCo 1.0 that was fixated once, of ones."""
    word = {"content": "word", "nFixations": 1.0, "GD": 200.0} | {f"GD_{b}": np.arange(105.0) for b in BANDS} | fields
    return {key: value for key, value in word.items() if value is not None}


def write_mat(path: Path, *sentences: list[dict] | float, compressed: bool = True) -> None:
    """A file of ZuCo 1.0 with the given words (or NaN) in each sentence."""
    from scipy.io import savemat

    data = np.zeros(len(sentences), [("content", object), ("word", object), *((f"mean_{b}", object) for b in BANDS)])
    for number, words in enumerate(sentences):
        data[number]["content"] = f"sentence {number}"
        for band in BANDS:
            data[number][f"mean_{band}"] = np.zeros(105)
        if isinstance(words, list) and words:
            array = np.zeros(len(words), [(key, object) for key in words[0]])
            for i, word in enumerate(words):
                array[i] = tuple(word.values())
            words = array
        data[number]["word"] = np.zeros((0, 0)) if isinstance(words, list) else words
    savemat(path, {"sentenceData": data}, oned_as="row", do_compression=compressed)


def test_gaps_of_zuco_1(tmp_path):
    empty = np.zeros((0, 0))
    write_mat(
        tmp_path / "resultsZAB_SR.mat",
        np.nan,  # not recorded
        [mat_word()],  # one word: no array of structures
        [mat_word(nFixations=empty, GD=empty), mat_word(content="seen"), mat_word(nFixations=np.nan)],
        [mat_word(nFixations=empty)],  # nothing was fixated
        [mat_word(GD_b1=np.zeros(50)), mat_word(GD_t1=np.full(105, np.nan)), mat_word(GD_a1=empty)],
        [],  # no words
    )
    found = open_eeg(tmp_path)
    assert found.index.tolist() == [1, 2, 4] and found.word_count.tolist() == [1, 3, 3]
    assert found.word == ("word", "seen", "word", "word", "word") and found.position.tolist() == [0, 1, 0, 1, 2]
    facts = {
        name: found.facts[name] for name in ("missing_sentences", "no_fixation_sentences", "nan_words", "short_words")
    }
    assert facts == {"missing_sentences": 2, "no_fixation_sentences": 1, "nan_words": 3, "short_words": 2}
    assert found.facts["subjects"]["ZAB"]["words"] == 5
    np.testing.assert_array_equal(found.eeg[0], np.tile(np.arange(105.0), 8))
    assert found.gaze[0, 0] == 1 and found.gaze[0, 3] == 200 and np.isnan(found.gaze[0, 1])
    assert open_eeg(tmp_path, strict_nan=True).index.tolist() == [1, 2]


def test_a_measure_is_read_by_its_name(tmp_path):
    both = mat_word(**{f"TRT_{b}": np.full(105, float(i)) for i, b in enumerate(BANDS)})
    write_mat(tmp_path / "resultsZAB_SR.mat", [both, both])
    np.testing.assert_array_equal(open_eeg(tmp_path, measure="TRT").eeg[1], np.repeat(np.arange(8), 105))
    with pytest.raises(DataError, match=r'has no "FFD_t1" in word 0 of sentence 0; it has GD'):
        open_eeg(tmp_path, measure="FFD")
    with pytest.raises(ConfigError, match='measure="SFD" is not possible'):
        open_eeg(tmp_path, measure="SFD")


def pickled_word(content: str, bands=None, **fields) -> dict:
    ones = {f"GD_{b}": np.arange(105.0) for b in BANDS}
    return {"content": content, "nFixations": 1, "word_level_EEG": {"GD": ones if bands is None else bands}} | fields


def pickled_sentence(words: list, with_mask: list[str], **fields) -> dict:
    sentence = {"content": " ".join(with_mask), "word": words, "word_tokens_with_mask": with_mask}
    return sentence | {"sentence_level_EEG": {f"mean_{b}": np.ones(105) for b in BANDS}} | fields


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_gaps_of_the_pickles(tmp_path, protocol):
    short = {f"GD_{b}": [] if b == "a1" else np.ones(105) for b in BANDS}
    content = {
        "ZAB": [
            None,
            pickled_sentence([pickled_word("a", nFixations=np.float64(2)), pickled_word("a")], ["a", "[MASK]", "a"]),
            pickled_sentence([], ["[MASK]"]),
            pickled_sentence(
                [pickled_word("b", short), pickled_word("lost"), pickled_word("d")], ["b", "c", "[MASK]", "d"]
            ),
        ],
        "YAC": [pickled_sentence([pickled_word("z")], ["z"], sentence_level_EEG={"mean_t1": []})],
    }
    (tmp_path / "task2-NR-2.0-dataset.pickle").write_bytes(pickle.dumps(content, protocol=protocol))
    found = open_eeg(tmp_path)
    assert found.subjects == ("YAC", "ZAB") and found.index.tolist() == [0, 1, 3]
    assert found.position.tolist() == [0, 0, 2, 0, 1, 3] and found.word_count.tolist() == [1, 3, 4]
    facts = found.facts["subjects"]["ZAB"]
    assert (facts["missing_sentences"], facts["no_fixation_sentences"]) == (1, 1)
    assert (facts["short_words"], facts["unplaced_words"]) == (1, 1)
    assert found.gaze[1, 0] == 2 and np.isnan(found.gaze[1, 1:]).all()
    np.testing.assert_array_equal(found.eeg[0], np.tile(np.arange(105.0), 8))
    assert open_eeg(tmp_path, strict_nan=True).index.tolist() == [1]


def test_a_sentence_of_65_words_is_kept_and_counted(tmp_path):
    write_zuco(reader({" ".join(f"w{i}" for i in range(70)): list(range(65)), "short one": [1]}), tmp_path, "zuco1")
    found = open_eeg(tmp_path)
    assert np.diff(found.start).tolist() == [65, 1]
    assert (found.facts["long_readings"], found.facts["cut_words"]) == (1, 9)
    batch = next(iter(EegEvalBatches(found, EegLabels.of(found), batch_size=2)))
    assert batch["where"].sum(1).tolist() == [56, 1]


def test_nan_everywhere_leaves_no_word_to_use(tmp_path):
    nan = reader({"all of it": [0, 1, 2]})
    nan.eeg[:] = np.nan
    write_zuco(nan, tmp_path, "zuco1")
    found = open_eeg(tmp_path)
    batch = next(iter(EegEvalBatches(found, EegLabels.of(found), batch_size=1)))
    assert found.facts["nan_words"] == 3 and not batch["where"].any() and not batch["eeg"].any()
    with pytest.raises(DataError, match="No sentence of .* has a usable recording: strict_nan_sentences 1. Check"):
        open_eeg(tmp_path, strict_nan=True)


# --- what is wrong with files: one sentence, and nothing is run


class Malicious:
    """A pickle of this would make a file where it is read."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_a_malicious_pickle_is_refused_and_not_run(tmp_path):
    trace = tmp_path / "trace"
    path = tmp_path / "task1-SR-dataset.pickle"
    for content in ({"ZAB": [Malicious(trace)]}, Malicious(trace), {"ZAB": [np.array([Malicious(trace)], object)]}):
        path.write_bytes(pickle.dumps(content))
        with pytest.raises(
            DataError, match=r'"task1-SR-dataset.pickle|SR-dataset.pickle" holds \w+.system, and not only'
        ):
            open_eeg(tmp_path)
        assert not trace.exists()
    for name in ("cbuiltins\neval\n(S'1'\ntR.", "cnumpy\nload\n(S'x'\ntR.", "cnumpy.f2py\ndiagnose\n(tR."):
        path.write_bytes(name.encode())
        with pytest.raises(DataError, match="Reading it could run any code"):
            open_eeg(tmp_path)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.98])
def test_cut_off_files_are_one_sentence(copied, name, share):
    path = copied(name) / NAMES[name]
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(DataError, match=f'{path.name}" (cannot be read as a|is not a MATLAB file)') as caught:
        open_eeg(path.parent)
    assert "\n" not in str(caught.value)


def test_flipped_bits_of_a_compressed_file_are_found_by_its_checksum(copied):
    path = copied("zuco1") / NAMES["zuco1"]
    content = path.read_bytes()
    for place in np.linspace(140, len(content) - 1, 12).astype(int).tolist():
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        with pytest.raises(DataError, match="cannot be read as a MATLAB file; it may be damaged"):
            open_eeg(path.parent)


def test_a_file_on_which_scipy_crashes_is_one_sentence(tmp_path):
    path = tmp_path / "resultsZAB_SR.mat"
    write_mat(path, [mat_word(), mat_word()], compressed=False)
    assert len(open_eeg(tmp_path)) == 1  # saved with -v6
    content = path.read_bytes()
    # In the type of the characters of the first text, to which SciPy 1.17 answers with a segmentation fault.
    place = content.index(b"mean_g2\0") + 8 + 48
    path.write_bytes(content[:place] + b"\xff" + content[place + 1 :])
    with pytest.raises(DataError, match="cannot be read as a MATLAB file; it may be damaged"):
        open_eeg(tmp_path)


@pytest.mark.parametrize("name", FORMATS)
def test_files_of_another_kind_are_one_sentence(copied, name):
    path = copied(name) / NAMES[name]
    path.write_text("<html>Sign in</html>")
    with pytest.raises(DataError, match="cannot be read as a pickle|is not a MATLAB file"):
        open_eeg(path.parent)


def test_other_fields_are_one_sentence(tmp_path):
    import h5py
    from scipy.io import savemat

    path = tmp_path / "resultsZAB_NR.mat"
    savemat(path, {"other": 1}, do_compression=True)
    with pytest.raises(DataError, match='has no "sentenceData"; it has other'):
        open_eeg(tmp_path)
    savemat(path, {"sentenceData": 3.0}, do_compression=True)
    with pytest.raises(DataError, match="is no array of structures"):
        open_eeg(tmp_path)
    savemat(path, {"sentenceData": {"content": "x", "text": "y"}}, do_compression=True)
    with pytest.raises(DataError, match='has no "word" in sentence 0; it has content, text'):
        open_eeg(tmp_path)
    with h5py.File(path, "w") as file:
        file["other"] = 1
    with pytest.raises(DataError, match='has no "sentenceData"; it has other'):
        open_eeg(tmp_path)
    path.unlink()
    for content, words in (
        ([1, 2], "holds a list and not a dict"),
        ({"ZAB": [{"content": "x"}]}, 'no "word" in sentence 0 of subject ZAB'),
        ({"ZAB": [pickled_sentence([{"content": "x"}], ["x"])]}, 'no "word_level_EEG" in a word of sentence 0'),
        ({"ZAB": [pickled_sentence(3, ["x"])]}, '"word" of sentence 0 of subject ZAB .* is a int and no list'),
    ):
        (tmp_path / "task2-NR-dataset.pickle").write_bytes(pickle.dumps(content))
        with pytest.raises(DataError, match=words):
            open_eeg(tmp_path)


def test_folders_that_hold_nothing_or_too_much_are_one_sentence(tmp_path, copied):
    with pytest.raises(DataError, match="does not exist. Give a folder of ZuCo, or embedded:synthetic_zuco"):
        open_eeg(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="has no files results<SUBJECT>_<TASK>.mat and no pickles"):
        open_eeg(tmp_path / "empty")
    (tmp_path / "empty" / "data.pickle").touch()
    with pytest.raises(DataError, match="does not say which task it holds"):
        open_eeg(tmp_path / "empty")
    folder = copied("zuco1")
    shutil.copytree(folder, folder / "again")
    with pytest.raises(
        DataError, match=r'Both "again/resultsSYN01_NR.mat" and "resultsSYN01_NR.mat" hold subject SYN01'
    ):
        open_eeg(folder)


def test_without_h5py_the_error_names_the_extra(written, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(DataError, match=r"needs h5py. Install it with pip install 'jaxkd\[eeg\]'"):
        open_eeg(written["zuco2"])
    assert len(open_eeg(written["zuco1"]))


# --- the cache


def test_the_cache_gives_the_same_corpus_without_the_files(written, corpus, tmp_path, monkeypatch):
    first = open_eeg(written["zuco1"], cache=tmp_path)
    calls = []
    again = open_eeg(written["zuco1"], cache=tmp_path, on_progress=lambda *call: calls.append(call))
    assert not calls and isinstance(again.eeg, np.memmap)
    assert_equal_corpora(again, corpus)
    assert again.facts == first.facts and again.corpus.tolist() == first.corpus.tolist()
    assert {path.stat().st_mode & 0o077 for path in tmp_path.iterdir()} == {0}  # for its owner alone
    batches = [next(iter(EegEvalBatches(c, EegLabels.of(c), batch_size=8, max_words=6))) for c in (first, again)]
    np.testing.assert_array_equal(batches[0]["eeg"], batches[1]["eeg"])


def test_other_files_or_arguments_are_read_anew(copied, tmp_path):
    folder, cache = copied("pickle"), tmp_path / "cache"
    calls = []
    for arguments in ({}, {"strict_nan": True}, {"subjects": ["SYN01"]}, {"measure": "TRT"}):
        open_eeg(folder, cache=cache, on_progress=lambda *call: calls.append(call), **arguments)
    assert len(list(cache.iterdir())) == 4 and len(calls) == 12
    path = folder / NAMES["pickle"]
    os.utime(path, ns=(1, 1))
    open_eeg(folder, cache=cache)
    assert len(list(cache.iterdir())) == 5


@pytest.mark.parametrize(
    "spoil",
    [
        lambda entry: (entry / "eeg.npy").write_bytes((entry / "eeg.npy").read_bytes()[:-100]),
        lambda entry: (entry / "eeg.npy").write_bytes((entry / "eeg.npy").read_bytes()[:-100] + b"x" * 100),
        lambda entry: (entry / "texts.json").write_text("{}"),
        lambda entry: (entry / "gaze.npy").unlink(),
        lambda entry: (entry / "manifest.json").write_text("{"),
        lambda entry: (entry / "manifest.json").write_text("[]"),
    ],
    ids=["short", "flipped", "texts", "missing", "manifest", "list"],
)
def test_a_damaged_cache_is_never_trusted(written, corpus, tmp_path, caplog, spoil):
    open_eeg(written["pickle"], cache=tmp_path)
    (entry,) = tmp_path.iterdir()
    spoil(entry)
    assert_equal_corpora(open_eeg(written["pickle"], cache=tmp_path), corpus)
    assert f'The cache "{entry}" is damaged' in caplog.text and "read again" in caplog.text
    caplog.clear()
    assert isinstance(open_eeg(written["pickle"], cache=tmp_path).eeg, np.memmap) and not caplog.text


def test_a_cache_that_cannot_be_written_is_said_and_does_no_harm(written, corpus, tmp_path, caplog):
    (tmp_path / "file").touch()
    assert_equal_corpora(open_eeg(written["pickle"], cache=tmp_path / "file"), corpus)
    assert "The cache was not written" in caplog.text
