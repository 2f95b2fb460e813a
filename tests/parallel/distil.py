"""Ten steps of a small distillation on real images, for any number of devices and processes.

python distil.py OUT.npz 8x1 4x2       writes the losses of each mesh, and what came of the parameters
python distil.py OUT.npz few:8x1       writes two losses between examples only
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.datasets import load_digits

from jaxkd import distill, losses, models, parallel, tasks, train, weights
from jaxkd.distill.objective import ModelOutput

STEPS, BATCH, CLASSES = 10, 16, 10
BATCH_TERMS: tuple[dict[str, Any], ...] = (  # compare examples, draw tokens of them, or share their statistics
    {"loss": "dist"},
    {"loss": "similarity_preserving"},
    {"loss": "correlation_congruence"},
    {"loss": "manifold_random", "samples": 20},
    {"loss": "simkd"},
)
STUDENT = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2, "drop_path_rate": 0.2}
TEACHER = {"img_size": 32, "patch_size": 8, "embed_dim": 36, "depth": 1, "depth_token_only": 1, "num_heads": 2}


def network(name: str, args: dict, seed: int) -> weights.Network:
    """A network of the zoo with random weights, drawn by NumPy: compiling the initialiser would take longest of all."""
    model = models.create(name, num_classes=CLASSES, **args)
    shapes = jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, 32, 32, 3), np.float32))
    rng = np.random.default_rng(seed)
    variables = jax.tree.map(lambda x: rng.normal(0, 0.2, x.shape).astype(np.float32), shapes)
    return weights.Network(model, models.spec(name), (32, 32), CLASSES, variables, "random weights")


def build(mesh: jax.sharding.Mesh) -> tasks.DistillationTask:
    """Soft, spectral, BatchNorm in a projector, relations of examples; deit <- cait, two pairs, stochastic depth."""
    student = network("deit_tiny_patch16_224", STUDENT, 3)
    teacher = network("cait_xxs24_224", TEACHER, 7)
    pairs = (("block_0", "block_0"), ("block_1", "block_0"))
    terms = (
        {"loss": "ce", "weight": 0.1},
        {"loss": "kl", "weight": 0.9},
        {"loss": "spectral", "weight": 0.2},
        {"loss": "spectral", "weight": 0.1, "method": "fft", "name": "spectral_fft"},
        # No BatchNorm on the teacher: both shifts would start at a gradient of 0, whose rounding Adam scales up.
        {"loss": "mse", "weight": 0.2, "projector": "linear_batchnorm"},
        {"loss": "rkd_distance", "weight": 0.2},  # compares the examples of the global batch
    )
    return tasks.DistillationTask(student, teacher, distill.build_objective(terms, pairs=pairs), mesh=mesh)


@functools.cache
def digits(size: int = 32) -> tuple[np.ndarray, np.ndarray]:
    """The handwritten digits of scikit-learn, each pixel enlarged: (1797, size, size, 3) uint8, (1797,) labels."""
    found = load_digits()
    grey = np.kron(found.images * (255 / 16), np.ones((size // 8, size // 8))).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=-1), found.target


def batch_of(step: int) -> dict[str, np.ndarray]:
    """This process's contiguous share of batch `step`."""
    images, labels = digits()
    share = BATCH // jax.process_count()
    first = step * BATCH + jax.process_index() * share
    return {"image": images[first : first + share], "label": labels[first : first + share]}


def evaluation_batches(count: int = 21) -> list[dict[str, np.ndarray]]:
    """`count` images once, padded to whole batches that are equally many on every process."""
    padded = -(-count // BATCH) * BATCH
    images, labels = (x[-padded:] for x in digits())
    mask = np.arange(padded) < count
    share = BATCH // jax.process_count()
    starts = range(jax.process_index() * share, padded, BATCH)
    return [
        {"image": images[s : s + share], "label": labels[s : s + share], "mask": mask[s : s + share]} for s in starts
    ]


def batch_losses(mesh: jax.sharding.Mesh, *, few: bool = False) -> dict[str, np.ndarray]:
    """Losses between the examples of a sharded, partly masked batch, and the absolute sum of their gradients.

    Args:
      mesh: devices.
      few: whether to compute two of them, which compile quickly.
    """
    rng = np.random.default_rng(5)
    arrays = {k: rng.normal(size=(BATCH, 3, c)).astype(np.float32) for k, c in (("s", 6), ("t", 6), ("u", 8))}
    batch = parallel.put_batch(arrays | {"where": np.arange(BATCH) % 5 != 2}, mesh)
    terms = [distill.build_objective((entry,), pairs=(("s", "u"),)) for entry in BATCH_TERMS[-1 if few else 0 :]]
    started = [term.init(jax.random.key(7), outputs_of(arrays["s"], arrays)) for term in terms]

    def vector_losses(student, batch):
        where, (a, b) = batch["where"], (x.mean(axis=1) for x in (student, batch["t"]))
        ids = jnp.arange(len(where)) % 5
        same, candidates = ids[:, None] == ids[None], ids[:, None] == jnp.arange(5)[None]
        found = [losses.contrastive(a, b, where=where), losses.info_nce(a, b, 1.5, where=where)]
        found += [losses.info_nce_vocabulary(a, b[:5], ids, 1.5, where=where)]
        kinds = ("mean_log", "log_mean", "log_sum", "masked")
        found += [losses.info_nce_multi(a, b, same, 1.5, kind, where=where) for kind in kinds]
        return [*found, losses.siglip(a, b[:5], candidates, 1.5, -1.0, where=where)]

    def values(student, batch):
        where = batch["where"]
        wide = (losses.rkd_distance, losses.rkd_angle, losses.manifold_inter, losses.linear_cka, losses.pkt)
        found = [loss(student, batch["u"], where=where) for loss in wide[: 1 if few else None]]
        found += [] if few else vector_losses(student, batch)
        outputs, mask = outputs_of(student, batch), {"mask": where}
        for term, (params, state) in zip(terms, started, strict=True):
            found.append(term(params, state, *outputs, mask, 0, key=jax.random.key(11))[0])
        return jnp.stack([jnp.sum(loss) for loss in found])

    @functools.partial(jax.jit, out_shardings=parallel.replicated(mesh))
    def evaluate(batch):
        value, pull = jax.vjp(lambda student: values(student, batch), batch["s"])
        slopes = jax.vmap(pull)(jnp.eye(len(value)))[0]
        return value, jnp.abs(slopes).sum(axis=(1, 2, 3))

    value, slope = evaluate(batch)
    return {"losses": np.array(value), "slopes": np.array(slope)}


def outputs_of(student: jax.Array, batch: Mapping[str, jax.Array]) -> tuple[ModelOutput, ModelOutput]:
    """Logits and maps (B, 3, 1, C) of two networks from the arrays of a batch."""
    return (student.mean(axis=1), {"s": student[:, :, None]}), (batch["t"].mean(axis=1), {"u": batch["u"][:, :, None]})


def size_of(path: tuple, x: jax.Array) -> jax.Array:
    """Sum of absolute values, without biases whose gradient is rounding alone.

    A softmax does not see what is added to all keys, nor BatchNorm what is added to all its inputs. Adam makes whole
    steps of the rounding, in directions that differ between meshes.
    """
    name = jax.tree_util.keystr(path)
    if name.endswith("['qkv']['bias']"):
        x = x.at[x.shape[0] // 3 : 2 * x.shape[0] // 3].set(0.0)
    if "['projectors']['mse']" in name and name.endswith("['linear']['bias']"):
        x = jnp.zeros_like(x)
    return jnp.abs(x).sum()


def steps(mesh: jax.sharding.Mesh, *, accumulate: int = 1) -> dict[str, np.ndarray]:
    """Terms of each step; sums of absolute parameters, averages and batch statistics at the end; the evaluation."""
    task = build(mesh)
    tx = train.make_optimizer(1e-3, clip_norm=1.0)

    def start():
        return train.create_state(*task.init(jax.random.key(0)), tx, ema=True)

    abstract = jax.eval_shape(start)
    constants = parallel.put_on_mesh(task.constants, mesh)
    state = parallel.put_on_mesh(start(), mesh)
    fn = train.compile_train_step(task, tx, mesh, abstract, accumulate=accumulate, ema_decay=0.9)
    key, rows = jax.random.key(1), []
    for step in range(STEPS):
        state, metrics = fn(state, parallel.put_batch(batch_of(step), mesh), key, constants)
        rows.append({k: float(v) for k, v in metrics.items()})
    result = {k: np.array([r[k] for r in rows]) for k in rows[0]}
    sizes = jax.jit(
        lambda trees: [
            jnp.stack([size_of(path, x) for path, x in jax.tree_util.tree_leaves_with_path(tree)]) for tree in trees
        ],
        out_shardings=parallel.replicated(mesh),
    )((state.params, state.ema, state.mutable))
    result |= {name: np.array(size) for name, size in zip(("params", "ema", "statistics"), sizes, strict=True)}
    kernel = state.params["student"]["blocks_0"]["attn"]["qkv"]["kernel"]
    moment = next(x for p, x in jax.tree_util.tree_leaves_with_path(state.opt_state) if "qkv" in str(p) and x.ndim == 2)
    result["shards"] = np.array([x.addressable_shards[0].data.shape for x in (kernel, moment)])
    means, images, _ = train.evaluate(
        train.compile_eval_step(task, mesh), evaluation_batches(), {"": (state.params, {})}, {}, mesh
    )
    assert images == 21
    return result | {f"eval_{k}": np.array(v) for k, v in means[""].items()}


def main(out: str, *meshes: str) -> None:
    """Writes arrays `<mesh>/<name>`; a mesh "8x1x2" accumulates two micro-batches, "2f4x1" has 4 devices of FSDP."""
    parallel.initialize_distributed()
    first = parallel.is_main_host()
    assert parallel.main_host_decides(first) and not parallel.main_host_decides(not first)
    arrays = {}
    for words in meshes:
        few, words = words.startswith("few:"), words.removeprefix("few:")
        batch, *rest = words.split("x")
        data, fsdp = (int(n) for n in (batch if "f" in batch else f"{batch}f1").split("f"))
        model, *accumulate = map(int, rest)
        mesh = parallel.make_mesh(data, model, fsdp=fsdp)
        result = {} if few else steps(mesh, accumulate=(accumulate or [1])[0])
        arrays |= {f"{words}/{k}": v for k, v in result.items()}
        # Gloo mixes up the many independent collectives of this program when two processes run it on CPUs.
        if jax.process_count() == 1:
            arrays |= {f"{words} batch/{k}": v for k, v in batch_losses(mesh, few=few).items()}
    if first:
        np.savez(out, **arrays)


if __name__ == "__main__":
    jax.config.update("jax_default_matmul_precision", "highest")
    main(*sys.argv[1:])
