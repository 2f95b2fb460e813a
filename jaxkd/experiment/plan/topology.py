"""Devices of a machine that is not here: `v5e:16x16`, `gpu:h100:8`, `cpu:8`."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
import re
from dataclasses import dataclass, field
from typing import Any

import jax

from jaxkd.errors import TopologyError, did_you_mean
from jaxkd.experiment.plan.chips import CHIPS, Chip

EXAMPLES = {
    "tpu": ("v5e:4x4", "v5e:16x16", "v6e:4x4", "v5p:2x2x2", "v4:2x2x4"),
    "gpu": ("gpu:h100:8",),
    "cpu": ("cpu:8",),
}


@dataclass(frozen=True)
class Topology:
    """Chips that a program is compiled for.

    Attributes:
      name: as the user wrote it.
      chip: their kind.
      count: how many, of all slices.
      shape: of the slice of a TPU, "16x16"; "" for others.
      slices: of a TPU, joined by the data centre's network.
    """

    name: str
    chip: Chip
    count: int
    shape: str = ""
    slices: int = 1
    hosts: int = field(init=False)

    def __post_init__(self) -> None:
        # Four chips of a TPU share a host at least, also where a slice has fewer.
        object.__setattr__(self, "hosts", -(-self.count // self.chip.host_chips))

    @property
    def exact(self) -> bool:
        """Whether the program is the one that these chips would run."""
        return self.chip.platform == "tpu"


def known() -> str:
    """The topologies that `parse` takes, in words."""
    tpus, gpus = (", ".join(n for n, c in CHIPS.items() if c.platform == p) for p in ("tpu", "gpu"))
    return f"a TPU ({tpus}) with its shape, such as v5e:16x16 or v4:2x2x4; gpu:NAME:COUNT ({gpus}); or cpu:COUNT"


def parse(text: str, *, slices: int = 1) -> Topology:
    """The topology that `--topology` names.

    Raises:
      TopologyError: there is none of that name or shape.
    """
    kind, _, rest = text.lower().partition(":")
    if kind == "gpu":
        name, _, rest = rest.partition(":")
    else:
        name = kind
    chip = CHIPS.get(name)
    if chip is None or (chip.platform == "gpu") != (kind == "gpu"):
        names = [n for platform in EXAMPLES.values() for n in platform]
        raise TopologyError(f'--topology="{text}" is not known.{did_you_mean(text, names)} Give {known()}.')
    if chip.platform == "tpu":
        # v4 and v5p are three-dimensional, v5e and v6e two-dimensional.
        axes = 3 if name in ("v4", "v5p") else 2
        if not re.fullmatch(r"[1-9]\d{0,2}" + r"x[1-9]\d{0,2}" * (axes - 1), rest):
            example = next(e for e in EXAMPLES["tpu"] if e.startswith(name))
            raise TopologyError(
                f'--topology="{text}" has no shape of {axes} numbers, which a TPU {name} has. Write for example '
                f"--topology={example}."
            )
        count = functools.reduce(lambda a, b: a * int(b), rest.split("x"), 1)
        if count > chip.slice_chips:
            raise TopologyError(
                f'--topology="{text}" has {count:,} chips, but a slice of TPU {name} has {chip.slice_chips:,} at most. '
                "Give a smaller shape; --slices=2 plans for two slices of it."
            )
        return Topology(text, chip, count * slices, rest, slices)
    if not re.fullmatch(r"[1-9]\d{0,3}", rest) or int(rest) > 1024:
        raise TopologyError(
            f'--topology="{text}" does not say how many from 1 to 1024. Write for example '
            f"--topology={EXAMPLES[chip.platform][0]}."
        )
    if slices > 1:
        raise TopologyError(f"--slices={slices} was given with --topology={text}. Only TPUs have slices; leave it out.")
    return Topology(text, chip, int(rest))


def prepare(topology: Topology) -> None:
    """Sets what JAX reads when it starts; before any other use of JAX.

    Raises:
      TopologyError: libtpu is needed and not installed, or JAX runs already with fewer devices.
    """
    if topology.exact:
        if importlib.util.find_spec("libtpu") is None:
            raise TopologyError(
                f"--topology={topology.name} needs the compiler of TPUs, the package libtpu, which is not installed. "
                "Run pip install 'jaxkd[tpu]'; no TPU is needed."
            )
        quiet = {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost", "TPU_ACCELERATOR_TYPE": "v5litepod-4"}
        # A plan touches no TPU, so it may run beside a program that uses one.
        for name, value in {"ALLOW_MULTIPLE_LIBTPU_LOAD": "1", "TF_CPP_MIN_LOG_LEVEL": "3", **quiet}.items():
            os.environ.setdefault(name, value)
        os.environ.pop("XLA_FLAGS", None)  # libtpu ends the process at a flag of another compiler
        os.environ["JAX_PLATFORMS"] = "cpu"
        jax.config.update("jax_platforms", "cpu")
        return
    jax.config.update("jax_platforms", "cpu")
    with contextlib.suppress(RuntimeError):  # JAX runs already, in a program that calls this
        jax.config.update("jax_num_cpu_devices", topology.count)


def devices(topology: Topology) -> list[Any]:
    """The devices of a topology, which exist only on paper, or simulated ones.

    Raises:
      TopologyError: libtpu does not know such a slice, or JAX runs already with fewer devices.
    """
    if not topology.exact:
        found = jax.devices("cpu")[: topology.count]
        if len(found) < topology.count:
            raise TopologyError(
                f"--topology={topology.name} needs {topology.count} simulated devices, but JAX runs with {len(found)}. "
                f"Start a new process with JAX_NUM_CPU_DEVICES={topology.count}."
            )
        return found
    from jax.experimental import topologies

    options: dict[str, Any] = dict(topology.chip.options)
    if topology.slices > 1:
        options["num_slices"] = topology.slices
    name = f"{topology.chip.name}:{topology.shape}"
    try:
        return list(topologies.get_topology_desc(platform="tpu", topology_name=name, **options).devices)
    except Exception as error:  # JaxRuntimeError, or whatever loading a library of another version raises
        reason = " ".join(str(error).split(": ", 1)[-1].split())
        raise TopologyError(
            f"libtpu has no slice {topology.name} ({reason}). Give a shape whose sides are even, such as "
            f"{', '.join(EXAMPLES['tpu'])}."
        ) from None
