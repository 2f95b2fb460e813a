"""Weights of Llamas: a `.bin` file of llama2.c, or a Hugging Face folder of a LlamaForCausalLM."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd.errors import ConfigError, WeightMismatchError, WeightSourceError, key_diff
from jaxkd.language.tokens import HuggingFaceTokenizer, Tokenizer, read_llama2c_tokenizer
from jaxkd.models.llama import Llama, LlamaConfig, Variables
from jaxkd.weights import readers

ARCHITECTURE = "LlamaForCausalLM"
END_OF_LLAMA2C = (1, 2)  # begin and end of a sequence: llama2.c ends at either
_HEADER = 7  # int32: dim, hidden_dim, n_layers, n_heads, n_kv_heads, vocab_size, seq_len
# Matrices of a block: here, in llama2.c's file, and in Hugging Face's names.
_MATRICES = {
    "query": "self_attn.q_proj",
    "key": "self_attn.k_proj",
    "value": "self_attn.v_proj",
    "out": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}
_NORMS = {"norm1": "input_layernorm", "norm2": "post_attention_layernorm"}


@dataclass(frozen=True)
class LoadedLlama:
    """A Llama with its weights and tokenizer.

    Attributes:
      model, variables: the network.
      tokenizer: text to ids.
      stop: ids that end an answer.
    """

    model: Llama
    variables: Variables
    tokenizer: Tokenizer
    stop: tuple[int, ...]


def load_llama(source: str | Path, *, tokenizer: str | Path = "", dtype: jnp.dtype = jnp.float32) -> LoadedLlama:
    """Reads a Llama from the disk; nothing is fetched.

    Args:
      source: a `.bin` file of llama2.c (fp32, its first format), or a folder with config.json, model.safetensors (or
        the index of a sharded one) and tokenizer.json. The folder's chat template is not read.
      tokenizer: file of the tokenizer; "" looks for `tok<vocabulary>.bin` or `tokenizer.bin` beside a `.bin` file, and
        for tokenizer.json in a folder.
      dtype: of the computation and of the weights in memory.

    Raises:
      WeightSourceError: a file is missing, truncated or of another architecture.
      WeightMismatchError: the arrays are not those that config.json describes.
    """
    path = Path(source).expanduser()
    if not path.exists():
        raise WeightSourceError(
            f'The language model "{path}" does not exist. Give a .bin file of llama2.c, or a folder with config.json '
            "and model.safetensors."
        )
    read = _read_folder if path.is_dir() else _read_llama2c
    config, params, stop, begin = read(path)
    wanted = Path(tokenizer).expanduser() if tokenizer else _find_tokenizer(path, config.vocab_size)
    if not wanted.is_file():
        raise WeightSourceError(f'The tokenizer "{wanted}" does not exist. Give the file that came with the weights.')
    found = (
        read_llama2c_tokenizer(wanted, config.vocab_size)
        if wanted.suffix == ".bin"
        else HuggingFaceTokenizer(wanted, begin)
    )
    params = jax.tree.map(lambda x: jnp.asarray(x, dtype), params)
    return LoadedLlama(Llama(config, dtype), {"params": params}, found, stop)


def _find_tokenizer(path: Path, vocab_size: int) -> Path:
    """The customary file of a tokenizer beside the weights."""
    folder = path.parent
    names: tuple[str, ...] = (f"tok{vocab_size}.bin", "tokenizer.bin")
    if path.is_dir():
        folder, names = path, ("tokenizer.json",)
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise WeightSourceError(
        f'The language model "{path}" has no tokenizer: "{folder}" holds no {" or ".join(names)}. Put the tokenizer '
        "that came with the weights there."
    )


_Parts = tuple[LlamaConfig, dict[str, Any], tuple[int, ...], int | None]


def _read_llama2c(path: Path) -> _Parts:
    """Config, parameters, stop ids and begin id of a file of llama2.c."""
    content = path.read_bytes()
    header = np.frombuffer(content[: 4 * _HEADER], "<i4").tolist() if len(content) >= 4 * _HEADER else [0] * _HEADER
    dim, hidden, depth, heads, kv_heads, vocab, context = header
    # The sign of the vocabulary says whether the output is the embedding.
    plausible = all(0 < n < 2**24 for n in (dim, hidden, depth, heads, kv_heads, abs(vocab), context))
    if not plausible or dim % heads or heads % kv_heads or dim // heads % 2:
        raise WeightSourceError(
            f'"{path}" is no model of llama2.c: its first {4 * _HEADER} bytes describe no Llama. Give a .bin file as '
            "llama2.c's export writes it in version 0 (fp32), or a Hugging Face folder."
        )
    config = LlamaConfig(abs(vocab), dim, hidden, depth, heads, kv_heads, context, tied=vocab > 0)
    shapes = _llama2c_shapes(config)
    sizes = [math.prod(shape) for shape in shapes.values()]
    expected = 4 * (_HEADER + sum(sizes))
    if len(content) != expected:
        what = "is truncated" if len(content) < expected else "does not end where it should"
        raise WeightSourceError(
            f'"{path}" {what}: it has {len(content):,} bytes, and its header describes {expected:,}. Fetch it again.'
        )
    values = np.frombuffer(content, "<f4", offset=4 * _HEADER)
    parts = np.split(values, np.cumsum(sizes)[:-1])
    arrays = {name: part.reshape(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}

    def halves(rows: np.ndarray) -> np.ndarray:
        """llama2.c rotates channels 2i and 2i + 1 of a head together, this network i and i + D/2."""
        pairs = rows.reshape(-1, config.head_dim // 2, 2, rows.shape[-1])
        return pairs.swapaxes(1, 2).reshape(rows.shape)

    def matrix(name: str, i: int) -> np.ndarray:
        found = arrays[name][i]
        return halves(found) if name in ("query", "key") else found

    output = None if config.tied else arrays["output"]
    params = _params(config, arrays["embedding"], matrix, lambda name, i: arrays[name][i], arrays["norm"], output)
    return config, params, END_OF_LLAMA2C, None


def _llama2c_shapes(c: LlamaConfig) -> dict[str, tuple[int, ...]]:
    """Arrays in the order of llama2.c's file; those of all blocks stand together."""
    kv, half = c.num_kv_heads * c.head_dim, c.head_dim // 2
    return {
        "embedding": (c.vocab_size, c.embed_dim),
        "norm1": (c.depth, c.embed_dim),
        "query": (c.depth, c.embed_dim, c.embed_dim),
        "key": (c.depth, kv, c.embed_dim),
        "value": (c.depth, kv, c.embed_dim),
        "out": (c.depth, c.embed_dim, c.embed_dim),
        "norm2": (c.depth, c.embed_dim),
        "gate": (c.depth, c.mlp_dim, c.embed_dim),
        "down": (c.depth, c.embed_dim, c.mlp_dim),
        "up": (c.depth, c.mlp_dim, c.embed_dim),
        "norm": (c.embed_dim,),
        "cosines": (c.context, half),  # two tables of rotary places that llama2.c itself no longer reads
        "sines": (c.context, half),
        **({} if c.tied else {"output": (c.vocab_size, c.embed_dim)}),
    }


def _params(
    config: LlamaConfig,
    embedding: np.ndarray,
    matrix: Callable[[str, int], np.ndarray],
    norm: Callable[[str, int], np.ndarray],
    last_norm: np.ndarray,
    output: np.ndarray | None,
) -> dict[str, Any]:
    """Parameters of `Llama` from matrices (out, in) and scales of each block."""
    params: dict[str, Any] = {"embedding": embedding, "norm": {"scale": last_norm}}
    for i in range(config.depth):
        block = {name: {"kernel": matrix(name, i).T} for name in _MATRICES}
        params[f"blocks_{i}"] = block | {name: {"scale": norm(name, i)} for name in _NORMS}
    return params if output is None else params | {"output": output}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise WeightSourceError(f'"{path}" is no JSON object. Fetch it again from where the weights came.')
    return content


def _read_folder(folder: Path) -> _Parts:
    """Config, parameters, stop ids and begin id of a Hugging Face folder."""
    file = folder / "config.json"
    if not file.is_file():
        raise WeightSourceError(
            f'The folder "{folder}" holds no language model: it has no config.json. Give a folder with config.json, '
            "model.safetensors and tokenizer.json, or a .bin file of llama2.c."
        )
    content = _read_json(file)
    config = _config_of(content, file)
    if not readers.holds_weights(folder):
        raise WeightSourceError(
            f'The folder "{folder}" holds no model.safetensors and no model.safetensors.index.json. Put the weights '
            "that belong to its config.json there."
        )
    arrays = readers.read(folder)
    arrays = {name: array for name, array in arrays.items() if not name.endswith("rotary_emb.inv_freq")}
    if config.tied:
        arrays.pop("lm_head.weight", None)
    expected = _hugging_face_shapes(config)
    diff = key_diff(expected, {name: tuple(getattr(array, "shape", ())) for name, array in arrays.items()})
    if diff:
        raise WeightMismatchError(
            f'The weights in "{folder}" do not fit its config.json. Fetch both again from one place.\n{diff}'
        )
    params = _params(
        config,
        arrays["model.embed_tokens.weight"],
        lambda name, i: arrays[f"model.layers.{i}.{_MATRICES[name]}.weight"],
        lambda name, i: arrays[f"model.layers.{i}.{_NORMS[name]}.weight"],
        arrays["model.norm.weight"],
        None if config.tied else arrays["lm_head.weight"],
    )
    generation = folder / "generation_config.json"
    ends = [content.get("eos_token_id"), _read_json(generation).get("eos_token_id") if generation.is_file() else None]
    stop = {i for end in ends for i in (end if isinstance(end, list) else [end]) if isinstance(i, int)}
    begin = content.get("bos_token_id")
    return config, params, tuple(sorted(stop)), begin if isinstance(begin, int) else None


def _config_of(content: dict[str, Any], file: Path) -> LlamaConfig:
    """Sizes in a config.json; refuses every setting that this network does not have."""
    names = content.get("architectures") or [content.get("model_type", "unknown")]
    if ARCHITECTURE not in names:
        raise WeightSourceError(
            f'"{file}" describes a {names[0]}, and this network is a {ARCHITECTURE}. Give a folder of a '
            f"{ARCHITECTURE}, or run the model in a server and give its address."
        )
    rope = content.get("rope_scaling") or content.get("rope_parameters") or {}
    other = {
        "hidden_act": content.get("hidden_act", "silu") not in ("silu", "swish"),
        "attention_bias": bool(content.get("attention_bias")),
        "mlp_bias": bool(content.get("mlp_bias")),
        "quantization_config": bool(content.get("quantization_config")),
        "rope_scaling": rope.get("rope_type", rope.get("type", "default")) != "default",
    }
    for name, refused in other.items():
        if refused:
            raise WeightSourceError(
                f'"{file}" sets {name} to {content.get(name, rope)}, which this network does not have. Choose another '
                "Llama, or run it in a server and give its address."
            )
    try:
        heads = int(content["num_attention_heads"])
        return LlamaConfig(
            vocab_size=int(content["vocab_size"]),
            embed_dim=int(content["hidden_size"]),
            mlp_dim=int(content["intermediate_size"]),
            depth=int(content["num_hidden_layers"]),
            num_heads=heads,
            num_kv_heads=int(content.get("num_key_value_heads") or heads),
            context=int(content.get("max_position_embeddings", 2048)),
            head_dim=int(content.get("head_dim") or 0),
            rope_theta=float(content.get("rope_theta") or rope.get("rope_theta") or 10000.0),
            norm_eps=float(content.get("rms_norm_eps", 1e-6)),
            tied=bool(content.get("tie_word_embeddings", False)),
        )
    except (KeyError, TypeError, ValueError, ConfigError) as error:
        what = f"has no {error}" if isinstance(error, KeyError) else f"is not usable: {error}"
        raise WeightSourceError(f'"{file}" {what}. Fetch it again from where the weights came.') from None


def _hugging_face_shapes(c: LlamaConfig) -> dict[str, tuple[int, ...]]:
    """Arrays of a LlamaForCausalLM, matrices as (out, in)."""
    width, kv = c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim
    sizes = {
        "query": (width, c.embed_dim),
        "key": (kv, c.embed_dim),
        "value": (kv, c.embed_dim),
        "out": (c.embed_dim, width),
        "gate": (c.mlp_dim, c.embed_dim),
        "up": (c.mlp_dim, c.embed_dim),
        "down": (c.embed_dim, c.mlp_dim),
    }
    shapes = {"model.embed_tokens.weight": (c.vocab_size, c.embed_dim), "model.norm.weight": (c.embed_dim,)}
    for i in range(c.depth):
        shapes |= {f"model.layers.{i}.{_MATRICES[name]}.weight": shape for name, shape in sizes.items()}
        shapes |= {f"model.layers.{i}.{name}.weight": (c.embed_dim,) for name in _NORMS.values()}
    return shapes if c.tied else shapes | {"lm_head.weight": (c.vocab_size, c.embed_dim)}
