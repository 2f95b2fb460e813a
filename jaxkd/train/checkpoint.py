"""Checkpoints of a run (Orbax): written, kept by policy, and restored as a whole run or as its weights only.

A checkpoint of step n holds everything that n steps changed: parameters, moving average, optimiser, mutable
collections, the position in the data, the clock, and beside them the resolved config and the teacher's name and hash.
Orbax writes to a temporary name and renames, so that a killed process never leaves half a checkpoint.
"""

from __future__ import annotations

import contextlib
import copy
import json
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from orbax.checkpoint.checkpoint_managers import preservation_policy

from jaxkd.errors import (
    CheckpointError,
    ConfigError,
    DamagedCheckpointError,
    JaxkdError,
    did_you_mean,
    is_out_of_memory,
    storage_error,
)
from jaxkd.parallel import is_main_host, is_peer_loss, tree_shardings
from jaxkd.train.manifest import find_damage, has_manifest, write_manifest
from jaxkd.train.members import FOLDER as MEMBERS
from jaxkd.train.members import Value, best_member, to_json
from jaxkd.train.moving_average import initial_share, initial_share_warning
from jaxkd.train.run_folder import FOLDER, checkpoint_steps, find_run, read_config
from jaxkd.train.scores import read_scores, repair_scores
from jaxkd.train.state import TrainState

PyTree = Any
VARIANTS = ("raw", "ema")
_LOG = logging.getLogger(__name__)


class Checkpoints:
    """The checkpoints of one work directory.

    Args:
      workdir: the run's folder; checkpoints go to `workdir/checkpoints/<step>`.
      keep_last: how many of the newest stay.
      keep_best: how many with the highest `best_metric` stay; of a population, that of its best member.
      keep_every: steps that are multiples of this are never deleted; 0 is off.
      best_metric: name in the metrics given to `save`.
    """

    def __init__(
        self, workdir: Path, *, keep_last: int = 2, keep_best: int = 1, keep_every: int = 0, best_metric: str = "top1"
    ):
        policies: list[Any] = [preservation_policy.LatestN(max(keep_last, 1))]
        if keep_best:
            policies.append(
                preservation_policy.BestN(
                    get_metric_fn=lambda m: best_member(m.get(best_metric))[0],
                    n=keep_best,
                    keep_checkpoints_without_metrics=False,
                )
            )
        if keep_every:
            policies.append(preservation_policy.EveryNSteps(interval_steps=keep_every))
        self._folder = (Path(workdir) / FOLDER).absolute()
        self._saving = -1
        options = ocp.CheckpointManagerOptions(
            preservation_policy=preservation_policy.AnyPreservationPolicy(policies),
            best_fn=lambda m: best_member(m.get(best_metric))[0],
            cleanup_tmp_directories=True,
            async_options=ocp.AsyncOptions(post_finalization_callback=self._add_manifest),
        )
        self._open = lambda: ocp.CheckpointManager(self._folder, options=options)
        if is_main_host():
            repair_scores(self._folder.parent)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("jaxkd: scores of the checkpoints repaired")
        self._manager = self._open()

    def _add_manifest(self) -> None:
        """Runs in Orbax's thread when all of a checkpoint is written and it does not have its name yet."""
        if is_main_host():
            unnamed = sorted(
                self._folder.glob(f"{self._saving}.orbax-checkpoint-tmp*"), key=lambda p: p.stat().st_mtime
            )
            write_manifest(unnamed[-1] if unnamed else self._folder / str(self._saving))

    def steps(self) -> list[int]:
        """Steps that can be restored, ascending."""
        return sorted(self._manager.all_steps())

    def save(self, state: TrainState, *, data: dict, meta: dict, metrics: dict[str, Value] | None = None) -> None:
        """Starts writing the checkpoint of `state.step`; a step that is already there is left as it is.

        Returns when everything has been copied: the next step may reuse the state's buffers, and the caller may change
        the dictionaries, although they are written in the background.
        """
        step = int(state.step)
        if step in self._manager.all_steps():
            return
        data, meta, metrics = copy.deepcopy((data, meta, to_json(metrics or {})))
        items = {
            "params": ocp.args.StandardSave(state.params),
            "rest": ocp.args.StandardSave({"step": state.step, "mutable": state.mutable, "opt_state": state.opt_state}),
            "data": ocp.args.JsonSave(data),
            "meta": ocp.args.JsonSave(meta),
        }
        self._manager.wait_until_finished()  # as Orbax does; then no other checkpoint is on its way
        self._saving = step
        if state.ema is not None:
            items["ema"] = ocp.args.StandardSave(state.ema)
        # Forced, because Orbax would otherwise drop a step below its newest one without a word. It warns on the
        # terminal where there are no metrics; an empty dict ranks below every score.
        self._manager.save(step, args=ocp.args.Composite(**items), metrics=metrics, force=True)

    def restore(
        self, step: int, abstract: TrainState, mesh: jax.sharding.Mesh, shardings: PyTree | None = None
    ) -> tuple[TrainState, dict, dict]:
        """(state, data position, meta) of `step`.

        Args:
          step: one of `steps`.
          abstract: shapes of the state.
          mesh: where it goes.
          shardings: how it is placed there; None for that of one network.

        Raises:
          DamagedCheckpointError: a file of the checkpoint is missing or damaged.
          CheckpointError: its files are as they were written and hold something else than this run restores.
          Exception: what the disk, the memory or another process refused is raised as it came.
        """
        older = [s for s in self.steps() if s < step]
        rest = f"from step {older[-1]}" if older else "from the start, as there is no other checkpoint"
        advice = f"The same command then continues {rest}."
        if older:
            advice += " --config.checkpoint.on_damage=previous does so by itself."
        self._check(step, advice)
        placed = jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            abstract,
            tree_shardings(abstract, mesh) if shardings is None else shardings,
        )
        items: dict[str, Any] = {
            "params": ocp.args.StandardRestore(placed.params),
            "rest": ocp.args.StandardRestore(
                {"step": placed.step, "mutable": placed.mutable, "opt_state": placed.opt_state}
            ),
            "data": ocp.args.JsonRestore(),
            "meta": ocp.args.JsonRestore(),
        }
        if placed.ema is not None:
            items["ema"] = ocp.args.StandardRestore(placed.ema)
        # Several processes must agree on damage: only checksums, which the first one compares, can say it there.
        checked = self.has_checksums(step) or jax.process_count() > 1
        with _reading(self._folder / str(step), advice, checked=checked):
            got = self._manager.restore(step, args=ocp.args.Composite(**items))
        rest = got["rest"]
        state = TrainState(rest["step"], got["params"], rest["mutable"], rest["opt_state"], got.get("ema"))
        return state, got["data"], got["meta"]

    def has_checksums(self, step: int) -> bool:
        """Whether damage to the checkpoint of `step` would be noticed; not in one of an older version of jaxkd."""
        return has_manifest(self._folder / str(step))

    def _check(self, step: int, advice: str) -> None:
        """Compares the checksums on one host; all hosts raise where it finds damage."""
        damage, failed = "", None
        if is_main_host():
            try:
                damage = find_damage(self._folder / str(step))
            except OSError as error:  # the others must not wait for this one
                failed = error
        if jax.process_count() > 1:
            found = multihost_utils.broadcast_one_to_all(np.array([bool(damage), failed is not None]))
            damage = damage or ("see the first host" if found[0] else "")
            if found[1] and failed is None:
                raise CheckpointError(
                    f'The first host could not read the checkpoint "{self._folder / str(step)}". See its message.'
                )
        if failed is not None:
            raise failed
        if damage:
            raise _damaged(self._folder / str(step), damage, advice)

    def set_aside(self, step: int) -> Path:
        """Moves the checkpoint of `step` to `workdir/damaged`, so that the run can write that step again."""
        target = self._folder.parent / "damaged" / f"{step}-{time.strftime('%Y%m%d-%H%M%S')}"
        self._manager.close()
        if is_main_host():
            target.parent.mkdir(exist_ok=True)
            (self._folder / str(step)).rename(target)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices(f"jaxkd: checkpoint {step} set aside")
        self._manager = self._open()
        return target

    def wait(self) -> None:
        """Returns when everything that `save` started is on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits and releases the threads."""
        self._manager.wait_until_finished()
        self._manager.close()


@contextlib.contextmanager
def _reading(folder: Path, advice: str, *, checked: bool) -> Iterator[None]:
    """Turns whatever Orbax, TensorStore or JSON raise over a checkpoint into one CheckpointError.

    What the disk, the memory or another process refused stays as it is: it says nothing about the checkpoint.

    Args:
      folder: of the checkpoint.
      advice: the last sentence of the message.
      checked: whether damage was looked for and not found, so that it cannot be the cause.
    """
    try:
        yield
    except JaxkdError:
        raise
    except Exception as error:  # the three have no common type
        missing = isinstance(error, FileNotFoundError)
        if is_out_of_memory(error) or is_peer_loss(error) or (storage_error(error) is not None and not missing):
            raise
        reason = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:200]}"
        if not checked:
            raise _damaged(folder, reason, advice) from error
        raise CheckpointError(
            f'The checkpoint "{folder}" cannot be restored ({reason}). None of its files is known to be damaged, so '
            f"another version of jaxkd or another config wrote it. Use that one, or another work directory. {advice}"
        ) from error


def _damaged(folder: Path, reason: str, advice: str) -> DamagedCheckpointError:
    return DamagedCheckpointError(
        f'The checkpoint "{folder}" cannot be read ({reason}).',
        "A file of it is missing or damaged (a killed run leaves none of that behind, a bad disk does), or another "
        "version of jaxkd wrote it. Restore the folder, use that version, or move the folder out of the work "
        f"directory. {advice}",
    )


def recorded_classes(path: str | Path) -> tuple[str, ...]:
    """Class names, by label, that the newest checkpoint of a work directory was trained on.

    Returns:
      () where `path` is no work directory, or where the checkpoint records none.
    """
    run = find_run(path)
    for step in [] if run is None else reversed(checkpoint_steps(run)):
        try:
            meta = json.loads((run / FOLDER / str(step) / "meta" / "metadata").read_text())
            return tuple(map(str, meta.get("classes", ())))
        except (OSError, ValueError, AttributeError, TypeError):
            continue  # damaged; whoever loads its weights says so
    return ()


def load_run_weights(
    path: str | Path,
    *,
    variant: str | None = None,
    step: str = "",
    best_metric: str = "",
    on_host: bool = False,
) -> tuple[PyTree, dict, str]:
    """The student's parameters of a work directory, without its optimiser: `{"params": ...}`; see `load_run_params`."""
    params, config, said = load_run_params(path, variant=variant, step=step, best_metric=best_metric, on_host=on_host)
    return {"params": params["student"]}, config, said


def load_run_params(
    path: str | Path,
    *,
    variant: str | None = None,
    step: str = "",
    best_metric: str = "",
    on_host: bool = False,
) -> tuple[PyTree, dict, str]:
    """All parameters of a work directory, those of student and objective, without its optimiser.

    Args:
      path: work directory, its `checkpoints` folder, or one checkpoint in it.
      variant: "raw" (default) or "ema".
      step: a step number, "last" (default) or "best" (by `best_metric`, the newest of equals).
      best_metric: as in `Checkpoints`; "" is top-1 accuracy, of a super-resolution run PSNR on its first set, of a
        contrastive one the top-5 retrieval.
      on_host: see `restore_item`.

    Returns:
      `{"student": ..., "projectors": ...}`, the run's resolved config as a dict, and a sentence that says what was
      loaded.

    Raises:
      CheckpointError: no such run, no checkpoint in it, no such step, no score, no moving average, or a damaged file.
      ConfigError: another variant.
    """
    if variant not in (None, *VARIANTS):
        raise ConfigError(
            f'variant="{variant}" is not a kind of weights.{did_you_mean(str(variant), VARIANTS)} '
            f"Choose one of {', '.join(VARIANTS)}."
        )
    run = find_run(path)
    if run is None:
        raise CheckpointError(
            f'"{path}" is not a work directory of jaxkd, which holds config.json and a folder `{FOLDER}`. '
            "Give the --workdir of an earlier run."
        )
    steps = checkpoint_steps(run)
    if not steps:
        raise CheckpointError(
            f'"{run}" holds no finished checkpoint. Continue it with its own command, or point to another run.'
        )
    config = read_config(run)
    if config.get("population"):
        names = [str(member.get("name")) for member in config["population"]]
        folder = run / MEMBERS
        raise CheckpointError(
            f'"{run}" trained a population of {len(names)} students. Name one of them, for example '
            f"{folder / names[0]}"
            + (f"; {folder} has all." if folder.is_dir() else "; they are written when the run has finished.")
        )
    name = Path(path).name
    wanted = step or (name if name.isdigit() and Path(path).parent.name == FOLDER else "last")
    chosen = _choose_step(run, steps, wanted, best_metric)
    item = "ema" if variant == "ema" else "params"
    if not (run / FOLDER / str(chosen) / item).is_dir():
        raise CheckpointError(
            f'"{run}" (step {chosen}) has no moving average of the weights. The run was made with ema.decay=0. '
            "Ask for the raw weights instead."
        )
    folder, others = run / FOLDER / str(chosen), [s for s in steps if s != chosen]
    advice = f"Or ask for another step: {', '.join(map(str, others))}." if others else "There is no other."
    with _reading(folder, advice, checked=has_manifest(folder)):
        damage = find_damage(folder, (item,))
        if damage:
            raise _damaged(folder, damage, advice)
        restored = restore_item(folder / item, on_host=on_host)
    kind = _moving_average(config, chosen) if item == "ema" else "raw weights"
    said = f"step {chosen} of {run} ({kind})"
    if not has_manifest(folder):
        said += ", without checksums, so that damage would not be noticed"
    return restored, config, said


def _choose_step(run: Path, steps: list[int], wanted: str, best_metric: str) -> int:
    """The step that `wanted` names: a number, "last" or "best"."""
    if wanted == "best":
        rows = {s: read_scores(run, s) for s in steps}
        if not best_metric:
            psnr = [k for row in rows.values() for k in row if "psnr" in k and not k.startswith("ema_")]
            retrieval = [k for k in ("retrieval_top5",) if any(k in row for row in rows.values())]
            best_metric = (psnr or retrieval or ["top1"])[0]
        scores = {s: row.get(best_metric) for s, row in rows.items()}
        scored = {s: v for s, v in scores.items() if v is not None}
        if not scored:
            raise CheckpointError(
                f'"{run}" has no checkpoint with a score ({best_metric}). '
                f"Ask for the last, or for one of: {', '.join(map(str, steps))}."
            )
        return max(scored, key=lambda s: (best_member(scored[s])[0], s))
    elif wanted == "last":
        return steps[-1]
    elif wanted.isdigit() and int(wanted) in steps:
        return int(wanted)
    else:
        raise CheckpointError(
            f'"{run}" has no checkpoint of step {wanted}. Older ones are deleted unless '
            f"checkpoint.keep_every_epochs keeps them. There are: {', '.join(map(str, steps))}."
        )


def _moving_average(config: dict[str, Any], step: int) -> str:
    """Words for the average after `step` steps; a log too where more than 1 % of it are the initial weights."""
    how = config.get("ema", {})
    decay = min(max(how.get("decay", 0), 0), 1)  # a file may say anything
    warmup = bool(how.get("warmup", False))
    warning = initial_share_warning(decay, step, warmup=warmup)
    if not warning:
        return "moving average"
    _LOG.warning("%s Take --variant=raw, or train longer or with a smaller ema.decay.", warning)
    return f"moving average, {100 * initial_share(decay, step, warmup=warmup):.0f} % of it the initial weights"


@contextlib.contextmanager
def _without_metadata_warning() -> Iterator[None]:
    """Context without Orbax's warning that an item of a checkpoint has no metadata of a whole one; others stay."""

    def others(record: logging.LogRecord) -> bool:
        return not str(record.msg).startswith("Metadata file does not exist")

    logger = logging.getLogger("absl")
    logger.addFilter(others)
    try:
        yield
    finally:
        logger.removeFilter(others)


def restore_item(folder: Path, *, on_host: bool = False) -> PyTree:
    """One saved tree, whatever mesh wrote it: on this process's first device, or as arrays of NumPy (`on_host`)."""
    with _without_metadata_warning(), ocp.StandardCheckpointer() as checkpointer:
        metadata = checkpointer.metadata(folder.absolute()).item_metadata
        tree = getattr(metadata, "tree", metadata)
        here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])

        def template_of(leaf: Any) -> Any:
            if on_host:
                return np.broadcast_to(np.zeros((), leaf.dtype), leaf.shape)  # the kind and shape; takes no memory
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here)

        template = jax.tree.map(template_of, tree, is_leaf=lambda m: hasattr(m, "shape"))
        return checkpointer.restore(folder.absolute(), template)
