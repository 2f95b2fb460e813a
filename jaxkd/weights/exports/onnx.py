"""Super-resolution networks as ONNX files, for devices without JAX.

The graph is built by hand from BasicSR's state dict, node by node. (jax2onnx 0.17 gives right numbers too, but it wants
an Orbax older than the one that training needs, keeps JAX's channels-last order behind a transpose on either side of
each convolution, and names no weight as BasicSR does.) Operator set 13 in IR version 7, both of 2020, so that old
runtimes on small devices read it. GELU is exact and spelt out with Erf: an operator of its own exists only from set 20,
and onnxruntime fuses this spelling into one anyway.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from flax import linen as nn

from jaxkd.errors import ConfigError
from jaxkd.models import bicubic
from jaxkd.models.edsr import EDSR
from jaxkd.models.mdbn import BASE_BLOCKS, MDBN
from jaxkd.models.sr_base import RGB, SCALES
from jaxkd.weights.basicsr import to_basicsr
from jaxkd.weights.timm import StateDict

PyTree = Any
OPSET, IR_VERSION = 13, 7
INPUT, OUTPUT = "image", "enlarged"


class _Graph:
    """Nodes in order, and the arrays they read; every method adds nodes and returns the name of their result."""

    def __init__(self, state: StateDict):
        from onnx import helper, numpy_helper

        self._helper, self._numpy = helper, numpy_helper
        self._state = state
        self.nodes: list[Any] = []
        self.arrays: dict[str, Any] = {}

    def node(self, operator: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        """One operator; its node has the name of its result."""
        self.nodes.append(self._helper.make_node(operator, list(inputs), [output], name=output, **attributes))
        return output

    def constant(self, name: str, value: Any) -> str:
        """An fp32 array of the file, stored once per name."""
        if name not in self.arrays:
            self.arrays[name] = self._numpy.from_array(np.ascontiguousarray(value, np.float32), name)
        return name

    def integers(self, name: str, values: Sequence[int]) -> str:
        """An int64 array of the file, which operators take as an argument."""
        self.arrays[name] = self._numpy.from_array(np.array(values, np.int64), name)
        return name

    def conv(self, x: str, name: str) -> str:
        """The 3x3 convolution `name` of the state dict, with zero padding and bias."""
        parts = [self.constant(f"{name}.{part}", self._state[f"{name}.{part}"]) for part in ("weight", "bias")]
        return self.node("Conv", [x, *parts], name, kernel_shape=[3, 3], pads=[1, 1, 1, 1])

    def gelu(self, x: str, name: str) -> str:
        """x (1 + erf(x / sqrt 2)) / 2."""
        # This order and a division, where jaxkd's GELU multiplies: onnxruntime knows the pattern and fuses it.
        scaled = self.node("Div", [x, self.constant("sqrt_two", math.sqrt(2))], f"{name}.scaled")
        erf = self.node("Add", [self.node("Erf", [scaled], f"{name}.erf"), self.constant("one", 1)], f"{name}.erf_1")
        return self.node("Mul", [self.node("Mul", [x, erf], f"{name}.twice"), self.constant("half", 0.5)], name)

    def residual(self, x: str, y: str, res_scale: float, name: str) -> str:
        """x + res_scale * y."""
        if res_scale != 1:
            y = self.node("Mul", [y, self.constant("res_scale", res_scale)], f"{name}.scaled")
        return self.node("Add", [x, y], f"{name}.out")


def _mdbn_block(graph: _Graph, x: str, name: str, res_scale: float) -> str:
    y = x
    for j in range(1, BASE_BLOCKS + 1):
        base = f"{name}.baseblock{j}"
        deep = graph.conv(graph.gelu(graph.conv(y, f"{base}.uconv1"), f"{base}.gelu1"), f"{base}.uconv2")
        both = graph.node("Add", [deep, graph.conv(y, f"{base}.dconv")], f"{base}.sum")
        y = graph.gelu(both, f"{base}.gelu2")
    return graph.residual(x, y, res_scale, name)


def _edsr_block(graph: _Graph, x: str, name: str, res_scale: float) -> str:
    y = graph.node("Relu", [graph.conv(x, f"{name}.conv1")], f"{name}.relu")
    return graph.residual(x, graph.conv(y, f"{name}.conv2"), res_scale, name)


def _preprocess(graph: _Graph, model: nn.Module) -> str:
    """The input of the first convolution: with the mean subtracted and in the network's range."""
    if not model.shifts_colours:
        return INPUT
    mean = graph.constant("rgb_mean", np.reshape(model.rgb_mean, (1, RGB, 1, 1)))
    centred = graph.node("Sub", [INPUT, mean], "image.centred")
    return graph.node("Mul", [centred, graph.constant("img_range", model.img_range)], "image.ranged")


def _postprocess(graph: _Graph, x: str, model: nn.Module) -> str:
    """The output of the last convolution as an image, under the graph's name for it."""
    if model.shifts_colours:
        x = graph.node("Div", [x, "img_range"], "enlarged.centred")
    if model.global_skip:
        return graph.node("Add", [x, _bicubic(graph, model.scale)], OUTPUT)
    if model.shifts_colours:
        return graph.node("Add", [x, "rgb_mean"], OUTPUT)
    return graph.node("Identity", [x], OUTPUT)


def _bicubic(graph: _Graph, scale: int) -> str:
    """The input enlarged as by `models.bicubic`: mirrored by two pixels, then one convolution for each colour."""
    pads = graph.integers("bicubic.pads", (0, 0, 1, 1, 0, 0, 1, 1))
    x = graph.node("Pad", [INPUT, pads], "bicubic.padded", mode="edge")
    for axis, name in ((2, "rows"), (3, "columns")):
        ends = []
        for end, start in (("first", 2), ("last", -3)):
            where = (("start", start), ("stop", start + 1), ("axis", axis))
            bounds = [graph.integers(f"bicubic.{name}.{end}.{k}", (v,)) for k, v in where]
            ends.append(graph.node("Slice", [x, *bounds], f"bicubic.{name}.{end}"))
        x = graph.node("Concat", [ends[0], x, ends[1]], f"bicubic.{name}", axis=axis)
    weights = bicubic.phase_weights(scale)
    kernel = np.einsum("py,qx->pqyx", weights, weights).reshape(scale**2, 1, *(weights.shape[1],) * 2)
    kernel = graph.constant("bicubic.weight", np.tile(kernel, (RGB, 1, 1, 1)))
    x = graph.node("Conv", [x, kernel], "bicubic.phases", kernel_shape=[weights.shape[1]] * 2, group=RGB)
    return graph.node("DepthToSpace", [x], "bicubic", blocksize=scale, mode="CRD")


def to_onnx(model: nn.Module, variables: PyTree, metadata: Mapping[str, str] | None = None) -> Any:
    """The network as an `onnx.ModelProto` that onnx's own checker has passed.

    Its input "image" is (batch, 3, height, width), RGB in [0, 1], fp32, of any batch, height and width; its output
    "enlarged" is (batch, 3, s height, s width), like the network's not clipped to [0, 1]. Arithmetic is fp32, whatever
    the network's dtype. A merged MDBN gives the same graph as its plain form.
    """
    require_upscaler(model, "ONNX")
    require_package("onnx", "ONNX")
    from onnx import TensorProto, checker, helper

    state = to_basicsr(model, variables)
    graph = _Graph(state)
    block = _mdbn_block if isinstance(model, MDBN) else _edsr_block
    first = x = graph.conv(_preprocess(graph, model), "conv_first")
    for i in range(model.num_block):
        x = block(graph, x, f"body.{i}", model.res_scale)
    x = graph.node("Add", [first, graph.conv(x, "conv_after_body")], "body.out")
    for i, factor in enumerate(SCALES[model.scale]):
        name = f"upsample.{2 * i}"
        # CRD is PyTorch's order of channels: colour, row, column. The default, DCR, would scramble the picture.
        x = graph.node("DepthToSpace", [graph.conv(x, name)], f"{name}.shuffled", blocksize=factor, mode="CRD")
    _postprocess(graph, graph.conv(x, "conv_last"), model)
    s = model.scale
    sizes = {INPUT: ("batch", RGB, "height", "width"), OUTPUT: ("batch", RGB, f"height_x{s}", f"width_x{s}")}
    ends = {name: helper.make_tensor_value_info(name, TensorProto.FLOAT, size) for name, size in sizes.items()}
    file = helper.make_model(
        helper.make_graph(
            graph.nodes, type(model).__name__, [ends[INPUT]], [ends[OUTPUT]], list(graph.arrays.values())
        ),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="jaxkd",
        doc_string=f"Enlarges RGB images in [0, 1] by {s}; the output is not clipped.",
    )
    facts = {"scale": str(s), "receptive_field": str(model.receptive_field), **(metadata or {})}
    helper.set_model_props(file, facts)
    checker.check_model(file, full_check=True)
    return file


def run_onnx(file: str | Path | bytes, images: np.ndarray) -> np.ndarray | None:
    """Outputs of an ONNX file of `exports.save`, by onnxruntime on the CPU; None where it is not installed.

    Returns:
      (B, s H, s W, 3) fp32.
    """
    try:
        import onnxruntime
    except ImportError:
        return None
    source = file if isinstance(file, bytes) else str(file)
    session = onnxruntime.InferenceSession(source, providers=["CPUExecutionProvider"])
    feed = {INPUT: np.ascontiguousarray(np.transpose(images, (0, 3, 1, 2)), np.float32)}
    return session.run([OUTPUT], feed)[0].transpose(0, 2, 3, 1)


def require_upscaler(model: nn.Module, what: str) -> None:
    """Raises ConfigError unless `model` is one of the networks that are exported to `what`."""
    if not isinstance(model, MDBN | EDSR):
        raise ConfigError(
            f"This {type(model).__name__} cannot be written as {what}. Only the super-resolution networks, MDBN and "
            "EDSR, can here. Write safetensors, or use exports.save for "
            "classifiers."
        )


def require_package(package: str, files: str) -> None:
    """Raises ConfigError unless `package`, which `files` need, is installed."""
    try:
        importlib.import_module(package)
    except ImportError:
        raise ConfigError(
            f"{files} files need the package {package}, which is not installed. Run `pip install 'jaxkd[export]'`."
        ) from None
