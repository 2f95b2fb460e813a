"""Training runs of task "contrastive": data, network, batches, and scores on the development part."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict
from rich.console import Console

from jaxkd import data, models, parallel, tasks, train, weights
from jaxkd.config.fields import change, data_seed
from jaxkd.data.files import write_atomic
from jaxkd.data.sources.eeg_corpus import FEATURES
from jaxkd.errors import CheckpointError, ConfigError
from jaxkd.experiment.components import Components, Evaluator
from jaxkd.experiment.eeg import retrieval, scoring
from jaxkd.experiment.eeg.data import EegData, open_eeg_data
from jaxkd.experiment.fitted_table import Column, FittedTable
from jaxkd.language.keywords import Vocabulary, read_vocabulary
from jaxkd.tasks.contrastive import class_weights
from jaxkd.train.progress import Progress

VOCABULARY, LEAKS = "vocabulary.json", "leaks.json"
DEV_ANCHORS = 5  # anchors of the score that is watched in training; `jaxkd.decode` chooses their number
PLANNED_KEYWORDS = 1000  # where no data set is opened


def build_components(
    config: ConfigDict, mesh: Mesh, *, workdir: Path | None, console: Console | None, load: bool, open_data: bool
) -> Components:
    """The components of a contrastive run; see `build`."""
    if not open_data:
        return _planned(config, load=load)
    with Progress(console if parallel.is_main_host() else None) as progress:
        eeg_data = open_eeg_data(config, on_progress=lambda *done: progress.show("reading", *done))
    config = _resolve(config, eeg_data.width)
    if workdir is not None:
        _check_vocabulary(eeg_data.vocabulary, workdir)
    return components_of(config, eeg_data, mesh, load=load)


def components_of(config: ConfigDict, eeg_data: EegData, mesh: Mesh, *, load: bool = True) -> Components:
    """The components of a run on data that are open already, such as those of a control."""
    task = build_task(
        config, eeg_data.keyword_vectors, eeg_data.sentence_vectors, class_weights(eeg_data.class_counts), load=load
    )
    pipeline = build_pipeline(config, eeg_data)
    corpus, split = eeg_data.corpus, eeg_data.split

    def make_evaluator(writer: train.MetricWriter) -> Evaluator:
        return build_evaluator(config, task, eeg_data, mesh)

    def save_inputs(workdir: Path) -> None:
        write_atomic(workdir / VOCABULARY, json.dumps(eeg_data.vocabulary.as_dict(), indent=1))
        write_atomic(workdir / LEAKS, json.dumps(eeg_data.leaks.as_dict(), indent=2))

    parts = ", ".join(f"{len(i):,} {name}" for name, i in split.parts().items())
    subjects = len(set(corpus.subject.tolist()))
    tested = f", {split.leave_out} left out" if split.leave_out else ""
    return Components(
        config=config,
        task=task,
        abstract_batch=abstract_batch(config, eeg_data.width),
        best_metric="retrieval_top5",
        summary=(
            f"loss words + {config.eeg.sentence_weight:g} sentences ({config.eeg.sentence_loss}) · "
            f"{len(eeg_data.vocabulary.words):,} keywords in "
            f"{config.eeg.min_texts} training texts or more · vectors {eeg_data.vectors.name}",
            f"{len(corpus):,} readings of {len(eeg_data.texts):,} texts by {subjects} people from "
            f"{config.data.source}: {parts}, split {split.name}{tested}",
            *(f"LEAK: {leak}" for leak in eeg_data.leaks.leaks),
        ),
        pipeline=pipeline,
        train_images=len(split.train),
        val_images=len(split.dev),
        make_evaluator=make_evaluator,
        save_inputs=save_inputs,
    )


def build_task(
    config: ConfigDict, keywords: np.ndarray, sentences: np.ndarray, class_weight: Any, *, load: bool = True
) -> tasks.ContrastiveTask:
    """The network and what it is aligned with; `load=False` leaves the weights random."""
    args = {k: v for k, v in config.student.args.items() if v is not None}
    if models.spec(config.student.name).task != "eeg_words":
        raise ConfigError(
            f'student.name="{config.student.name}" takes images, and task="contrastive" trains a network from EEG '
            'words to embeddings. Set --config.student.name, for example "eeg_words_base".'
        )
    student = weights.build_network(config.student.name, args, compute=config.precision.compute)
    frozen = None
    if config.student.freeze:
        shapes = models.abstract_variables(student.model, student.model.example_shape)
        frozen = weights.freeze_mask(shapes["params"], tuple(config.student.freeze))
    if load and config.student.weights:
        student = weights.load_weights(student, config.student.weights, variant=config.student.variant)
    return tasks.ContrastiveTask(
        student,
        jnp.asarray(keywords),
        jnp.asarray(sentences),
        class_weight,
        sentence_weight=config.eeg.sentence_weight,
        sentence_loss=config.eeg.sentence_loss,
        learned=config.eeg.learned,
        frozen=frozen,
    )


def build_pipeline(config: ConfigDict, eeg_data: EegData) -> data.EegPipeline:
    """An infinite, resumable iterator over this host's training readings."""
    return data.EegPipeline(
        eeg_data.corpus,
        eeg_data.labels,
        readings=eeg_data.split.train,
        batch_size=config.train.batch_size,
        readings_per_group=config.eeg.readings_per_text,
        seed=data_seed(config),
        features=eeg_data.features,
        max_words=config.eeg.max_words,
        host_index=jax.process_index(),
        host_count=jax.process_count(),
    )


def build_evaluator(config: ConfigDict, task: tasks.ContrastiveTask, eeg_data: EegData, mesh: Mesh) -> Evaluator:
    """State -> scores on the development part, of raw weights and, `ema_*`, of the moving average."""
    embed = scoring.compile_embed(task)
    queries = retrieval.make_queries(eeg_data, eeg_data.split.dev, seed=config.seed)
    scorer = retrieval.make_scorer(eeg_data, queries)
    texts = eeg_data.sentence_vectors[queries.candidates]

    def score_params(params: Any) -> dict[str, float]:
        decoded = scoring.decode_readings(
            embed,
            params,
            task.constants,
            eeg_data,
            eeg_data.split.dev,
            mesh,
            batch_size=config.train.batch_size,
            max_words=config.eeg.max_words,
        )
        scores = scoring.word_scores(decoded, eeg_data.class_counts)
        row = retrieval.retrieval_row(queries, retrieval.anchor_scores(decoded, scorer, DEV_ANCHORS), "all")
        direct = retrieval.retrieval_row(queries, direct_scores(task, params, decoded, texts), "all")
        found = {f"retrieval_{k}": row[k] for k in ("top1", "top5", "top25")}
        found |= {f"retrieval_chance{k}": row[f"chance{k}"] for k in (1, 5, 25)}
        return {**found, **{f"direct_{k}": direct[k] for k in ("top1", "top5", "top25")}, **scores}

    def score(state: train.TrainState) -> dict[str, float]:
        found = score_params(state.params)
        if state.ema is not None:
            found |= {f"ema_{k}": v for k, v in score_params(state.ema).items()}
        return found

    return score


def direct_scores(task: tasks.ContrastiveTask, params: Any, decoded: scoring.Decoded, texts: np.ndarray) -> np.ndarray:
    """(Q, C) cosines of sentence embeddings and the embeddings of the candidates' vectors (C, d)."""
    embedded = np.asarray(task.text(jax.device_get(params["projectors"]), texts), np.float64)
    length = np.linalg.norm(embedded, axis=1, keepdims=True)
    return decoded.sentence.astype(np.float64) @ (embedded / np.where(length > 0, length, 1.0)).T


def compare_contrastive(configs: Mapping[str, ConfigDict], results: Mapping[str, Any], workdir: Path) -> FittedTable:
    """Table of the runs' scores on the development part."""
    columns = (
        Column("run", justify="left"),
        Column("network", 3, justify="left"),
        Column("retrieval top-5"),
        Column("chance", 1),
        Column("direct top-5", 2),
        Column("word top-5", 2),
        Column("seconds", 4),
    )
    table = FittedTable("Scores on the development part, in percent", columns)
    for name, result in results.items():
        m = result["metrics"]
        shown = [m["retrieval_top5"], m["retrieval_chance5"], m["direct_top5"], m.get("word_top5", float("nan"))]
        table.rows.append((name, result["student"], *(f"{v:.1f}" for v in shown), f"{result['seconds']:.0f}"))
    return table


def abstract_batch(config: ConfigDict, features: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of a global batch of `data.EegPipeline`."""
    count, words = config.train.batch_size, config.eeg.max_words
    return {
        "eeg": jax.ShapeDtypeStruct((count, words, features), jnp.float32),
        "where": jax.ShapeDtypeStruct((count, words), jnp.bool_),
        "position": jax.ShapeDtypeStruct((count, words), jnp.int32),
        "word_class": jax.ShapeDtypeStruct((count, words), jnp.int32),
        "group": jax.ShapeDtypeStruct((count,), jnp.int32),
        "subject": jax.ShapeDtypeStruct((count,), jnp.int32),
        "sentence": jax.ShapeDtypeStruct((count,), jnp.int32),
        "reading": jax.ShapeDtypeStruct((count,), jnp.int32),
        "mask": jax.ShapeDtypeStruct((count,), jnp.bool_),
    }


def _planned(config: ConfigDict, *, load: bool) -> Components:
    """Components without a data set."""
    config = _resolve(config, FEATURES)
    count = config.eeg.keywords or PLANNED_KEYWORDS
    vectors = np.zeros((count, 256), np.float32)
    task = build_task(config, vectors, vectors, jnp.ones(count + 1), load=load)
    return Components(
        config=config,
        task=task,
        abstract_batch=abstract_batch(config, FEATURES),
        best_metric="retrieval_top5",
        summary=(f"{count:,} keywords",),
    )


def _resolve(config: ConfigDict, features: int) -> ConfigDict:
    """A copy of `config` that says the number of features of a word."""
    config = config.copy_and_resolve_references()
    if config.student.args.get("in_features") is not None:
        return config.lock()
    return change(config, {"student.args.in_features": features}).lock()


def _check_vocabulary(vocabulary: Vocabulary, workdir: Path) -> None:
    """Raises CheckpointError where a run that is continued was trained with other keywords."""
    path = workdir / VOCABULARY
    if not path.is_file():
        return
    known = read_vocabulary(path)
    if known.hash != vocabulary.hash:
        raise CheckpointError(
            f'"{workdir}" was trained with {len(known.words)} other keywords than the {len(vocabulary.words)} of these '
            "data. Give the data and settings of that run, or another --workdir."
        )
