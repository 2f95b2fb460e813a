"""Meshes, batches and the table of partitions, without any second device."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, PartitionSpec

from jaxkd import models, parallel
from jaxkd.errors import DataError, PeerLostError, TopologyError
from jaxkd.parallel import hosts
from jaxkd.parallel.sharding import PARAMETER_RULES, partition_of

HERE = Path(__file__).resolve().parent
PACKAGE = Path(parallel.__file__).parents[1]


def devices(count, per_host=8):
    return [SimpleNamespace(id=i, process_index=i // per_host, platform="fake") for i in range(count)]


@dataclass(frozen=True)
class Placed:
    """A device of a TPU slice."""

    id: int
    slice_index: int
    process_index: int = 0
    platform: str = "fake"


def abstract_mesh(data, model, fsdp=1):
    return AbstractMesh((data, fsdp, model), ("data", "fsdp", "model"))


def test_all_devices_are_in_the_mesh():
    mesh = parallel.make_mesh()
    assert mesh.axis_names == ("data", "fsdp", "model") and mesh.devices.size == jax.device_count()
    assert dict(mesh.shape) == {"data": jax.device_count(), "fsdp": 1, "model": 1}


@pytest.mark.parametrize(
    ("data", "model", "text"),
    [
        (3, 1, r"mesh.data=3 x mesh.fsdp=1 x mesh.model=1 needs 3 devices, but there are 8 \(fake\).*mesh.data=-1"),
        (-1, 3, r"mesh.data=2 x mesh.fsdp=1 x mesh.model=3 needs 6 devices, but there are 8.*divides 8"),
        (-1, 16, r"mesh.data=1 x mesh.fsdp=1 x mesh.model=16 needs 16 devices, but there are 8"),
        (0, 1, r"mesh.data=0, mesh.fsdp=1, mesh.model=1 is not a mesh"),
        (-2, 1, r"mesh.data=-2, mesh.fsdp=1, mesh.model=1 is not a mesh"),
        (-1, 0, r"mesh.data=-1, mesh.fsdp=1, mesh.model=0 is not a mesh"),
    ],
)
def test_mesh_errors(data, model, text):
    with pytest.raises(TopologyError, match=text):
        parallel.make_mesh(data, model, devices(8))


@pytest.mark.parametrize(("fsdp", "slices"), [(1, 1), (4, 1), (8, 2), (16, 4)])
def test_slices_that_hold_one_train_state(fsdp, slices):
    """16 devices in slices of 4."""
    placed, plain = ([Placed(i, i // size) for i in range(16)] for size in (4, 16))
    assert parallel.slices_of_group(parallel.make_mesh(devices=placed, fsdp=fsdp)) == slices
    assert parallel.slices_of_group(parallel.make_mesh(devices=plain, fsdp=fsdp)) == 1


def test_a_model_group_stays_on_one_host():
    with pytest.raises(TopologyError, match=r"mesh.model=4 puts devices of several hosts into one group.*same images"):
        parallel.make_mesh(2, 4, devices(8, per_host=2))


@pytest.mark.parametrize("data", [1, 2, 8])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_batch_is_accepted_exactly_where_it_divides(data, accumulate):
    mesh = abstract_mesh(data, 2)
    for batch in range(1, 50):
        if batch % (data * accumulate) == 0:
            parallel.check_batch("train.batch_size", batch, mesh, accumulate=accumulate)
        else:
            with pytest.raises(TopologyError, match=rf"train.batch_size={batch} does not divide over {data} devices"):
                parallel.check_batch("train.batch_size", batch, mesh, accumulate=accumulate)


@pytest.mark.parametrize(
    ("batch", "accumulate", "text"),
    [
        (20, 1, r"eval.batch_size=20 does not divide over 8 devices\. .*multiple of 8, for example 16 or 24"),
        (40, 2, r"over 8 devices x 2 micro-batches\. .*multiple of 16, for example 32 or 48"),
        (3, 1, r"multiple of 8, for example 8\."),
        (0, 1, r"eval.batch_size=0 does not divide"),
        (-8, 1, r"eval.batch_size=-8 does not divide"),
    ],
)
def test_batch_errors_say_what_would_fit(batch, accumulate, text):
    with pytest.raises(TopologyError, match=text):
        parallel.check_batch("eval.batch_size", batch, abstract_mesh(8, 1), accumulate=accumulate)


def test_a_batch_divides_over_the_hosts_too(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 3)
    with pytest.raises(TopologyError, match=r"train.batch_size=8 does not divide over 3 hosts.*multiple of 3"):
        parallel.check_batch("train.batch_size", 8, abstract_mesh(2, 1))


SMALL = {
    "deit_tiny_patch16_224": {"img_size": 32, "embed_dim": 24, "depth": 1, "num_heads": 2},
    "deit_tiny_distilled_patch16_224": {"img_size": 32, "embed_dim": 24, "depth": 1, "num_heads": 2},
    "cait_xxs24_224": {"img_size": 32, "embed_dim": 24, "depth": 1, "num_heads": 2},
    "swin_tiny_patch4_window7_224": {"img_size": 32, "embed_dim": 8, "depths": (1, 1), "num_heads": (1, 2)},
}
# Matrices that stay whole on every device: small, or at the ends of the network.
WHOLE = {"patch_embed/proj", "head", "head_dist", "attn/proj_l", "attn/proj_w", "downsample/reduction", "head/fc"}


@pytest.fixture(scope="module")
def shapes():
    """path -> shape of every parameter of one small network of each kind, below `student`."""
    found = {}
    for name, args in SMALL.items():
        model = models.create(name, num_classes=6, **args)
        images = jnp.zeros((1, *model.img_size, 3))
        params = jax.eval_shape(lambda m=model, x=images: m.init(jax.random.key(0), x))["params"]
        for path, leaf in jax.tree_util.tree_leaves_with_path({"student": params}):
            found[name, parallel.path_of(path)] = leaf.shape
    return found


def test_every_rule_matches_something_and_every_matrix_of_a_block_has_a_rule(shapes):
    mesh = abstract_mesh(1, 2)
    split = {path: partition_of(path, shape, mesh) for (_, path), shape in shapes.items()}
    for pattern, spec in PARAMETER_RULES:
        assert [path for path in split if re.search(pattern, path) and split[path] == spec], pattern
    kernels = [path.removeprefix("student/").removesuffix("/kernel") for path in split if path.endswith("/kernel")]
    whole = {name for name in kernels if split[f"student/{name}/kernel"] == PartitionSpec()}
    assert {re.sub(r"^(layers_\d+/|blocks_(token_only_)?\d+/)*", "", name) for name in whole} == WHOLE


def test_pairs_of_matrices_are_split_by_columns_then_rows(shapes):
    mesh = abstract_mesh(4, 2)
    for (name, path), shape in shapes.items():
        spec = partition_of(path, shape, mesh)
        if path.endswith("mlp/fc1/kernel"):
            assert spec == PartitionSpec(None, "model") and shape[1] > shape[0], (name, path)
        if path.endswith("mlp/fc2/kernel"):
            assert spec == PartitionSpec("model", None) and shape[0] > shape[1], (name, path)
        if path.endswith("attn/qkv/kernel"):
            assert spec == PartitionSpec(None, "model") and shape[1] == 3 * shape[0], (name, path)
        if path.endswith("attn/proj/kernel"):
            assert spec == PartitionSpec("model", None), (name, path)
        if "norm" in path or path.endswith(("pos_embed", "cls_token")):
            assert spec == PartitionSpec(), (name, path)


def test_what_does_not_divide_stays_whole_and_one_model_device_splits_nothing():
    path = "student/blocks_0/mlp/fc1/kernel"
    assert partition_of(path, (24, 96), abstract_mesh(1, 5)) == PartitionSpec()
    assert partition_of(path, (24, 95), abstract_mesh(1, 5)) == PartitionSpec(None, "model")
    assert partition_of(path, (24, 96), abstract_mesh(8, 1)) == PartitionSpec()


def test_fsdp_splits_the_largest_axis_that_is_free():
    path = "student/blocks_0/mlp/fc1/kernel"
    assert partition_of(path, (24, 96), abstract_mesh(1, 1, 4)) == PartitionSpec(None, "fsdp")
    assert partition_of(path, (24, 96), abstract_mesh(1, 2, 4)) == PartitionSpec("fsdp", "model")
    assert partition_of(path, (23, 97), abstract_mesh(1, 1, 4)) == PartitionSpec()  # nothing divides
    assert partition_of("student/norm/scale", (768,), abstract_mesh(1, 1, 4)) == PartitionSpec()  # too small
    assert partition_of(path, (24, 96), abstract_mesh(1, 2, 4), fsdp=False) == PartitionSpec(None, "model")


def test_members_that_are_split_are_not_split_again():
    state = {"student": {"head": {"kernel": jax.ShapeDtypeStruct((8, 64, 96), jnp.float32)}}}

    def partition(mesh):
        return jax.tree.leaves(parallel.tree_shardings(state, mesh, members=8))[0].spec

    assert partition(abstract_mesh(2, 1, 4)) == PartitionSpec(("data", "fsdp"))
    assert partition(abstract_mesh(2, 1, 8)) == PartitionSpec(None, None, "fsdp")  # 8 members, 16 parts of a batch


def test_moments_and_stacked_blocks_follow_their_parameter():
    mesh = abstract_mesh(1, 2)
    for path in ("opt_state/0/mu/student/blocks_0/mlp/fc2/kernel", "ema/student/blocks_0/mlp/fc2/kernel"):
        assert partition_of(path, (96, 24), mesh) == PartitionSpec("model", None)
    assert partition_of("student/blocks/mlp/fc2/kernel", (12, 96, 24), mesh) == PartitionSpec(None, "model", None)


def test_host_arrays_become_global_ones():
    mesh = parallel.make_mesh()
    batch = parallel.put_batch({"x": np.arange(8 * jax.device_count())}, mesh)
    np.testing.assert_array_equal(batch["x"], np.arange(8 * jax.device_count()))
    assert batch["x"].sharding == parallel.batch_sharding(mesh)
    tree = parallel.put_on_mesh({"a": np.ones(3)}, mesh)
    assert tree["a"].sharding.is_fully_replicated
    for flag in (True, False):
        assert bool(parallel.any_host(flag, mesh)) is flag


def test_a_batch_is_split_over_the_batch_axes_behind_the_leading_ones():
    axes = ("data", "fsdp")
    assert parallel.batch_spec() == PartitionSpec(axes)
    assert parallel.batch_spec(2) == PartitionSpec(None, None, axes)
    assert parallel.batch_devices(abstract_mesh(3, 2)) == 3 and parallel.batch_devices(abstract_mesh(3, 2, 4)) == 12
    assert set(parallel.BATCH_AXES) < set(parallel.make_mesh().axis_names)


def test_axes_are_named_in_one_place():
    literal = re.compile(r"(PartitionSpec\(|\bP\()[^)\n]*[\"']|\bmesh\.shape\[[\"']")
    files = [file for file in PACKAGE.rglob("*.py") if file.parent.name != "parallel"]
    assert len(files) > 100 and [file for file in files if literal.search(file.read_text())] == []


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (RuntimeError("UNKNOWN: Gloo all-reduce failed: Connection closed by peer [127.0.0.1]:1"), True),
        (RuntimeError("INTERNAL: the loss has another shape"), False),
        (DataError('"/data/gloo-heartbeat" is not a folder.'), False),
        (ConnectionResetError(104, "Connection reset by peer"), False),  # of a download
    ],
)
def test_the_loss_of_a_process_is_told_from_other_errors(monkeypatch, error, lost):
    assert not parallel.is_peer_loss(error)  # alone
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    assert parallel.is_peer_loss(error) == lost


@pytest.fixture
def joined(monkeypatch):
    """The arguments that JAX is given: addresses, count and index."""
    calls = []
    names = ("coordinator_address", "coordinator_bind_address", "num_processes", "process_id")
    monkeypatch.setattr(jax.distributed, "initialize", lambda **kwargs: calls.append(tuple(kwargs[n] for n in names)))
    for name in ("COORDINATOR_ADDRESS", "COORDINATOR_BIND_ADDRESS", "NUM_PROCESSES", "PROCESS_ID"):
        monkeypatch.delenv(f"JAX_{name}", raising=False)
    return calls


def name_processes(monkeypatch, address, count="4", index="0", bind=None):
    values = {"COORDINATOR_ADDRESS": address, "NUM_PROCESSES": count, "PROCESS_ID": index}
    for name, value in (values | ({"COORDINATOR_BIND_ADDRESS": bind} if bind else {})).items():
        monkeypatch.setenv(f"JAX_{name}", value)


def test_nobody_is_joined_unless_asked(joined, monkeypatch):
    parallel.initialize_distributed()
    parallel.initialize_distributed(False)
    assert joined == []
    parallel.initialize_distributed(True)
    assert joined == [(None, None, None, None)]
    name_processes(monkeypatch, "127.0.0.1:1234")
    parallel.initialize_distributed()
    assert joined[1:] == [("127.0.0.1:1234", "127.0.0.1:1234", 4, 0)]
    parallel.initialize_distributed(False)
    assert len(joined) == 2


def resolved_to(monkeypatch, address):
    kind = socket.SOCK_STREAM
    monkeypatch.setattr(socket, "getaddrinfo", lambda h, port, **_: [(socket.AF_INET, kind, 6, "", (address, port))])


def test_process_0_does_not_listen_on_the_loopback_address_of_its_own_name(joined, monkeypatch, caplog):
    resolved_to(monkeypatch, "127.0.1.1")
    name_processes(monkeypatch, "node7:29411")
    parallel.initialize_distributed()
    assert joined.pop() == ("node7:29411", "[::]:29411", 4, 0) and '"node7:29411" is 127.0.1.1' in caplog.text
    caplog.clear()
    for address, index, bind in (("localhost:29411", "0", None), ("node7:29411", "1", None), ("a:1", "0", "b:29411")):
        name_processes(monkeypatch, address, index=index, bind=bind)
        parallel.initialize_distributed()
        assert joined.pop() == (address, bind or address, 4, int(index)) and not caplog.text


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (("10.0.0.1",), '"10.0.0.1" is not a host and a port. Write both'),
        (("",), "is not a host and a port"),
        (("host:99999",), "is not a host and a port"),
        (("fd00::1:80",), "is not a host and a port"),
        (("a:1", "4", "0", "b"), 'BIND_ADDRESS="b" is not a host and a port'),
        (("a:1", "abc"), "JAX_NUM_PROCESSES='abc' is out of range. Give a whole number, at least 1"),
        (("a:1", "4", "4"), "JAX_PROCESS_ID=4 is out of range. Give a whole number, at least 0 and below 4"),
        (("192.0.2.1:29411",), r"cannot listen there \(Cannot assign requested address\).*or set JAX_COORDINATOR_BIND"),
        (("no host.invalid:1",), "is not a host"),
    ],
)
def test_processes_that_cannot_be_joined(joined, monkeypatch, given, text):
    name_processes(monkeypatch, *given)
    with pytest.raises(TopologyError, match=text):
        parallel.initialize_distributed()
    assert joined == []


def test_a_port_in_use_and_a_name_that_nobody_knows(joined, monkeypatch):
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        name_processes(monkeypatch, f"127.0.0.1:{busy.getsockname()[1]}")
        with pytest.raises(TopologyError, match=r"cannot listen there \(Address already in use\). Choose another port"):
            parallel.initialize_distributed()

    def unknown(*_, **__):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    name_processes(monkeypatch, "nodee7:1234")
    with pytest.raises(TopologyError, match=r"Name or service not known\). Start process 0 on the machine that has it"):
        parallel.initialize_distributed()
    assert joined == []


def test_a_process_says_what_it_waits_for(monkeypatch, capsys):
    with socket.socket() as closed:  # nobody listens on its port
        closed.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{closed.getsockname()[1]}"
        name_processes(monkeypatch, address, index="1")
        monkeypatch.setattr(hosts, "SILENT_SECONDS", 0.0)
        monkeypatch.setattr(jax.distributed, "initialize", lambda **_: time.sleep(0.5))
        parallel.initialize_distributed()
    assert capsys.readouterr().err == (
        f"jaxkd: Waiting for all 4 processes of this run to meet at {address} (this machine cannot connect to it: "
        "Connection refused). Gives up after 300 seconds.\n"
    )
    monkeypatch.setattr(hosts, "SILENT_SECONDS", 60.0)
    parallel.initialize_distributed()
    assert capsys.readouterr().err == ""


def test_a_process_that_waits_for_others_can_be_stopped():
    program = "import jaxkd.parallel as p; print('joins', flush=True); p.initialize_distributed()"
    given = {"JAX_COORDINATOR_ADDRESS": "127.0.0.1:9", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "1"}
    waiting = subprocess.Popen([sys.executable, "-c", program], env=os.environ | given, stdout=subprocess.PIPE)
    try:
        assert waiting.stdout.readline() == b"joins\n"
        time.sleep(1.5)
        waiting.send_signal(signal.SIGINT)
        assert waiting.wait(timeout=20) == -signal.SIGINT
    finally:
        waiting.kill()
        waiting.stdout.close()


def test_processes_that_do_not_all_start(monkeypatch):
    name_processes(monkeypatch, "127.0.0.1:1234", index="1")
    for text, kind in (
        ("std::bad_cast", PeerLostError),
        ("DEADLINE_EXCEEDED", PeerLostError),
        ("a bug", RuntimeError),
    ):

        def refuse(text=text, **_):
            raise RuntimeError(text)

        monkeypatch.setattr(jax.distributed, "initialize", refuse)
        with pytest.raises(kind, match="The 4 processes of this run did not all meet at 127.0.0.1:1234|a bug"):
            parallel.initialize_distributed()


def test_jax_finds_no_other_processes(monkeypatch):
    for name in ("COORDINATOR_ADDRESS", "NUM_PROCESSES", "PROCESS_ID"):
        monkeypatch.delenv(f"JAX_{name}", raising=False)

    def refuse(**_):
        raise ValueError("Number of processes must be defined.")

    monkeypatch.setattr(jax.distributed, "initialize", refuse)
    with pytest.raises(TopologyError, match=r"must be defined\.\)\. Set JAX_COORDINATOR_ADDRESS=HOST:PORT"):
        parallel.initialize_distributed(True)


@pytest.mark.slow
def test_fsdp_divides_the_train_state_and_gathers_weights_only():
    cases = [[16, 8, 1], [16, 1, 8], [32, 1, 8], [16, 2, 4]]
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "8"}
    program = [sys.executable, str(HERE / "fsdp_program.py"), json.dumps(cases)]
    done = subprocess.run(program, env=environment, check=True, capture_output=True, text=True, timeout=300)
    replicated, split, larger, mixed = json.loads(done.stdout)
    assert split["state"] <= replicated["state"] / 6 and mixed["state"] <= replicated["state"] / 3.5
    assert replicated["gathered"] == []
    assert split["gathered"] and split["gathered"] == larger["gathered"]  # so that no gathered array has a batch


@pytest.mark.slow
def test_the_fft_loss_of_super_resolution_gathers_no_images():
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "8"}
    environment |= {"JAX_DEFAULT_MATMUL_PRECISION": "highest"}
    program = [sys.executable, str(HERE / "restoration_program.py")]
    done = subprocess.run(program, env=environment, check=True, capture_output=True, text=True, timeout=300)
    one, eight = json.loads(done.stdout)
    assert eight["gathers"] == 0
    for row, expected in zip(eight["rows"], one["rows"], strict=True):
        assert row == pytest.approx(expected, rel=1e-5)
