"""A task small enough to check by hand: linear regression with noise, one buffer, and switches that break it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd import metrics, parallel, train

FEATURES, OUTPUTS, BATCH, STEPS_PER_EPOCH = 4, 3, 8, 4


class Toy:
    """loss = fit + 0.1 size + edge, with fit the squared error, size the mean of the squared weights.

    `batch["edge"]` 1 is the normal case; 0 makes the gradient of "edge" NaN and leaves its value finite.
    """

    def __init__(self, *, noise: float = 0.5, frozen: Any = None, compute: Any = jnp.float32):
        self.noise, self.frozen, self.compute = noise, frozen, compute
        self.constants = {"scale": jnp.float32(1.0)}

    abstract_constants = train.Task.abstract_constants
    constrain = train.Task.constrain

    def init(self, key):
        kernel = jax.random.normal(key, (FEATURES, OUTPUTS))
        dense = {"kernel": kernel, "bias": jnp.zeros(OUTPUTS)}
        return {"student": {"dense": dense}, "projectors": {}}, {"seen": jnp.zeros((), jnp.int32)}

    def predict(self, params, x):
        dense = params["student"]["dense"]
        return (x.astype(self.compute) @ dense["kernel"].astype(self.compute)).astype(jnp.float32) + dense["bias"]

    def loss(self, params, mutable, batch, key, step, constants):
        x = batch["x"] + self.noise * jax.random.normal(key, batch["x"].shape)
        fit = constants["scale"] * jnp.mean(jnp.square(self.predict(params, x) - batch["y"]))
        kernel = params["student"]["dense"]["kernel"]
        size = jnp.mean(jnp.square(kernel))
        edge = 0.01 * jnp.mean(jnp.sqrt(jnp.square(kernel) * jnp.mean(batch["edge"])))
        terms = {"fit": fit, "fit_weighted": fit, "size": size, "size_weighted": 0.1 * size}
        terms |= {"edge": edge, "edge_weighted": edge}
        return fit + 0.1 * size + edge, (terms, {"seen": mutable["seen"] + batch["x"].shape[0]})

    def evaluate(self, params, mutable, batch, constants):
        error = jnp.mean(jnp.square(self.predict(params, batch["x"]) - batch["y"]), axis=1)
        near = (error < 1.0).astype(jnp.float32)
        return {name: metrics.average(value, batch["mask"]) for name, value in (("top1", 100 * near), ("loss", error))}

    def metadata(self):
        return {"teacher": "none"}


class Population(Toy):
    """Three toys in one program, each with a kernel of its own; their metrics have shape (3,)."""

    members = 3

    def init(self, key):
        params, mutable = jax.vmap(super().init)(jax.random.split(key, self.members))
        return params, mutable

    def loss(self, params, mutable, batch, key, step, constants):
        each = jax.vmap(super().loss, in_axes=(0, 0, None, None, None, None))
        losses, (terms, mutable) = each(params, mutable, batch, key, step, constants)
        return jnp.sum(losses), ({"loss": losses, **terms}, mutable)

    def evaluate(self, params, mutable, batch, constants):
        return jax.vmap(super().evaluate, in_axes=(0, 0, None, None))(params, mutable, batch, constants)


def draw(number: int, batch: int = BATCH) -> dict[str, np.ndarray]:
    """Batch `number` of the endless sequence."""
    rng = np.random.default_rng(number)
    x = rng.normal(size=(batch, FEATURES)).astype(np.float32)
    return {"x": x, "y": x[:, :OUTPUTS] + 1, "edge": np.ones(batch, np.float32)}


class Batches:
    """Iterator with a position, as the training pipeline is; `at(number, batch)` may change or watch each batch."""

    def __init__(self, at=None):
        self.position, self.wait_seconds, self.at = 0, 0.0, at

    def __next__(self):
        self.position += 1
        batch = draw(self.position)
        if self.at is not None:
            self.at(self.position, batch)
        return mine(batch)

    def get_state(self):
        return {"position": self.position}

    def set_state(self, state):
        self.position = state["position"]


def mine(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """This process's contiguous share of a global batch."""
    share = len(batch["x"]) // jax.process_count()
    return {k: v[jax.process_index() * share :][:share] for k, v in batch.items()}


def validation(count: int = 10, batch: int = BATCH) -> list[dict[str, np.ndarray]]:
    """`count` images in batches of `batch`, the last one padded with what would spoil every score."""
    whole = draw(10**6, count)
    out = []
    for start in range(0, count, batch):
        part = {k: v[start : start + batch] for k, v in whole.items()}
        fill = batch - len(part["x"])
        mask = np.arange(batch) < batch - fill
        part = {k: np.concatenate([v, np.full((fill, *v.shape[1:]), np.nan, np.float32)]) for k, v in part.items()}
        out.append(mine({**part, "mask": mask}))
    return out


def run(
    workdir: Path,
    total: int,
    *,
    at=None,
    task: Toy | None = None,
    schedule=lambda step: 1e-2,
    stop: train.StopRequest | None = None,
    evaluate: bool = True,
    accumulate: int = 1,
    clip_norm: float = 1.0,
    ema_decay: float = 0.9,
    log_every: int = 2,
    eval_every: int = 4,
    checkpoint_every: int = 100,
    mesh=None,
    progress=None,
    statistics=None,
    every: int = 3,
    **options: Any,
) -> tuple[train.TrainState, dict[str, float], train.Clock]:
    """Trains in `workdir` from its last checkpoint, if any: what the runner does, without config and data.

    `statistics` are computed at the first step and every `every`, of two layers that are called a and b.
    """
    task = task or Toy()
    workdir = Path(workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    mesh = mesh or parallel.make_mesh()
    tx = train.make_optimizer(schedule, clip_norm=clip_norm, frozen=task.frozen)

    def start():
        return train.create_state(*task.init(jax.random.key(0, impl="rbg")), tx, ema=ema_decay > 0)

    abstract = jax.eval_shape(start)
    batches, clock = Batches(at), train.Clock()
    checkpoints = train.Checkpoints(workdir, **options)
    if checkpoints.steps():
        state, position, meta = checkpoints.restore(checkpoints.steps()[-1], abstract, mesh)
        batches.set_state(position)
        clock = train.Clock(**meta["clock"])
    else:
        state = parallel.put_on_mesh(start(), mesh)
    eval_step = train.compile_eval_step(task, mesh)

    def score(state):
        members = {"": (state.params, state.mutable)} | ({"ema_": (state.ema, {})} if state.ema is not None else {})
        means, _, _ = train.evaluate(eval_step, validation(), members, task.constants, mesh)
        return {prefix + name: value for prefix, values in means.items() for name, value in values.items()}

    how = {"accumulate": accumulate, "ema_decay": ema_decay}
    observation = None
    if statistics is not None:
        observed = train.compile_train_step(task, tx, mesh, abstract, **how, statistics=statistics)
        observation = train.Observation(observed, every, ("a", "b"))
    writer = train.MetricWriter(workdir, first_step=int(state.step) + 1)
    try:
        state, scores = train.train_loop(
            train.compile_train_step(task, tx, mesh, abstract, **how),
            state,
            batches,
            train.Loop(
                settings=train.LoopSettings(total, STEPS_PER_EPOCH, BATCH, log_every, eval_every, (checkpoint_every,)),
                constants=task.constants,
                key=jax.random.key(1, impl="rbg"),
                mesh=mesh,
                checkpoints=checkpoints,
                writer=writer,
                progress=progress or train.TrainProgress(None, "toy", total, int(state.step)),
                stop=stop or train.StopRequest(),
                clock=clock,
                meta=lambda clock: {"clock": vars(clock), "task": task.metadata()},
                evaluate=score if evaluate else None,
                schedule=lambda step: float(schedule(step)),
                observation=observation,
            ),
        )
    finally:
        writer.close()
        checkpoints.close()
    return state, scores, clock
