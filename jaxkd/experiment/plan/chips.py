"""Figures of accelerators, from their data sheets.

Sources:
  TPU v5e, v6e, v5p, v4: cloud.google.com/tpu/docs/v5e, .../v6e, .../v5p, .../v4: bf16 peak, HBM, and the bandwidth
    between chips, which is given there for both directions together or in Gbps for one; here it is of one direction.
  Chips of a slice at most: the same pages (16x16 of v5e and v6e, 16x16x24 of v5p, a pod of v4).
  Cores of a TPU host: vCPUs of the machine types ct5lp-hightpu-4t, ct6e-standard-4t, ct5p-hightpu-4t, ct4p-hightpu-4t
    (cloud.google.com/kubernetes-engine/docs/concepts/plan-tpus), four chips each.
  GPUs: NVIDIA's data sheets of H100 (SXM, PCIe, NVL), H200, A100 80GB, L4, L40S and A10; rates that are printed with
    sparsity are halved. NVLink or PCIe: half of the printed rate, which is of both directions.
  Cores of a GPU host: vCPUs of a3-highgpu-8g, a3-ultragpu-8g and a2-ultragpu-8g (cloud.google.com/compute/docs/gpus).
  `usable`: what libtpu 0.0.52 lets a program use, from its message where a program is too large.
Compared with the page in November 2026: v5e, v5p and v6e, and the vCPUs of v5e's hosts. Not compared again: HBM's
bandwidth and links of v4, the vCPUs of other hosts, memory, bandwidth and links of GPUs.
"""

from __future__ import annotations

from dataclasses import dataclass

GIB = 2**30


@dataclass(frozen=True)
class Chip:
    """One accelerator.

    Attributes:
      name: as in `--topology`.
      title: for people.
      platform: "tpu", "gpu" or "cpu".
      flops: peak of dense bf16 matrix products, FLOP/s; 0 where it is not published.
      memory: bytes of the data sheet, 0 likewise.
      bandwidth: of that memory, bytes/s.
      link: bytes/s that it sends to other chips over all links at once, in one direction.
      usable: bytes that a program may use; 0: all of `memory`.
      host_chips: chips of a host.
      host_cores: vCPUs of a host with so many chips; 0 where there is no usual one.
      words: all in the name that JAX gives a GPU.
      options: of JAX's `get_topology_desc`, as a sorted tuple.
      slice_chips: most chips of one slice of a TPU; 0 for others.
    """

    name: str
    title: str
    platform: str
    flops: float = 0.0
    memory: float = 0.0
    bandwidth: float = 0.0
    link: float = 0.0
    usable: float = 0.0
    host_chips: int = 8
    host_cores: int = 0
    words: tuple[str, ...] = ()
    options: tuple[tuple[str, str], ...] = ()
    slice_chips: int = 0

    @property
    def room(self) -> float:
        """Bytes that a program may use."""
        return self.usable or self.memory


def _tpu(
    name: str, flops: float, memory: float, bandwidth: float, link: float, usable: float, cores: int, most: int
) -> Chip:
    # v4 and v5p have two cores that a program uses as one; JAX's description of v4 shows them apart unless told.
    options = (("chip_config_name", "megacore"),) if name == "v4" else ()
    figures = (flops, memory, bandwidth, link, usable, 4, cores)
    return Chip(name, f"TPU {name}", "tpu", *figures, options=options, slice_chips=most)


def _gpu(name: str, words: str, flops: float, memory: float, bandwidth: float, link: float, cores: int = 0) -> Chip:
    title = f"NVIDIA {words}"
    return Chip(name, title, "gpu", flops, memory, bandwidth, link, host_cores=cores, words=tuple(words.split()))


# Of GPUs the first entry whose words are all in the device's name counts.
_ALL = (
    _tpu("v5e", 197e12, 16 * GIB, 819e9, 200e9, 15.75 * GIB, 112, 256),
    _tpu("v6e", 918e12, 32 * GIB, 1638e9, 400e9, 31.24 * GIB, 180, 256),
    _tpu("v5p", 459e12, 95 * GIB, 2765e9, 600e9, 95.73 * GIB, 208, 6144),
    _tpu("v4", 275e12, 32 * GIB, 1228e9, 300e9, 30.75 * GIB, 240, 4096),
    _gpu("h200", "H200", 989e12, 141e9, 4.8e12, 450e9, 224),
    _gpu("h100pcie", "H100 PCIe", 756e12, 80e9, 2.0e12, 64e9),
    _gpu("h100nvl", "H100 NVL", 835e12, 94e9, 3.9e12, 300e9),
    _gpu("h100", "H100", 989e12, 80e9, 3.35e12, 450e9, 208),
    _gpu("a100", "A100", 312e12, 80e9, 2.039e12, 300e9, 96),
    _gpu("l40s", "L40S", 362e12, 48e9, 864e9, 32e9),
    _gpu("l4", "L4", 121e12, 24e9, 300e9, 32e9),
    _gpu("a10", "A10", 125e12, 24e9, 600e9, 32e9),
    Chip("cpu", "CPU", "cpu", host_chips=1024),
)
CHIPS: dict[str, Chip] = {chip.name: chip for chip in _ALL}


# Names that JAX gives TPUs, beside "TPU <name>".
_TPU_KINDS = {"TPU v5 lite": "v5e", "TPU v6 lite": "v6e", "TPU v5": "v5p"}


def chip_of(device_kind: str) -> Chip | None:
    """The entry of a device that JAX calls "NVIDIA H100 80GB HBM3" or "TPU v5 lite"; None where no peaks are known."""
    name, words = device_kind.removeprefix("TPU "), set(device_kind.replace("-", " ").split())
    tpus = (chip for chip in _ALL if chip.platform == "tpu" and chip.name == _TPU_KINDS.get(device_kind, name))
    return next(tpus, None) or next((chip for chip in _ALL if chip.words and set(chip.words) <= words), None)


def bf16_peak(device_kind: str) -> float | None:
    """FLOP/s of a device by JAX's name, or None where it is not in the table."""
    chip = chip_of(device_kind)
    return chip.flops if chip else None
