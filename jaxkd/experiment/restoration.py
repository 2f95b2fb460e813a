"""Super-resolution runs: pairs, patches, networks, and evaluation on whole images."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict
from rich.console import Console

from jaxkd import data, metrics, models, parallel, tasks, train, weights
from jaxkd.errors import ConfigError, DataError, ShapeError
from jaxkd.experiment.experiment import Problem
from jaxkd.report.training_curves import draw_scores, read_bicubic, scores_caption
from jaxkd.superres.tiling import Enlarger

SHOWN = 3  # images of the first set that go to TensorBoard
NAMED = 20  # unreadable files that an error names
CROPS = {"scale": None, "4": 4}  # eval.crop: the field's convention; what the published MDBN files say at every scale
Progress = Callable[[int], None]


def scale_of(config: ConfigDict) -> int:
    """The super-resolution scale of the student.

    Raises:
      UnknownNameError: no such network. ConfigError: a network that classifies.
    """
    if models.spec(config.student.name).task != "restoration":
        raise ConfigError(
            f'student.name="{config.student.name}" classifies images, and task="restoration" trains a network from '
            'image to image. Set --config.student.name, for example "mdbn_x4".'
        )
    return models.create(config.student.name).scale


def build_task(config: ConfigDict, *, load: bool = True) -> tasks.RestorationTask:
    """The network, its loss and its frozen parameters; `load=False` leaves the weights random."""
    args = {k: v for k, v in config.student.args.items() if v is not None}
    student = weights.build_network(
        config.student.name, args, compute=config.precision.compute, remat=config.precision.remat
    )
    frozen = None
    if config.student.freeze:
        blank = jax.ShapeDtypeStruct((1, 8, 8, 3), np.float32)
        shapes = jax.eval_shape(student.model.init, jax.random.key(0), blank)
        frozen = {"student": weights.freeze_mask(shapes["params"], tuple(config.student.freeze)), "projectors": {}}
    if load and config.student.weights:
        student = weights.load_weights(student, config.student.weights, variant=config.student.variant)
    return tasks.RestorationTask(
        student, pixel=config.restoration.loss, fft_weight=config.restoration.fft_weight, frozen=frozen
    )


def build_pipeline(config: ConfigDict, source: data.PairSource) -> data.PatchPipeline:
    """An infinite, resumable iterator over this host's patches of the training pairs."""
    return data.PatchPipeline(
        source,
        batch_size=config.train.batch_size,
        seed=config.seed,
        config=data.PatchConfig(**config.data.patches),
        workers=config.data.workers,
        max_broken=config.data.max_broken,
        host_index=jax.process_index(),
        host_count=jax.process_count(),
    )


def open_sets(config: ConfigDict, scale: int) -> dict[str, data.PairSource]:
    """The named validation sets: `eval.sets`, or the validation split of the training data.

    Raises:
      ConfigError: an entry without a name. DataError: a folder is missing or empty.
    """
    entries = (config.eval.sets,) if isinstance(config.eval.sets, str) else config.eval.sets
    named: dict[str, str] = {}
    for entry in entries:
        name, folder = split_entry(str(entry))
        if not name or name in named:
            raise ConfigError(
                f'eval.sets holds "{entry}". Each entry names a set of images once. Write NAME=FOLDER, for example '
                "\"('Set5=/data/Set5',)\"."
            )
        named[name] = folder
    named = named or {"val": config.data.source}
    return {name: data.open_pairs(spec, scale, split="val") for name, spec in named.items()}


def split_entry(entry: str) -> tuple[str, str]:
    """`"Set5=/data/Set5"` -> ("Set5", "/data/Set5"); ("", entry) where there is no name before a folder.

    A name has no "/" and no "?", so that "/data/a=b" and "Set5?lr=LR" are folders; so is whatever exists as one.
    """
    found = re.fullmatch(r"([^/?=]+)=(.+)", entry)
    return ("", entry) if found is None or Path(entry).is_dir() else (found[1].strip(), found[2])


def _read_all(name: str, source: data.PairSource) -> list[data.Pair]:
    """Every pair of a set. Raises DataError that names the files which cannot be read."""
    whole = data.whole_pairs(source, max_broken=1.0)  # all of them, so that the error below can name more than one
    pairs, broken = list(whole), list(whole.broken.found.values())
    if broken:
        more = f" | and {len(broken) - NAMED} more" if len(broken) > NAMED else ""
        raise DataError(
            f'{len(broken)} of {len(source)} images of the set "{name}" cannot be read. The mean over the others would '
            f"be that of another set. Mend or remove them. {' | '.join(broken[:NAMED])}{more}"
        )
    return pairs


class PairScorer:
    """Scores a network on whole images, by tiles that give the pixels of one pass.

    Args:
      model: the network.
      sets: name -> pairs.
      crop: border left out of PSNR and SSIM, in pixels of the large image.
      luma: compare BT.601 luma instead of RGB.

    Attributes:
      names: metrics, `<set>/psnr_y_crop4` and so on; the first is what "best" means.
      bicubic: the same metrics of MATLAB's bicubic, once computed.
      images: name -> how many the set has.

    Raises:
      DataError: an image cannot be read; when scoring, one that is too small for its metric.
    """

    def __init__(self, model: Any, sets: dict[str, data.PairSource], *, crop: int, luma: bool):
        self._model, self._sets, self._crop, self._luma = model, sets, crop, luma
        self._kinds = {kind: metrics.name_of(kind, crop, luma) for kind in ("psnr", "ssim")}
        self.names = tuple(f"{name}/{kind}" for name in sets for kind in self._kinds.values())
        self.bicubic: dict[str, float] = {}
        self.pictures: list[tuple[str, np.ndarray]] = []
        self._enlarger: Enlarger | None = None
        self._pairs = {name: _read_all(name, source) for name, source in sets.items()}
        self.images = {name: len(pairs) for name, pairs in self._pairs.items()}

    def _scores(
        self, enlarge: Callable[[np.ndarray], np.ndarray], progress: Progress, keep: bool = False
    ) -> dict[str, float]:
        out: dict[str, float] = {}
        done = 0
        for name, pairs in self._pairs.items():
            rows = []
            for pair in pairs:
                made = enlarge(pair.lr)
                try:
                    rows.append([getattr(metrics, k)(made, pair.hr, self._crop, self._luma) for k in self._kinds])
                except ShapeError as error:
                    raise DataError(f'"{pair.name}" cannot be scored. {error}') from None
                if keep and len(self.pictures) < SHOWN:
                    self.pictures.append((f"{name}/{Path(pair.name).stem}", made))
                done += 1
                progress(done)
            out |= dict(zip((f"{name}/{k}" for k in self._kinds.values()), np.mean(rows, axis=0).tolist(), strict=True))
        return out

    def __call__(
        self, params: Any, *, keep_pictures: bool = False, progress: Progress = lambda done: None
    ) -> dict[str, float]:
        """`params` of the network -> {metric: mean over the images of its set}; each image counts the same.

        Args:
          params: as `init` gives them below "params".
          keep_pictures: keep the first results in `pictures`.
          progress: told after each image how many of all sets are done.
        """
        variables = {"params": params}
        if self._enlarger is None:
            self._enlarger = Enlarger(self._model, variables)
        self._enlarger.use(variables)
        self.pictures = []
        return self._scores(self._enlarger, progress, keep_pictures)

    def compare_bicubic(self, progress: Progress = lambda done: None) -> dict[str, float]:
        """MATLAB's bicubic on the same pairs; `progress` as above."""
        if not self.bicubic:
            self.bicubic = self._scores(lambda lr: data.imresize(lr, self._model.scale), progress)
        return self.bicubic


def build_evaluator(scorer: PairScorer, writer: train.MetricWriter) -> Callable[[train.TrainState], dict[str, float]]:
    """State -> {metric: mean} of raw weights and, `ema_*`, of the moving average; pictures go to TensorBoard."""

    def score(state: train.TrainState) -> dict[str, float]:
        found = scorer(state.params["student"], keep_pictures=state.ema is None)
        if state.ema is not None:
            found |= {f"ema_{k}": v for k, v in scorer(state.ema["student"], keep_pictures=True).items()}
        writer.write_images("eval", int(state.step), dict(scorer.pictures))
        return found

    return score


def open_problem(config: ConfigDict, workdir: Path, mesh: Mesh, console: Console | None) -> Problem:
    """Everything that `config` names, opened and checked; nothing is written yet."""
    _check_mesh(mesh)
    scale = scale_of(config)
    config = config.copy_and_resolve_references().lock()
    task = build_task(config)
    source = data.open_pairs(config.data.source, scale, split="train")
    pipeline = build_pipeline(config, source)
    sets = open_sets(config, scale)
    scorer = PairScorer(task.student.model, sets, crop=CROPS[config.eval.crop] or scale, luma=config.eval.luma)
    bicubic = scorer.compare_bicubic()
    skipped = f", {len(pipeline.skipped)} smaller than a patch left out" if pipeline.skipped else ""
    images = pipeline.steps_per_epoch * config.train.batch_size
    shown = ", ".join(f"{name} {bicubic[name]:.2f}" for name in scorer.names if "psnr" in name)
    return Problem(
        config=config,
        task=task,
        pipeline=pipeline,
        dynamics=None,
        best_metric=scorer.names[0],
        train_images=len(source) - len(pipeline.skipped),
        val_images=sum(len(s) for s in sets.values()),
        about=(
            f"loss {config.restoration.loss}"
            + (f" + {config.restoration.fft_weight} FFT-L1" if config.restoration.fft_weight else ""),
            f"x{scale}, patches of {config.data.patches.size}, {images:,} an epoch from {config.data.source}{skipped}",
            f"bicubic: {shown} dB",
        ),
        evaluator=lambda writer: build_evaluator(scorer, writer),
        keep=lambda: (workdir / "bicubic.json").write_text(json.dumps(bicubic, indent=2)),
    )


def _check_mesh(mesh: Mesh) -> None:
    """Raises ConfigError where wide matrices are to be split: convolutions are not."""
    if mesh.shape[parallel.MODEL_AXIS] > 1:
        raise ConfigError(
            f'mesh.model={mesh.shape[parallel.MODEL_AXIS]} with task="restoration" splits nothing: the rules are for '
            "the matrices of transformers. Leave mesh.model at 1; the batch is split over mesh.data."
        )


def draw_run(config: ConfigDict, workdir: Path, result: dict[str, Any]) -> Path | None:
    """Writes `curves.png` of one run into its work directory; None where it was never scored.

    Args:
      config: of the run.
      workdir: with metrics.jsonl and bicubic.json.
      result: as `runner.run` returns it.
    """
    rows = train.read_metrics(workdir, "eval")
    if not rows:
        return None
    path = workdir / "curves.png"
    caption = scores_caption(config.data.source, config.seed, result)
    draw_scores({config.student.name: rows}, path, bicubic=read_bicubic(workdir), caption=caption)
    return path
