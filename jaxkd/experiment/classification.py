"""Classification and distillation runs: labelled images, networks, objective, evaluation."""

from __future__ import annotations

import dataclasses
import functools
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict
from rich.console import Console

from jaxkd import data, distill, models, parallel, tasks, train, weights
from jaxkd.analysis import pipeline
from jaxkd.config import population
from jaxkd.config.fields import change, data_seed, plain
from jaxkd.config.validate import mixes
from jaxkd.errors import ConfigError, WeightMismatchError
from jaxkd.experiment import auto_pairs, teacher_cache
from jaxkd.experiment.components import Components, Evaluator
from jaxkd.experiment.objective import fitting_objectives
from jaxkd.experiment.workdir import save_subset

OF_THE_DATA = ("img_size", "num_classes")  # arguments of a teacher that follow from the images and the student
PyTree = Any
Recorded = Callable[[str], tuple[str, dict[str, Any]] | None]  # as `weights.recorded_network`


def build_components(
    config: ConfigDict, mesh: Mesh, *, workdir: Path | None, console: Console | None, load: bool, open_data: bool
) -> Components:
    """The components of a classification or distillation; see `build`."""
    eval_batch = config.eval.batch_size or config.train.batch_size
    parallel.check_batch("eval.batch_size", eval_batch, mesh)
    sources = {}
    if open_data:
        opened = functools.partial(data.open_source, config.data.source, class_order=config.data.class_order)
        sources = {split: opened(split) for split in ("train", "val")}
        configs = [member.config for member in population.members(config)] or [config]
        choices = [(one.data.per_class, one.data.subset_seed) for one in configs]
        sources["train"] = data.take_member_subsets(sources["train"], choices, where=config.data.source)
    classes = len(sources["train"].class_names) if sources else _published_classes(config)
    build = functools.partial(build_task, num_classes=classes, load=load, mesh=mesh)
    given, chosen = config, None
    config = resolve(config, num_classes=classes)
    if sources:
        config, chosen = auto_pairs.resolve_auto_pairs(config, workdir, sources["val"], build, console)
    elif config.distill.pairs == auto_pairs.AUTO:  # chosen on images
        config = change(config, {"distill.pairs": "first+last"}).lock()
    one = build(config)
    task = build_population(one, config, mesh, load=load)
    if sources and load:
        by_logits = task.objective.compares_logits
        _check_class_names(config, sources["train"].class_names, with_teacher=by_logits)
    objective = f"objective {' + '.join(term.name for term in task.objective.terms)}"
    if task.objective.pairs:
        objective += f" · {len(task.objective.pairs)} layer pairs"
    if config.teacher.cache.path:
        objective += f" · the teacher's logits from {config.teacher.cache.path}"
    known = {"config": config, "task": task, "best_metric": "top1", "statistics": build_dynamics(config, task, mesh)}
    known["abstract_batch"] = abstract_batch(config, task)
    if not sources:
        return Components(**known, summary=(objective,))
    height, width = task.student.image_size
    chosen_images = f" ({config.data.per_class} of each class)" if config.data.per_class else ""

    def save_inputs(workdir: Path) -> None:
        auto_pairs.save_pairs(chosen, workdir)
        save_subset(sources["train"], workdir)

    return Components(
        **known,
        summary=(
            *_taken_over(given, config),
            objective,
            f"{len(sources['train']):,} training{chosen_images} and {len(sources['val']):,} validation images of "
            f"{config.data.source}, {classes} classes, {height}x{width}",
        ),
        class_names=sources["train"].class_names,
        pipeline=teacher_cache.with_logits(
            config, one, build_train_pipeline(config, sources["train"], task.student), len(sources["train"])
        ),
        train_images=len(sources["train"]),
        member_images=data.member_images(sources["train"]),
        member_source=functools.partial(data.member_source, sources["train"]),
        subset=data.subset_facts(sources["train"]),
        val_images=len(sources["val"]),
        make_evaluator=lambda writer: build_evaluator(
            config, task, sources["val"], eval_batch, train.compile_eval_step(task, mesh), mesh
        ),
        save_inputs=save_inputs,
    )


def _check_class_names(config: ConfigDict, names: tuple[str, ...], *, with_teacher: bool) -> None:
    """Raises DataError where weights whose logits matter record other classes than `names`, or another order."""
    for network in (config.student, config.teacher) if with_teacher else (config.student,):
        if not network.weights or network.new_head:
            continue
        recorded, path = train.recorded_classes(network.weights), Path(network.weights).expanduser()
        if not recorded and path.is_file():
            facts = weights.read_facts(path)
            recorded = facts.class_names if facts else ()
        data.check_same_classes(recorded, names, network.weights, config.data.source)


def _published_classes(config: ConfigDict) -> int:
    """Classes of a run whose data set is not opened: those of the config, or of the student's published weights."""
    return config.student.args.get("num_classes") or models.spec(config.student.name).num_classes or 1000


def abstract_batch(config: ConfigDict, task: Any) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of a global batch of `data.TrainPipeline`."""
    size = config.train.batch_size
    batch = {
        "image": jax.ShapeDtypeStruct((size, *task.student.image_size, 3), jnp.uint8),
        "label": jax.ShapeDtypeStruct((size,), jnp.int32),
        "mask": jax.ShapeDtypeStruct((size,), jnp.bool_),
    }
    members = [member.config for member in population.members(config)]
    if len({(one.data.per_class, one.data.subset_seed) for one in members}) > 1:
        batch["members"] = jax.ShapeDtypeStruct((size, len(members)), jnp.bool_)
    stored = getattr(getattr(task, "task", task), "stored", None)
    if stored is not None:
        batch |= {name: jax.ShapeDtypeStruct((size, *a.shape), a.dtype) for name, a in stored.arrays.items()}
    return batch


def resolve(config: ConfigDict, *, num_classes: int, recorded: Recorded = weights.recorded_network) -> ConfigDict:
    """A copy of `config` that says what it left to the data, so that a work directory describes its networks fully.

    A teacher without arguments in the config is the network that its work directory or file records: `recorded`.
    """
    resolved = population.explicit(config).copy_and_resolve_references()
    with resolved.unlocked():
        if not names_arguments(resolved.teacher):
            name, args = recorded(resolved.teacher.weights) or (resolved.teacher.name, {})
            if name.partition(".")[0] != resolved.teacher.name.partition(".")[0]:
                resolved.teacher.name = name
            resolved.teacher.args.update(_own_sizes(name, args))
        for network in (resolved.student, resolved.teacher):
            takes = bool(network.name) and "num_classes" in models.arguments(network.name)
            if takes and network.args.get("num_classes") is None:
                network.args.num_classes = num_classes
    return resolved.lock()


def names_arguments(network: ConfigDict) -> bool:
    """Whether a config describes the network itself, and does not leave its arguments to the weights."""
    return any(value is not None for name, value in network.args.items() if name not in OF_THE_DATA)


def _own_sizes(name: str, args: dict[str, Any]) -> dict[str, Any]:
    """Recorded arguments that differ from the network's defaults, so that configs of earlier runs stay what they were.

    Rates of dropout and of stochastic depth belong to the teacher's own training.
    """
    if not args:
        return {}
    default, own = models.create(name), models.create(name, **args)
    names = [k for k in args if k not in OF_THE_DATA and not k.endswith("_rate")]
    return {k: args[k] for k in names if getattr(own, k, args[k]) != getattr(default, k, None)}


def _taken_over(given: ConfigDict, resolved: ConfigDict) -> tuple[str, ...]:
    """Name and arguments that `resolve` took from the teacher's work directory or file, as a line for the header."""
    before, after = given.teacher.args, resolved.teacher.args
    new = [f"{k}={v}" for k, v in after.items() if k not in OF_THE_DATA and v != before.get(k)]
    if not new and given.teacher.name == resolved.teacher.name:
        return ()
    network = ", ".join([resolved.teacher.name, *new])
    return (f"teacher {network}: as {given.teacher.weights} records",)


def build_task(
    config: ConfigDict, *, num_classes: int, load: bool = True, mesh: Mesh | None = None
) -> tasks.ClassificationTask:
    """The networks, objective and frozen parameters of a config.

    Everything that can be wrong is checked before weights are read or fetched.
    """
    student, teacher, frozen = build_networks(config, num_classes)
    objectives = fitting_objectives(student, teacher, member_configs(config))
    objective = objectives[0] if config.population is None else distill.join_objectives(objectives)
    stored = None if teacher is None else stored_logits(config, teacher, objective)
    student = _loaded(student, config.student, config.seed, load)
    if teacher is None:
        return tasks.ClassificationTask(student, objective, frozen=frozen, **_on_device(config))
    teacher = _load_teacher(teacher, config, load, by_logits=objective.compares_logits)
    options = {"frozen": frozen, "mesh": mesh, "stored": stored, **_on_device(config)}
    return tasks.DistillationTask(student, teacher, objective, **options)


def build_networks(
    config: ConfigDict, num_classes: int
) -> tuple[weights.Network, weights.Network | None, PyTree | None]:
    """Student, teacher (None where nothing reads one) and frozen parameters of a resolved config; no weights."""
    compute, scan = config.precision.compute, config.precision.scan_blocks
    student_scan, teacher_scan = (scan if scan in (True, who) else False for who in ("student", "teacher"))
    student = _network(config.student, compute=compute, remat=config.precision.remat, scan_blocks=student_scan)
    if student.num_classes != num_classes:
        raise ConfigError(
            f"student.args.num_classes={student.num_classes}, but the data have {num_classes} classes. "
            "Leave student.args.num_classes out, or use a folder with all the classes of the weights."
        )
    pipeline.resolve_layers(config.dynamics.layers, models.tap_names(student.model))
    frozen = None
    if config.student.freeze:
        shapes = models.abstract_variables(student.model, (1, *student.image_size, 3))
        frozen = weights.freeze_mask(shapes["params"], tuple(config.student.freeze))
    if config.task == "classification" or not _has_teacher(config):
        return student, None, frozen
    return student, _network(config.teacher, like=student, compute=compute, scan_blocks=teacher_scan), frozen


def stored_logits(
    config: ConfigDict, teacher: weights.Network, objective: distill.Objective
) -> distill.LogitFormat | None:
    """The form in which the teacher's logits are cached, if they are; refuses the logits of a new classifier."""
    if config.teacher.new_head and objective.compares_logits:
        names = ", ".join(term.name for term in objective.terms if term.compares_logits)
        raise ConfigError(
            f"teacher.new_head=True with the term {names} would distil the logits of a random classifier. "
            f"{_fine_tuning(config)}"
        )
    return teacher_cache.logit_format(config, teacher, objective)


def member_configs(config: ConfigDict, who: str = "") -> dict[str, ConfigDict]:
    """Words that begin an error -> config, of each member of a population, else of the run."""
    members = population.members(config)
    return {f'{who}Member "{m.name}" of config.population: ': m.config for m in members} or {who: config}


def _has_teacher(config: ConfigDict) -> bool:
    """Whether the run, or any member of its population, learns from a teacher."""
    return any(m.config.task == "distillation" for m in population.members(config)) or config.population is None


def build_population(
    task: tasks.ClassificationTask, config: ConfigDict, mesh: Mesh, *, load: bool
) -> tasks.ClassificationTask | tasks.PopulationTask:
    """The task of all members of `config.population` from that of one; without a population the same task."""
    if config.population is None:
        return task
    seeds, starts = [member.config.seed for member in population.members(config)], []
    if config.student.new_head:  # which each member draws by its own seed
        bare = dataclasses.replace(task.student, variables=None)
        starts = [_loaded(bare, config.student, seed, load).variables for seed in seeds]
    keep = config.checkpoint.keep_best > 0
    return tasks.PopulationTask(task, seeds, mesh=mesh, starts=starts, keep_best=keep, ema=config.ema.decay > 0)


def _load_teacher(teacher: weights.Network, config: ConfigDict, load: bool, *, by_logits: bool) -> weights.Network:
    try:
        return _loaded(teacher, config.teacher, config.seed, load)
    except WeightMismatchError:
        try:
            _loaded(teacher, change(config, {"teacher.new_head": True}).teacher, config.seed, load)
        except WeightMismatchError:
            fits = False
        else:
            fits = True
        if not fits:  # in other parts too
            raise
    new_head = "This objective compares no logits, so a new classifier will do: add --config.teacher.new_head=True."
    raise ConfigError(
        f'The classifier of the teacher "{config.teacher.weights}" does not have the {teacher.num_classes} classes of '
        f"{config.data.source}. {_fine_tuning(config) if by_logits else new_head}"
    )


def _fine_tuning(config: ConfigDict) -> str:
    """A sentence with the command that fine-tunes the teacher on the classes of the data."""
    args = {"img_size": config.student.args.get("img_size")} | config.teacher.args.to_dict()
    args = {k: v for k, v in args.items() if v is not None and k != "num_classes"}
    workdir = "runs/teacher"
    if Path(config.teacher.weights).resolve() == Path(workdir).resolve():
        workdir = "runs/fine_tuned"
    command = shlex.join(
        [
            *("jaxkd", "train", f"--config=supervised:{config.teacher.name}"),
            *(f"--workdir={workdir}", f"--config.data.source={config.data.source}"),
            *(f"--config.student.weights={config.teacher.weights}", "--config.student.new_head=True"),
            *(f"--config.student.args.{name}={value}" for name, value in args.items()),
        ]
    )
    return (
        f"Fine-tune the teacher on these classes first: {command} (then --config.teacher.weights={workdir}). Or "
        "choose an objective without logits, such as the presets spectral and mse, with --config.teacher.new_head=True."
    )


def build_dynamics(config: ConfigDict, task: tasks.ClassificationTask, mesh: Mesh) -> pipeline.Dynamics | None:
    """The statistics computed every `dynamics.every_steps` steps; None if that is 0."""
    options = config.dynamics.to_dict()
    if not options.pop("every_steps"):
        return None
    return pipeline.Dynamics(task, mesh, **options)


def check_augmentation(config: ConfigDict, image_size: tuple[int, int]) -> None:
    """Raises ConfigError where a value of `data.augment`, `data.erase` or `data.mix` makes no sense."""
    data.TrainTransform(_on_host(config), image_size)
    _on_device(config)


def _on_host(config: ConfigDict) -> data.AugmentConfig:
    """What happens to each image while it is decoded."""
    augment = {k: tuple(v) if isinstance(v, list | tuple) else v for k, v in config.data.augment.items()}
    return data.AugmentConfig(**augment)


def _on_device(config: ConfigDict) -> dict[str, Any]:
    """Erasing and mixing, which happen inside the step."""
    erase, mix = None, None
    if config.data.erase.probability:
        count = config.data.erase.count
        erase = data.EraseConfig(config.data.erase.probability, config.data.erase.mode, max_count=count)
    if mixes(config):
        minmax = tuple(config.data.mix.cutmix_minmax) or None
        mix = data.MixConfig(**{**config.data.mix, "cutmix_minmax": minmax})
    return {"erase": erase, "mix": mix}


def _network(config: ConfigDict, *, like: weights.Network | None = None, **precision: Any) -> weights.Network:
    spec = models.spec(config.name)
    if spec.task in ("restoration", "eeg_words"):
        field = "student.name" if like is None else "teacher.name"
        raise ConfigError(
            f'{field}="{config.name}" {spec.purpose} and cannot classify images. Set --config.{field} to a classifier, '
            'for example "deit_tiny_patch16_224".'
        )
    args = {k: plain(v) for k, v in config.args.items() if v is not None}
    if like is not None:  # a teacher sees the student's images
        args.setdefault("img_size", like.image_size)
    return weights.build_network(config.name, args, **precision)


def _loaded(network: weights.Network, config: ConfigDict, seed: int, load: bool) -> weights.Network:
    if not (load and config.weights):
        return network
    key = jax.random.key(seed)
    return weights.load_weights(
        network,
        config.weights,
        variant=config.variant,
        resize=config.resize,
        old_grid=tuple(config.old_grid) or None,
        new_head=config.new_head,
        key=key,
        on_host=True,  # until they are on the mesh, which may split them
    )


def build_train_pipeline(config: ConfigDict, source: Any, network: weights.Network) -> data.TrainPipeline:
    """This host's share of the infinite, resumable sequence of training batches."""
    return data.TrainPipeline(
        source,
        batch_size=config.train.batch_size,
        image_size=network.image_size,
        fill=data.fill_from_mean(network.spec.mean),
        seed=data_seed(config),
        augment=_on_host(config),
        repeats=config.data.repeats,
        views=config.data.views,
        workers=config.data.workers,
        max_broken=config.data.max_broken,
        host_index=jax.process_index(),
        host_count=jax.process_count(),
    )


def build_evaluator(
    config: ConfigDict, task: tasks.ClassificationTask, source: Any, batch_size: int, eval_step: Any, mesh: Mesh
) -> Evaluator:
    """A function state -> {metric: mean} over the whole validation split; `ema_*` beside the raw weights."""
    preprocess = data.eval_preprocess(
        task.student.spec, task.student.image_size, config.eval.crop_pct, config.eval.interpolation
    )

    @functools.cache
    def constants() -> Any:
        return parallel.put_on_mesh(task.eval_constants, mesh)

    def score(state: train.TrainState) -> dict[str, float]:
        batches = data.EvalBatches(
            source,
            preprocess,
            batch_size=batch_size,
            host_index=jax.process_index(),
            host_count=jax.process_count(),
            max_broken=config.data.max_broken,
        )
        members = {"": (state.params, state.mutable)}
        if state.ema is not None:
            members["ema_"] = (state.ema, state.mutable)
        means, _, _ = train.evaluate(eval_step, batches, members, constants(), mesh)
        return {prefix + name: value for prefix, values in means.items() for name, value in values.items()}

    return score


def check_classes(network: weights.Network, source: data.Source, name: str) -> None:
    """Raises ConfigError unless `network` has one output for each class of `source`, which the user calls `name`."""
    if network.num_classes != len(source.class_names):
        raise ConfigError(
            f"{network.spec.name} has {network.num_classes} outputs, but {name} has {len(source.class_names)} classes. "
            "A label is the position of its folder among the sorted class folders, so the folder needs all classes of "
            "the weights. Add the missing ones, or use weights that were trained for this data set."
        )


def score_classifier(
    network: weights.Network,
    source: data.Source,
    *,
    batch_size: int,
    crop_pct: float = 0,
    interpolation: str = "",
    progress: Callable[[str, str, int, int], None] = lambda label, phase, done, total: None,
) -> dict[str, Any]:
    """Top-1, top-5 and loss of a network over all of a data set, and how they were measured.

    Returns:
      `top1` and `top5` in percent, `loss`, `images`, `images_per_second`, `image_size`, `crop_pct`, `interpolation`.
    """
    mesh = parallel.make_mesh()
    preprocess = data.eval_preprocess(network.spec, network.image_size, crop_pct, interpolation)
    batches = data.EvalBatches(source, preprocess, batch_size=batch_size)
    task = tasks.ClassificationTask(network, distill.preset("none"))
    params = parallel.put_on_mesh(task.init(jax.random.key(0))[0], mesh)
    means, images, rate = train.evaluate(
        train.compile_eval_step(task, mesh),
        batches,
        {"": (params, {})},
        {},
        mesh,
        progress=lambda done: progress(network.spec.name, "batches", done, len(batches)),
    )
    return {
        "images": images,
        **means[""],
        "images_per_second": rate,
        "image_size": network.image_size,
        "crop_pct": preprocess.crop_pct,
        "interpolation": preprocess.interpolation,
    }
