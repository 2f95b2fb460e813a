"""Super-resolution runs: pairs, patches, networks, and evaluation on whole images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict
from rich.console import Console

from jaxkd import data, models, parallel, tasks, train, weights
from jaxkd.config.fields import data_seed
from jaxkd.data.files import write_atomic
from jaxkd.errors import ConfigError
from jaxkd.experiment.components import Components, Evaluator
from jaxkd.superres.scoring import CROPS, PairScorer, named_sets


def scale_of(config: ConfigDict) -> int:
    """The super-resolution scale of the student."""
    spec = models.spec(config.student.name)
    if spec.task != "restoration":
        raise ConfigError(
            f'student.name="{config.student.name}" {spec.purpose}, but task="restoration" needs a network from '
            'image to image. Set --config.student.name, for example "mdbn_x4".'
        )
    return models.create(config.student.name).scale


def build_task(config: ConfigDict, *, load: bool = True, mesh: Mesh | None = None) -> tasks.RestorationTask:
    """The network, its loss and its frozen parameters; `load=False` leaves the weights random."""
    args = {k: v for k, v in config.student.args.items() if v is not None}
    student = weights.build_network(config.student.name, args, **config.precision)  # compute, remat and scan_blocks
    frozen = None
    if config.student.freeze:
        shapes = models.abstract_variables(student.model, (1, 8, 8, 3))
        frozen = {"student": weights.freeze_mask(shapes["params"], tuple(config.student.freeze)), "projectors": {}}
    if load and config.student.weights:
        student = weights.load_weights(student, config.student.weights, variant=config.student.variant, on_host=True)
    return tasks.RestorationTask(
        student, pixel=config.restoration.loss, fft_weight=config.restoration.fft_weight, frozen=frozen, mesh=mesh
    )


def build_pipeline(config: ConfigDict, source: data.PairSource) -> data.PatchPipeline:
    """An infinite, resumable iterator over this host's patches of the training pairs."""
    return data.PatchPipeline(
        source,
        batch_size=config.train.batch_size,
        seed=data_seed(config),
        config=data.PatchConfig(**config.data.patches),
        workers=config.data.workers,
        max_broken=config.data.max_broken,
        host_index=jax.process_index(),
        host_count=jax.process_count(),
    )


def open_sets(config: ConfigDict, scale: int) -> dict[str, data.PairSource]:
    """The named validation sets: `eval.sets`, or the validation split of the training data."""
    named = named_sets(config.eval.sets, "eval.sets") or {"val": config.data.source}
    return {name: data.open_pairs(spec, scale, split="val") for name, spec in named.items()}


def build_evaluator(scorer: PairScorer, writer: train.MetricWriter) -> Evaluator:
    """State -> {metric: mean} of raw weights and, `ema_*`, of the moving average; pictures go to TensorBoard."""

    def local(params: Any) -> Any:
        """The copy of this host: images are enlarged by each host for itself, outside of the mesh."""
        return params if jax.process_count() == 1 else jax.tree.map(np.asarray, params)

    def score(state: train.TrainState) -> dict[str, float]:
        found = scorer(local(state.params["student"]), keep_pictures=state.ema is None)
        if state.ema is not None:
            found |= {f"ema_{k}": v for k, v in scorer(local(state.ema["student"]), keep_pictures=True).items()}
        writer.write_images("eval", int(state.step), dict(scorer.pictures))
        return found

    return score


def build_components(
    config: ConfigDict, mesh: Mesh, *, workdir: Path | None, console: Console | None, load: bool, open_data: bool
) -> Components:
    """The components of super-resolution; see `build`."""
    _check_mesh(mesh)
    scale = scale_of(config)
    config = config.copy_and_resolve_references().lock()
    task = build_task(config, load=load, mesh=mesh)
    loss = f"loss {config.restoration.loss}"
    if config.restoration.fft_weight:
        loss += f" + {config.restoration.fft_weight} FFT-L1"
    known = {"config": config, "task": task, "abstract_batch": abstract_batch(config, scale)}
    if not open_data:
        return Components(**known, summary=(loss, f"x{scale}"), best_metric="psnr")
    source = data.open_pairs(config.data.source, scale, split="train")
    pipeline = build_pipeline(config, source)
    sets = open_sets(config, scale)
    scorer = PairScorer(task.student.model, sets, crop=CROPS[config.eval.crop] or scale, luma=config.eval.luma)
    bicubic = scorer.compare_bicubic()
    skipped = f", {len(pipeline.skipped)} smaller than a patch left out" if pipeline.skipped else ""
    images = pipeline.steps_per_epoch * config.train.batch_size
    shown = ", ".join(f"{name} {bicubic[name]:.2f}" for name in scorer.names if "psnr" in name)
    return Components(
        **known,
        best_metric=scorer.names[0],
        summary=(
            loss,
            f"x{scale}, patches of {config.data.patches.size}, {images:,} an epoch from {config.data.source}{skipped}",
            f"bicubic: {shown} dB",
        ),
        pipeline=pipeline,
        train_images=len(source) - len(pipeline.skipped),
        val_images=sum(len(s) for s in sets.values()),
        make_evaluator=lambda writer: build_evaluator(scorer, writer),
        save_inputs=lambda workdir: write_atomic(workdir / "bicubic.json", json.dumps(bicubic, indent=2)),
    )


def abstract_batch(config: ConfigDict, scale: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of a global batch of `data.PatchPipeline`."""
    count, size = config.train.batch_size, config.data.patches.size
    return {
        "hr": jax.ShapeDtypeStruct((count, size, size, 3), jnp.uint8),
        "lr": jax.ShapeDtypeStruct((count, size // scale, size // scale, 3), jnp.uint8),
        "mask": jax.ShapeDtypeStruct((count,), jnp.bool_),
    }


def _check_mesh(mesh: Mesh) -> None:
    """Raises ConfigError where parameters are to be split: their networks are small, and scored whole on each host."""
    for name, axis in (("mesh.model", parallel.MODEL_AXIS), ("mesh.fsdp", parallel.FSDP_AXIS)):
        if mesh.shape[axis] > 1:
            raise ConfigError(
                f'{name}={mesh.shape[axis]} with task="restoration" gains nothing: these networks have a few million '
                f"parameters, and only their batch is split over devices. Leave {name} at 1."
            )
