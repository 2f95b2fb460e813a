"""Contrastive runs on synthetic EEG end to end: training, continuing, decoding, controls, and mistakes."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from chat_server import Server, chat
from llama_files import random_arrays, write_llama2c

from jaxkd import analyze, decode, parallel
from jaxkd.config import fields, recipes
from jaxkd.config.validate import CHOICES, validate
from jaxkd.errors import CheckpointError, ConfigError, DataError
from jaxkd.experiment import run as run_module
from jaxkd.experiment.build import build
from jaxkd.experiment.eeg import controls, retrieval, sentences
from jaxkd.experiment.eeg import decode as decoding
from jaxkd.experiment.eeg.components import build_task
from jaxkd.experiment.eeg.data import open_eeg_data
from jaxkd.language.sentences import Written
from jaxkd.tasks.contrastive import SENTENCE_LOSSES, ContrastiveTask, class_weights
from jaxkd.train import load_run_params

HERE = Path(__file__).parent
CORPUS = "embedded:synthetic_zuco?snr=16&subjects=3&sentences=150&vocabulary=40&words=6-7"


def config_of(source=CORPUS, **changes):
    small = {
        "data.source": source,
        "eeg.max_words": 7,
        "train.batch_size": 48,
        "train.epochs": 6,
        "schedule.warmup_epochs": 1,
        "log.tensorboard": False,
        "log.every_steps": 10,
        "eval.every_epochs": 3,
    }
    config = recipes.contrastive(fields.base(), embedded=True)
    return fields.change(config, small | {k.replace("__", "."): v for k, v in changes.items()}).lock()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(work directory, result) of a run."""
    workdir = tmp_path_factory.mktemp("eeg") / "run"
    return workdir, run_module.run(config_of(), workdir)


def test_a_run_learns_and_writes_what_it_was_made_of(run):
    workdir, result = run
    scores = result["metrics"]
    assert scores["retrieval_top5"] > scores["retrieval_chance5"] + 20
    assert scores["word_top1"] > 3 * scores["word_chance_top1"]
    words = json.loads((workdir / "vocabulary.json").read_text())["words"]
    assert 20 < len(words) <= 40
    assert json.loads((workdir / "leaks.json").read_text())["leaks"] == []
    params = load_run_params(workdir)[0]
    assert params["projectors"]["keyword_projection"]["kernel"].shape == (256, 128)
    assert 0 < float(params["projectors"]["log_scale_words"]) <= np.log(100) + 1e-6


def test_a_run_continues_as_if_it_had_not_stopped(run, tmp_path):
    half = run_module.run(config_of(train__steps=18, checkpoint__every_steps=9), tmp_path / "halves")
    assert half["step"] == 18
    run_module.run(config_of(), tmp_path / "halves")
    one, two = (load_run_params(w)[0] for w in (run[0], tmp_path / "halves"))
    jax.tree.map(np.testing.assert_array_equal, one, two)


def test_a_run_with_other_keywords_is_not_continued(run, tmp_path):
    run_module.run(config_of(train__steps=2), tmp_path / "run")
    (tmp_path / "run" / "vocabulary.json").write_text(
        json.dumps({"words": ["a"], "texts": [3], "text_count": 9, "min_texts": 3, "size": 0})
    )
    with pytest.raises(CheckpointError, match="1 other keywords"):
        run_module.run(config_of(), tmp_path / "run")


@pytest.fixture(scope="module")
def experiment():
    return build(config_of(student__name="eeg_words_tiny", eeg__learned=True), parallel.make_mesh(1))


@pytest.fixture(scope="module")
def batch(experiment):
    batch = next(experiment.pipeline)
    return {k: jnp.asarray(v) for k, v in batch.items() if k in experiment.abstract_batch}


def test_frozen_parameters_stay_and_all_others_move(batch):
    found = build(config_of(student__name="eeg_words_tiny", student__freeze=("blocks_0",)), parallel.make_mesh(1))
    state = found.init_state()
    before = jax.device_get(state.params)
    step = found.compile_step()
    for _ in range(2):  # the first has the rate of the warm-up's beginning
        state, _ = step(state, parallel.put_batch(dict(batch), found.mesh), found.key, found.constants)
    moved = jax.tree.map(lambda a, b: bool((np.asarray(a) != b).any()), state.params, before)
    names = {jax.tree_util.keystr(k): v for k, v in jax.tree_util.tree_leaves_with_path(moved)}
    assert {name for name, changed in names.items() if not changed} == {n for n in names if "blocks_0" in n} != set()


def loss_of(experiment, params, batch):
    task = experiment.task
    return task.loss(params, {}, batch, jax.random.key(3), jnp.zeros((), jnp.int32), task.constants)[0]


def with_loss(experiment, form):
    """The experiment's task with another form of the sentences' loss."""
    constants = (experiment.task.constants[name] for name in ("keywords", "sentences", "class_weight"))
    return ContrastiveTask(experiment.task.student, *constants, sentence_loss=form)


def test_every_form_of_the_sentences_loss_trains_a_step(experiment, batch):
    found, key = {}, jax.random.key(0)
    assert set(SENTENCE_LOSSES) == set(CHOICES["eeg.sentence_loss"])
    for form in SENTENCE_LOSSES:
        task = with_loss(experiment, form)
        params = task.init(key)[0]

        @jax.jit
        def loss_and_slopes(params, task=task):
            return jax.value_and_grad(lambda p: task.loss(p, {}, batch, key, 0, task.constants)[0])(params)

        loss, slopes = loss_and_slopes(params)
        after = loss_and_slopes(jax.tree.map(lambda p, g: p - 1e-3 * g, params, slopes))[0]
        assert np.isfinite([loss, after]).all() and after < loss, form
        found[form] = round(float(loss), 4)
    # Readings of a text share its vector, so that a right answer each gives the mean over all right ones.
    assert found.pop("info_nce") == pytest.approx(found["mean_log"], abs=2e-4)
    assert len(set(found.values())) == len(found)


def test_the_form_of_the_sentences_loss_is_a_field():
    config = config_of(eeg__sentence_loss="siglip")
    params = build_task(config.copy_and_resolve_references(), *np.zeros((2, 3, 4), np.float32), np.ones(4)).init(
        jax.random.key(0)
    )[0]
    assert params["projectors"]["bias_sentences"] == -10
    with pytest.raises(ConfigError, match=r'eeg\.sentence_loss="clip"'):
        validate(config_of(eeg__sentence_loss="clip"))
    with pytest.raises(ConfigError, match=r"eeg\.sentence_weight=0"):
        validate(config_of(eeg__sentence_loss="siglip", eeg__sentence_weight=0.0))


def test_a_text_of_several_readings_is_one_candidate_of_siglip(experiment, batch):
    """A batch whose readings all stand twice has the same mean loss of its sentences."""
    task = with_loss(experiment, "siglip")
    params = task.init(jax.random.key(0))[0]
    words = jax.random.normal(jax.random.key(1), (*batch["where"].shape, task.width))
    found = []
    for times in (1, 2):
        own, shown = jax.tree.map(lambda x, n=times: jnp.concatenate([x] * n), (batch, words))
        inputs = task.inputs(own, jax.random.key(0), task.constants)
        found.append(task.compare(params, {}, inputs, (shown, {}), 0, None)[1]["sentences"])
    np.testing.assert_allclose(found[1], found[0], rtol=1e-5)


def test_gradients_reach_every_parameter(experiment, batch):
    params = experiment.task.init(jax.random.key(0))[0]
    gradients = jax.grad(lambda p: loss_of(experiment, p, batch))(params)
    still = [jax.tree_util.keystr(k) for k, g in jax.tree_util.tree_leaves_with_path(gradients) if not np.abs(g).max()]
    assert still == []


def test_what_is_masked_counts_nowhere(experiment, batch):
    params = experiment.task.init(jax.random.key(0))[0]
    off = {**batch, "mask": batch["mask"].at[5].set(False), "where": batch["where"].at[7, 0].set(False)}
    changed = {**off, "eeg": off["eeg"].at[5].set(9.0).at[7, 0].set(jnp.nan)}
    changed |= {"word_class": off["word_class"].at[5].set(1), "group": off["group"].at[5].set(off["group"][0])}
    one, two = (jax.value_and_grad(lambda p, b=b: loss_of(experiment, p, b))(params) for b in (off, changed))
    jax.tree.map(np.testing.assert_array_equal, one, two)
    assert loss_of(experiment, params, batch) != one[0]


def test_half_of_the_words_loss_is_of_the_null_class():
    counts = np.array([16, 4, 1, 100])
    mass = np.asarray(class_weights(counts)) * counts
    np.testing.assert_allclose(mass, [4, 2, 1, 7], rtol=1e-6)


def test_one_device_computes_what_eight_do():
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "8"}
    done = subprocess.run(
        [sys.executable, str(HERE / "eeg_program.py")], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    one, eight = json.loads(done.stdout)
    np.testing.assert_allclose(one, eight, rtol=1e-5)
    assert one[0] != one[-1]


def decoded(workdir, out, *options):
    assert decode.main([f"--weights={workdir}", f"--out={out}", "--no-compile-cache", *options]) == 0
    return json.loads((out / "results.json").read_text())


@pytest.mark.slow
def test_decoding_writes_tables_beside_chance(run, tmp_path, capsys):
    montage = tmp_path / "montage.npz"
    np.savez(montage, coords=np.random.default_rng(0).normal(size=(105, 3)))
    options = ["--skip-retraining", "--anchors=3", "--pool=10", f"--montage={montage}"]
    results = decoded(run[0], tmp_path / "report", *options)
    rows = {row["row"]: row for row in results["controls"]}
    assert len(rows) == 15 and rows["gaze only"]["networks"] == 0
    assert rows["EEG"]["all_top5"] > rows["EEG"]["all_chance5"] + 20 and rows["EEG"]["all_p"] == 0.001
    for name in ("no anchors", "memoriser"):
        assert rows[name]["all_top5"] == pytest.approx(rows[name]["all_chance5"])
    assert rows["oracle anchors"]["all_top5"] > rows["EEG"]["all_top5"]
    pools = {row["pool"]: row for row in results["retrieval"] if row["method"] == "3 anchors"}
    assert set(pools) == {"10", "all", "matched"} and pools["10"]["chance5"] == pytest.approx(50)
    assert pools["all"]["chance1"] == pytest.approx(100 / 15)
    with (tmp_path / "report" / "controls.csv").open() as file:
        assert [row["row"] for row in csv.DictReader(file)] == list(rows)
    lines = [json.loads(line) for line in (tmp_path / "report" / "sentences.jsonl").read_text().splitlines()]
    assert {line["mode"] for line in lines} == {"template", "retrieve"}
    assert all(len(line["anchors"]) <= 3 for line in lines if line["source"] == "EEG")
    with (tmp_path / "report" / "text_metrics.csv").open() as file:
        assert [float(row["bleu3"]) for row in csv.DictReader(file)] == [r["bleu3"] for r in results["text_metrics"]]
    page = (tmp_path / "report" / "report.html").read_text()
    assert "Controls beside chance" in page and "Ten readings" in page and "Further text metrics" in page
    assert "mean over 3" in page and "worst: SYN" in page
    anchors = results["anchors"]
    assert anchors["precision"] > anchors["chance_precision"] + 20 and anchors["f"] > anchors["chance_f"] > 0
    mean, worst = results["subject_summary"]
    each = [row["matched_top5"] for row in results["subjects"]]
    assert mean["matched_top5"] == pytest.approx(np.mean(each)) and worst["matched_top5"] == min(each)
    assert mean["queries"] == 45
    assert results["scalp"]["bands"] and (tmp_path / "report" / "figures" / "scalp.png").stat().st_size > 10_000
    assert "Detectors that fire: word length" in capsys.readouterr().out


@pytest.mark.slow
def test_controls_that_train_networks_are_at_chance(run, tmp_path):
    results = decoded(run[0], tmp_path / "report", "--no-figures")
    rows = {row["row"]: row for row in results["controls"]}
    assert rows["pairs permuted in training"]["networks"] == controls.SHUFFLES
    for name in ("noise, trained and tested", "pairs permuted in training", "gaze only"):
        assert abs(rows[name]["all_top5"] - rows[name]["all_chance5"]) < 17, name  # 45 readings
    assert rows["subject only"]["all_top5"] == pytest.approx(rows["subject only"]["all_chance5"])
    assert rows["EEG without length and gaze"]["all_top5"] > rows["EEG"]["all_chance5"] + 20
    text = {row["mode"]: row for row in results["text_metrics"]}
    assert text["noise, trained and tested, template"]["bleu1"] < text["EEG, template"]["bleu1"]


def test_a_language_model_writes_and_orders(run, tmp_path, monkeypatch):
    """Sentences, share of failures and reranked retrieval; a second start asks nothing; what leaves the machine."""

    def answer(i, body):
        request = body["messages"][1]["content"]
        if len(request) % 4 == 0:
            return chat("no form")
        return chat('{"sentence": "A sentence.", "order": [2, 1]}')

    monkeypatch.setattr(retrieval, "PERMUTATIONS", 19)
    out, server = tmp_path / "out", Server(answer)
    options = [f"--llm={server.url}", "--llm-model=tiny", "--mode=generate", "--mode=rerank", "--anchors=3"]
    options += ["--skip-retraining", "--no-figures", "--overwrite"]
    try:
        results = decoded(run[0], out, *options)
        sent = list(server.requests)
        assert decoded(run[0], out, *options)["text_metrics"] == results["text_metrics"]
        assert len(server.requests) == len(sent)
    finally:
        server.shutdown()
        server.server_close()
    lines = [json.loads(line) for line in (out / "sentences.jsonl").read_text().splitlines()]
    for row in results["text_metrics"]:
        own = [line for line in lines if f"{line['source']}, {line['mode']}" == row["mode"]]
        assert len(own) == 45 and row["failed"] == pytest.approx(100 * np.mean([line["failed"] for line in own]))
        assert row["empty"] == row["failed"] and all(line["sentence"] is None for line in own if line["failed"])
    shares = [row["failed"] for row in results["text_metrics"]]
    assert len(shares) == 7 and 0 < np.mean(shares) < 100 and "the answer has not the form" in str(lines)
    rows = {row["method"]: row for row in results["retrieval"] if row["pool"] == "all"}
    reranked = rows["3 anchors, best 15 reranked by tiny"]
    assert reranked["candidates"] == 15 and reranked["chance5"] == pytest.approx(100 / 3) and reranked["p_holm"] >= 0
    # The best two changed places: the first of the retrieval is the second now, where the answer could be read.
    assert reranked["top1"] < rows["3 anchors"]["top1"] and reranked["failed"] == shares[1]
    assert {"prior anchors, best 15 reranked by tiny", "prior anchors", "oracle anchors"} <= set(rows)
    with (out / "retrieval.csv").open() as file:
        assert reranked["method"] in {row["method"] for row in csv.DictReader(file)}

    opened = open_eeg_data(config_of())
    read = {opened.texts[group] for group in opened.split.group[opened.split.test]}
    known = set(opened.vocabulary.words)
    for body in sent:
        assert set(body) == {"model", "messages", "max_tokens", "temperature", "seed"}
        request = body["messages"][1]["content"]
        keywords, texts = re.fullmatch(r"Keywords[^:]*: (.*)\nSentences[^:]*:\n(.*)\nAnswer.*", request, re.S).groups()
        for anchor in keywords.split(", "):
            word, _ = re.fullmatch(r"(\S+) \((\d\.\d\d)\)", anchor).groups() if anchor != "(none)" else ("", "")
            assert word in known | {""}
        listed = re.findall(r"^\d+\. (.*)$", texts, re.M)
        if '"order"' in request:  # the candidates, which tell nothing of which was read
            assert set(listed) == read
        else:
            assert len(listed) == 3 and not read & set(listed)
        assert not any(name in json.dumps(body) for name in opened.corpus.subjects)


def test_a_failed_order_counts_as_ordered_at_random():
    scores = np.array([[3.0, 2.0, 1.0, 0.0]] * 2)
    scores = np.concatenate([scores, -np.arange(1.0, 31.0) * np.ones((2, 30))], axis=1)
    source = sentences.AnchorSource("EEG", [[], []], scores)
    order = (3, 0, *range(4, 25), 2, 1)
    found = sentences.reranked_scores(source, [Written("x", order), Written(None)])
    assert found[0].argsort(kind="stable")[::-1].tolist() == [*order, *range(25, 34)]
    assert set(found[1, :25]) == {0.0} and (np.diff(found[1, 24:]) < 0).all()


def test_the_texts_that_were_read_change_no_output(run):
    opened = decoding.open_run(run[0], changes={})
    eeg_data, test = opened.eeg_data, opened.eeg_data.split.test
    before = opened.fitted.decode(eeg_data, test)
    texts = list(eeg_data.texts)
    for group in set(eeg_data.split.group[test].tolist()):
        texts[group] = "Nothing of this was read."
    other = dataclasses.replace(
        eeg_data, texts=tuple(texts), word_class=np.zeros_like(eeg_data.word_class), text_words=eeg_data.text_words + 1
    )
    after = opened.fitted.decode(other, test)
    np.testing.assert_array_equal(before.logits, after.logits)
    np.testing.assert_array_equal(before.sentence, after.sentence)


def test_the_split_of_a_run_is_not_another(run):
    with pytest.raises(ConfigError, match=r"trained with eeg\.split='text'.*cross_subject"):
        decoding.open_run(run[0], changes={"eeg.split": "cross_subject"})
    with pytest.raises(CheckpointError, match="other keywords"):
        decoding.open_run(run[0], changes={"data.source": CORPUS.replace("vocabulary=40", "vocabulary=30")})


LEAKY = "embedded:synthetic_zuco?snr=0&subjects=3&sentences=150&vocabulary=40&words=6-7&duplicates=40"


def test_leaks_are_refused_unless_they_are_wanted():
    with pytest.raises(DataError, match="texts are in train & test"):
        open_eeg_data(config_of(LEAKY, eeg__split="published"))
    found = open_eeg_data(config_of(LEAKY, eeg__split="published", eeg__allow_leaks=True))
    assert found.leaks.shared_texts["train & test"] > 0
    assert open_eeg_data(config_of(LEAKY)).leaks.leaks == ()
    with pytest.raises(DataError, match="the vocabulary was made of"):
        open_eeg_data(config_of(eeg__vocabulary="all"))
    with pytest.raises(DataError, match="the standardisation was made of"):
        open_eeg_data(config_of(eeg__standardise="all"))
    train = open_eeg_data(config_of(eeg__standardise="train"))
    own = np.isin(train.corpus.reading_of_word, train.split.train)
    np.testing.assert_allclose(train.features[own].std(axis=0), 1, rtol=1e-4)


def test_mistakes_are_told_in_a_sentence(tmp_path):
    mesh = parallel.make_mesh(1)
    with pytest.raises(ConfigError, match="eeg_words_base"):
        build(config_of(student__name="deit_tiny_patch16_224"), mesh)
    with pytest.raises(ConfigError, match="eeg_words"):
        build(
            fields.change(fields.base(), {"student.name": "eeg_words_tiny", "data.source": "embedded:digits"}).lock(),
            mesh,
        )
    with pytest.raises(ConfigError, match="label_smoothing"):
        build(config_of(label_smoothing=0.2), mesh)
    with pytest.raises(ConfigError, match="leave_out"):
        build(config_of(eeg__leave_out="SYN01"), mesh)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--anchors=none"], "--anchors"),
        (["--llm=http://127.0.0.1:1/v1"], "--llm-model"),
        (["--mode=generate"], "--llm"),
        (["--llm-model=x"], "no --llm was given"),
        (["--llm=absent.bin"], 'The language model "absent.bin" does not exist'),
        (["--llm=./absent", "--llm-model=x"], "--llm-model=x was given, but --llm names a Llama on this machine"),
        (["--llm=127.0.0.1:8080", "--llm-model=x"], "is no address of a language model"),
        (["--llm=http://127.0.0.1:1/v1", "--llm-model=x", "--llm-extra=top_k=1"], "is no JSON object"),
    ],
)
def test_options_that_do_not_fit(run, tmp_path, capsys, options, said):
    with pytest.raises(SystemExit) as stop:
        decode.main([f"--weights={run[0]}", f"--out={tmp_path / 'out'}", *options])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert said in error and len(error.strip().splitlines()) == 1


def test_a_bad_montage_is_told_before_anything_is_computed(run, tmp_path, complaint_of):
    montage = tmp_path / "montage.npz"
    for content, said in (
        (lambda: montage.write_text("no archive"), "cannot be read"),
        (lambda: np.savez(montage, places=np.zeros((105, 3))), '"coords" \\(electrodes, 3\\)'),
        (lambda: np.savez(montage, coords=np.zeros((104, 3))), "has 104 electrodes, and the network takes 840"),
        (lambda: np.savez(montage, coords=np.zeros((105, 2))), "has shape"),
    ):
        content()
        options = [f"--weights={run[0]}", f"--out={tmp_path / 'out'}", f"--montage={montage}", "--no-compile-cache"]
        assert re.search(said, complaint_of(decode.main, options))
        assert not list((tmp_path / "out").iterdir())


def test_a_path_selects_the_local_llama(run, tmp_path, capsys):
    llama = write_llama2c(random_arrays(), tmp_path)
    results = decoded(
        run[0], tmp_path / "out", f"--llm={llama}", "--mode=generate", "--skip-retraining", "--no-figures"
    )
    told = capsys.readouterr().out
    # Every prompt is too long for 32 places: the report is written, and says so.
    assert re.search(
        r"Without a sentence: (\d+) of \1 \(EEG, generate; .*\)\. Most frequent reason: The prompt does not fit the "
        r"language model tiny-\w+\.",
        told,
    )
    assert {row["failed"] for row in results["text_metrics"]} == {100.0}


def context_of(**changes):
    """Of controls without a network, on a corpus of noise."""
    source = CORPUS.replace("snr=16", "snr=0") + "".join(f"&{k}={v}" for k, v in changes.items())
    config = config_of(source, train__steps=2)
    eeg_data = open_eeg_data(config)
    queries = retrieval.make_queries(eeg_data, eeg_data.split.test)
    return controls.Context(eeg_data, queries, retrieval.make_scorer(eeg_data, queries), 3), config


@pytest.mark.parametrize("gaze_letters", [0, 1])
def test_word_length_is_read_from_gaze_that_holds_it(gaze_letters):
    context, _ = context_of(gaze_letters=gaze_letters, sentences=400)
    row = controls.score_row(context, "word length from gaze", [controls.gaze_length(context, None)])
    assert (row["matched_p"] < controls.FIRES) == bool(gaze_letters)


@pytest.mark.parametrize("holes", [0, 0.5])
def test_who_reads_tells_the_sentence_where_readers_have_their_own(holes):
    context, config = context_of(holes=holes)
    trainer = decoding.Trainer(config, parallel.make_mesh(1))
    row = controls.score_row(context, controls.ANY_SUBJECT, controls.subject_only(context, trainer))
    assert (row["all_p"] < controls.FIRES) == bool(holes)


def analysed(out, *options):
    few = ["--permutations=2", "--bootstrap=20", "--no-figures", "--no-compile-cache", "--words=16"]
    assert analyze.main([*options, f"--out={out}", *few]) == 0
    return json.loads((out / "results.json").read_text())


@pytest.mark.slow
def test_the_encoder_of_a_run_is_analysed_beside_an_untrained_one(run, tmp_path, capsys):
    """Over words of its test readings, from the run's own recordings."""
    results = analysed(tmp_path / "out", f"--weights={run[0]}", "--model=eeg_words_tiny", "--label=untrained")
    trained, other = results["models"]
    assert trained["layers"] and other["label"] == "untrained" and "random" in other["weights"]
    assert results["settings"]["source"] == CORPUS and results["settings"]["words_per_passage"] == 16
    eeg_data = open_eeg_data(config_of())
    words = np.isin(eeg_data.corpus.reading_of_word, eeg_data.split.test).sum()
    assert words - 3 * 15 <= 16 * trained["images"] <= words
    assert np.shape(results["comparisons"][0]["cka"]) == (len(other["layers"]), len(trained["layers"]))
    assert "consecutive usable words of one reader, from the test readings" in capsys.readouterr().out
    assert {"spectrum", "pca", "sep", "cka"} <= {p.stem for p in (tmp_path / "out").glob("*.csv")}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--weights=RUN", "--saliency=2"], "run is an encoder of EEG words, and nothing reads it there"),
        (["--weights=RUN", "--layers=attn_*"], "attn_"),
        (["--weights=RUN", "--words=5000"], "No reader has 5000 usable words in the test readings"),
        (["--weights=RUN", "--model=deit_tiny_patch16_224"], "is an encoder of EEG words and"),
        (["--model=eeg_words_tiny"], "eeg_words_tiny is no work directory"),
        (["--model=deit_tiny_patch16_224"], "--images is missing"),
    ],
)
def test_analyses_that_cannot_be_made(run, tmp_path, complaint_of, options, said):
    options = [o.replace("RUN", str(run[0])) for o in options]
    assert said in complaint_of(analyze.main, [*options, f"--out={tmp_path / 'out'}", "--no-compile-cache"])
