"""Checkpoints: what comes back, what stays, what a killed process or a bad disk leaves, and weights without a run."""

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy import Toy

from jaxkd import parallel, train
from jaxkd.errors import CheckpointError, ConfigError, DamagedCheckpointError

FROZEN = {"student": {"dense": {"kernel": False, "bias": True}}, "projectors": {}}
TX = train.make_optimizer(1e-2, clip_norm=1.0, frozen=FROZEN)


def state_of(step: int, *, ema: bool = True) -> train.TrainState:
    """A state without two equal numbers, so that a mix-up of arrays shows."""
    params, mutable = Toy().init(jax.random.key(0, impl="rbg"))
    state = train.create_state(params, mutable, TX, ema=ema)
    leaves, treedef = jax.tree.flatten(state)
    rng = np.random.default_rng(step)
    leaves = [jnp.asarray(rng.normal(size=x.shape) * 100).astype(x.dtype) for x in leaves]
    return jax.tree.unflatten(treedef, leaves).replace(step=jnp.int32(step))


def abstract(*, ema: bool = True):
    return jax.eval_shape(lambda: state_of(0, ema=ema))


@pytest.fixture(scope="module")
def mesh():
    return parallel.make_mesh()


def save(checkpoints, *steps, scores=None, ema=True):
    for step in steps:
        score = None if scores is None else {"top1": scores[step]}
        checkpoints.save(state_of(step, ema=ema), data={"at": step}, meta={"step": step}, metrics=score)
    checkpoints.wait()


@pytest.fixture
def run(tmp_path):
    """A work directory with checkpoints of the steps 1 (best), 2 and 3."""
    (tmp_path / "config.json").write_text('{"student": {"name": "toy"}}')
    checkpoints = train.Checkpoints(tmp_path)
    save(checkpoints, 1, 2, 3, scores={1: 90.0, 2: 10.0, 3: 20.0})
    checkpoints.close()
    return tmp_path


@pytest.mark.parametrize("ema", [True, False])
def test_everything_comes_back_bit_for_bit(tmp_path, mesh, assert_same, ema):
    state = state_of(7, ema=ema)
    data = {"position": 12345678901, "host": {"order": [3, 1, 2]}}
    meta = {"clock": {"seconds": 1.25, "images": 56}, "task": {"teacher": "cait", "teacher_fingerprint": "ab"}}
    checkpoints = train.Checkpoints(tmp_path)
    checkpoints.save(state, data=data, meta=meta)
    checkpoints.close()
    checkpoints = train.Checkpoints(tmp_path)
    assert checkpoints.steps() == [7]
    got, got_data, got_meta = checkpoints.restore(7, abstract(ema=ema), mesh)
    checkpoints.close()
    assert_same(got, state)
    assert (got_data, got_meta) == (data, meta)
    assert (got.ema is None) != ema


def test_what_was_saved_is_the_state_of_that_moment_though_the_next_step_reuses_its_buffers(tmp_path, mesh):
    state = state_of(1).replace(params={"w": jnp.ones((512, 512))}, opt_state=(), ema=None, mutable={})
    checkpoints = train.Checkpoints(tmp_path)
    checkpoints.save(state, data={}, meta={})
    step = jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)
    for _ in range(5):
        state = step(state)
    jax.block_until_ready(state)
    got, _, _ = checkpoints.restore(1, jax.eval_shape(lambda: state), mesh)
    checkpoints.close()
    np.testing.assert_array_equal(got.params["w"], 1.0)


def test_dictionaries_are_those_of_that_moment_though_the_run_changes_them(tmp_path, mesh, monkeypatch):
    dumps = json.dumps
    monkeypatch.setattr(json, "dumps", lambda *args, **options: time.sleep(0.1) or dumps(*args, **options))
    clock, position, scores = {"images": 96}, {"at": 1, "broken": {}}, {"top1": 50.0}
    checkpoints = train.Checkpoints(tmp_path)
    state = state_of(1).replace(params={"w": jnp.ones((1024, 1024))}, ema=None)
    checkpoints.save(state, data=position, meta={"clock": clock}, metrics=scores)
    clock["images"], position["broken"]["7"], scores["top1"] = 288, "damaged", 99.0
    position["at"] = 3
    checkpoints.wait()
    _, data, meta = checkpoints.restore(1, jax.eval_shape(lambda: state), mesh)
    checkpoints.close()
    assert (data, meta) == ({"at": 1, "broken": {}}, {"clock": {"images": 96}})
    assert json.loads((tmp_path / "checkpoints/1/metrics/metrics").read_text())["top1"] == 50.0


@pytest.mark.slow
def test_the_last_the_best_and_every_nth_are_kept(tmp_path):
    scores = {1: 5.0, 2: 90.0, 3: 7.0, 4: 80.0, 5: 1.0, 6: 2.0, 7: 3.0, 8: 4.0, 9: 0.0}
    kept = {
        "last": dict(keep_last=2, keep_best=0),
        "best": dict(keep_last=1, keep_best=2),
        "nth": dict(keep_last=1, keep_best=0, keep_every=4),
        "all": dict(keep_last=2, keep_best=1, keep_every=5),
    }
    expected = {"last": [8, 9], "best": [2, 4, 9], "nth": [4, 8, 9], "all": [2, 5, 8, 9]}
    for name, options in kept.items():
        checkpoints = train.Checkpoints(tmp_path / name, **options)
        save(checkpoints, *scores, scores=scores)
        assert checkpoints.steps() == expected[name], name
        checkpoints.close()
        reopened = train.Checkpoints(tmp_path / name, **options)
        assert reopened.steps() == expected[name], name
        reopened.close()


def test_a_checkpoint_without_a_score_is_never_the_best_and_needs_none(tmp_path, caplog):
    checkpoints = train.Checkpoints(tmp_path, keep_last=1, keep_best=1)
    save(checkpoints, 1, scores={1: 3.0})
    save(checkpoints, 2, 3, 4)
    assert checkpoints.steps() == [1, 4]
    checkpoints.close()
    assert "metrics" not in caplog.text  # Orbax has an opinion about missing ones


def test_a_step_that_is_there_stays_as_it_is(tmp_path, mesh):
    checkpoints = train.Checkpoints(tmp_path)
    save(checkpoints, 4)
    checkpoints.save(state_of(4), data={"at": "again"}, meta={})
    checkpoints.save(state_of(3), data={"at": 3}, meta={})  # below the newest: after somebody restored an older one
    checkpoints.wait()
    assert checkpoints.steps() == [3, 4]
    assert checkpoints.restore(4, abstract(), mesh)[1] == {"at": 4}
    checkpoints.close()


def test_a_process_killed_while_it_writes_leaves_the_older_checkpoint(tmp_path, mesh, assert_same):
    script = """
        import os, signal, sys
        sys.path.insert(0, sys.argv[2])
        from test_checkpoint import save, state_of
        from jaxkd import train
        checkpoints = train.Checkpoints(sys.argv[1])
        save(checkpoints, 1)
        import orbax.checkpoint._src.path.atomicity as atomicity
        async def kill(self, *args, **kwargs):
            os.kill(os.getpid(), signal.SIGKILL)
        atomicity.AtomicRenameTemporaryPath.finalize = kill  # everything is written, nothing has its name yet
        save(checkpoints, 2)
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(tmp_path), str(Path(__file__).parent)]
    done = subprocess.run(
        command, env=os.environ | {"JAX_PLATFORMS": "cpu"}, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    folder = tmp_path / "checkpoints"
    left = [p.name for p in folder.iterdir()]
    assert "1" in left and "2" not in left and len(left) > 1, left
    checkpoints = train.Checkpoints(tmp_path)
    assert checkpoints.steps() == [1]
    state, position, _ = checkpoints.restore(1, abstract(), mesh)
    assert_same(state, state_of(1))
    assert position == {"at": 1}
    save(checkpoints, 3)  # the run goes on, and what was left is cleared away
    assert checkpoints.steps() == [1, 3]
    assert_same(checkpoints.restore(3, abstract(), mesh)[0], state_of(3))
    checkpoints.close()
    assert sorted(p.name for p in folder.iterdir()) == ["1", "3"]


@pytest.mark.parametrize("item", ["params", "rest", "ema", "data", "meta"])
def test_a_damaged_checkpoint_is_named_and_the_older_one_still_works(run, mesh, assert_same, item):
    newest = run / "checkpoints" / "3"
    files = [p for p in (newest / item).rglob("*") if p.is_file()]
    for file in files:
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    checkpoints = train.Checkpoints(run)
    assert checkpoints.steps() == [1, 2, 3]
    with pytest.raises(CheckpointError, match=rf'"{newest}" cannot be read.*missing or damaged.*continues from step 2'):
        checkpoints.restore(3, abstract(), mesh)
    assert_same(checkpoints.restore(2, abstract(), mesh)[0], state_of(2))
    checkpoints.close()
    shutil.move(newest, run / "moved_away")  # what the message says
    checkpoints = train.Checkpoints(run)
    assert checkpoints.steps() == [1, 2]
    checkpoints.close()


def test_every_flipped_bit_is_noticed_in_every_file(run, mesh):
    newest, rng = run / "checkpoints" / "3", np.random.default_rng(0)
    files = [p for p in newest.rglob("*") if p.is_file() and p.parent != newest]  # Orbax's words on top hold no data
    assert len(files) > 20
    checkpoints = train.Checkpoints(run)
    for file in (*files, *files):
        whole = file.read_bytes()
        if not whole:
            continue
        damaged = bytearray(whole)
        damaged[rng.integers(len(whole))] ^= 1 << rng.integers(8)
        file.write_bytes(damaged)
        name = file.relative_to(newest).as_posix()
        name = file.relative_to(newest).as_posix()
        with pytest.raises(CheckpointError, match=rf'"{newest}" cannot be read \(the file {name} is not as it was'):
            checkpoints.restore(3, abstract(), mesh)
        if name.startswith("params/"):
            with pytest.raises(CheckpointError, match=rf"the file {name} is not .*ask for another step: 1, 2"):
                train.load_run_weights(run)
        file.write_bytes(whole)
    for content in ("", "{", "[]", '{"algorithm": "none", "files": {}}', '{"algorithm": "sha256", "files": {}}'):
        (newest / "checksums.json").write_text(content)
        with pytest.raises(CheckpointError, match=r"\(checksums.json (is no list|names|lacks)"):
            checkpoints.restore(3, abstract(), mesh)
    checkpoints.close()


def test_a_checkpoint_of_an_older_version_has_no_checksums_and_can_be_read(run, mesh, assert_same):
    checkpoints = train.Checkpoints(run)
    assert checkpoints.has_checksums(3)
    (run / "checkpoints" / "3" / "checksums.json").unlink()
    assert not checkpoints.has_checksums(3)
    assert_same(checkpoints.restore(3, abstract(), mesh)[0], state_of(3))
    checkpoints.close()
    assert "without checksums" in train.load_run_weights(run)[2]


@pytest.mark.parametrize(
    "refused",
    [
        OSError(24, "Too many open files"),
        PermissionError(13, "Permission denied", "/run/checkpoints/3/params/a"),
        RuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 3 GiB"),
    ],
)
def test_what_the_machine_refuses_is_no_damage(run, mesh, monkeypatch, refused):
    import orbax.checkpoint as ocp

    checkpoints = train.Checkpoints(run)

    def refuse(*_, **__):
        raise refused

    with monkeypatch.context() as patch:
        patch.setattr(ocp.CheckpointManager, "restore", refuse)
        for checksums in (True, False):
            with pytest.raises(type(refused)) as raised:
                checkpoints.restore(3, abstract(), mesh)
            assert raised.value is refused
            if checksums:
                (run / "checkpoints" / "3" / "checksums.json").rename(run / "kept")
        refused = KeyError("other")
        with pytest.raises(DamagedCheckpointError, match="cannot be read"):
            checkpoints.restore(3, abstract(), mesh)
        (run / "kept").rename(run / "checkpoints" / "3" / "checksums.json")
        with pytest.raises(CheckpointError, match="cannot be restored.*known to be damaged") as raised:
            checkpoints.restore(3, abstract(), mesh)
        assert not isinstance(raised.value, DamagedCheckpointError)
        refused = PermissionError(13, "Permission denied", "/run/checkpoints/3/checksums.json")
        patch.setattr(Path, "open", refuse)  # while the checksums are compared
        with pytest.raises(PermissionError):
            checkpoints.restore(3, abstract(), mesh)
    checkpoints.close()


@pytest.mark.parametrize("content", ['{"to', '{"top1": 10.0}', "[]", ""])
def test_damaged_scores_are_taken_from_the_log_so_that_the_best_stays_the_best(run, mesh, assert_same, caplog, content):
    writer = train.MetricWriter(run, tensorboard=False)
    writer.write("eval", 1, {"epoch": 0.5, "top1": 90.0})
    writer.close()
    for step in (1, 2):
        (run / "checkpoints" / str(step) / "metrics" / "metrics").write_text(content)
    assert_same(train.load_run_weights(run, step="best")[0]["params"], state_of(1).params["student"])
    checkpoints = train.Checkpoints(run, keep_last=1)
    assert json.loads((run / "checkpoints" / "1" / "metrics" / "metrics").read_text()) == {"top1": 90.0}
    said = [r.getMessage() for r in caplog.records if "were damaged" in r.getMessage()]
    # the second file holds what step 2 had
    assert len(said) == (1 if "10.0" in content else 2) and "taken from metrics.jsonl" in said[0]
    assert_same(checkpoints.restore(1, abstract(), mesh)[0], state_of(1))
    save(checkpoints, 4)
    assert checkpoints.steps() == [1, 4]
    checkpoints.close()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"a.b": 1}', "it is not one JSON object of fields"),
        ('{"a": {"b.c": 1}}', "it is not one JSON object of fields"),
        ("5", "it is not one JSON object of fields"),
        ('{"plugins": 5}', "its plugins are not a list of names"),
        ('{"plugins": [5]}', "its plugins are not a list of names"),
        ('{"ema": 5}', "ema=5 is of the wrong type"),
        ('{"ema": {"decay": "0.9"}}', "ema.decay='0.9' is of the wrong type"),
        ('{"student": []}', r"student=\(\) is of the wrong type|student=\[\] is of the wrong type"),
        ('{"student": {"args": 1}}', "student.args=1 is of the wrong type"),
    ],
)
def test_a_config_of_another_form_is_refused_in_words(run, content, words):
    (run / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match=f"config.json.* holds no config: ({words})"):
        train.load_run_weights(run, variant="ema")


def test_a_missing_config_is_that_of_the_newest_checkpoint(tmp_path):
    checkpoints = train.Checkpoints(tmp_path)
    saved = {"student": {"name": "toy"}, "train": {"steps": 3}}
    checkpoints.save(state_of(1), data={}, meta={"config": saved})
    checkpoints.close()
    assert train.read_config(tmp_path) == saved
    longer = {"student": {"name": "toy"}, "train": {"steps": 9}}  # which changes no step
    (tmp_path / "config.json").write_text(json.dumps(longer))
    assert train.read_config(tmp_path) == longer


@pytest.mark.parametrize("payload", ["params", "rest"])
def test_a_lost_array_file_is_noticed(run, mesh, payload):
    for file in (run / "checkpoints" / "3" / payload).rglob("d/*"):
        file.write_bytes(file.read_bytes()[:-7])
    checkpoints = train.Checkpoints(run)
    with pytest.raises(CheckpointError, match=r"cannot be read"):
        checkpoints.restore(3, abstract(), mesh)
    checkpoints.close()


def test_weights_of_a_run_raw_and_average_last_and_best(run, assert_same, caplog):
    for step, expected in (("", 3), ("last", 3), ("best", 1), ("2", 2)):
        for variant in (None, "raw", "ema"):
            variables, config, said = train.load_run_weights(run, variant=variant, step=step)
            state = state_of(expected)
            tree = state.ema if variant == "ema" else state.params
            assert_same(variables, {"params": tree["student"]})
            on_host = train.load_run_weights(run, variant=variant, step=step, on_host=True)[0]
            assert_same(on_host, {"params": tree["student"]})
            assert {type(leaf) for leaf in jax.tree.leaves(on_host)} == {np.ndarray}
            assert config == {"student": {"name": "toy"}}
            name = "moving average" if variant == "ema" else "raw weights"
            assert said == f"step {expected} of {run} ({name})"
    variables, _, _ = train.load_run_weights(run / "checkpoints" / "2")
    assert_same(variables, {"params": state_of(2).params["student"]})
    assert_same(train.load_run_weights(run / "checkpoints")[0], {"params": state_of(3).params["student"]})
    assert_same(train.load_run_weights(run / "checkpoints" / "2", step="3")[0]["params"], state_of(3).params["student"])
    assert "_CHECKPOINT_METADATA" not in caplog.text  # Orbax warns about a file that an item of a checkpoint never has


def test_an_average_that_holds_initial_weights_is_warned_of(run, caplog):
    config = json.loads((run / "config.json").read_text())
    for decay, words in ((0.99, "moving average, 97 % of it the initial weights"), (0.2, "moving average")):
        (run / "config.json").write_text(json.dumps(config | {"ema": {"decay": decay}}))
        assert train.load_run_weights(run, variant="ema")[2] == f"step 3 of {run} ({words})"
        assert train.load_run_weights(run, variant="raw")[2] == f"step 3 of {run} (raw weights)"
    assert [r.getMessage().split(" (")[0] for r in caplog.records if r.name.startswith("jaxkd")] == [
        "The moving average at step 3 still holds 97 % of the initial weights"
    ]


def test_which_paths_name_a_run(run, tmp_path, monkeypatch):
    for path in (run, run / "checkpoints", run / "checkpoints" / "2", f"{run}/"):
        assert train.find_run(path) == run
    (run / "teacher.safetensors").write_bytes(b"weights of their own")
    (run / "stages").mkdir()
    inside = run / "checkpoints" / "export.npz"
    for path in (
        run / "teacher.safetensors",
        inside,
        run / "stages",
        run / "nothing",
        tmp_path.parent,
        "timm/cait_s24_224.fb",
    ):
        assert train.find_run(path) is None, path
    monkeypatch.chdir(run / "checkpoints")
    assert train.find_run("2") == run and train.find_run(".") == run


def test_weight_errors(run, tmp_path):
    with pytest.raises(
        CheckpointError, match=r'"nowhere" is not a work directory.*config.json.*--workdir of an earlier'
    ):
        train.load_run_weights("nowhere")
    with pytest.raises(CheckpointError, match=r"no checkpoint of step 7\..*keep_every_epochs.*There are: 1, 2, 3"):
        train.load_run_weights(run, step="7")
    with pytest.raises(CheckpointError, match=r"no checkpoint of step newest"):
        train.load_run_weights(run, step="newest")
    with pytest.raises(ConfigError, match=r'variant="emma" is not a kind of weights. Did you mean "ema"'):
        train.load_run_weights(run, variant="emma")
    with pytest.raises(CheckpointError, match=r"no checkpoint with a score \(psnr\).*one of: 1, 2, 3"):
        train.load_run_weights(run, step="best", best_metric="psnr")
    bare = tmp_path / "bare"
    (bare / "checkpoints").mkdir(parents=True)
    (bare / "config.json").write_text(json.dumps({}))
    with pytest.raises(CheckpointError, match=r"holds no finished checkpoint. Continue it"):
        train.load_run_weights(bare)
    checkpoints = train.Checkpoints(bare)
    save(checkpoints, 5, ema=False)
    checkpoints.close()
    with pytest.raises(
        CheckpointError, match=r"\(step 5\) has no moving average.*ema.decay=0.*Ask for the raw weights"
    ):
        train.load_run_weights(bare, variant="ema")
    for file in (bare / "checkpoints" / "5" / "params").rglob("_METADATA"):
        file.write_text("{")
    with pytest.raises(CheckpointError, match=r"cannot be read.*params/_METADATA is not as it.*There is no other"):
        train.load_run_weights(bare)
