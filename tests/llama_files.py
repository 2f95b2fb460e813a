"""A tiny random Llama in the file format of llama2.c."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np

DIM, HIDDEN, DEPTH, HEADS, KV, VOCAB, CONTEXT = 24, 20, 2, 6, 2, 262, 32
HEAD_DIM = DIM // HEADS
SIZES = {"wq": (DIM, DIM), "wk": (KV * HEAD_DIM, DIM), "wv": (KV * HEAD_DIM, DIM), "wo": (DIM, DIM)}
SIZES |= {"w1": (HIDDEN, DIM), "w2": (DIM, HIDDEN), "w3": (HIDDEN, DIM)}


def random_arrays(head_dim: int = HEAD_DIM) -> dict[str, np.ndarray]:
    """Arrays of a Llama in llama2.c's layout, in which channels 2i and 2i + 1 are rotated together."""
    rng = np.random.default_rng(5)
    width, kv = HEADS * head_dim, KV * head_dim
    sizes = SIZES | {"wq": (width, DIM), "wk": (kv, DIM), "wv": (kv, DIM), "wo": (DIM, width)}
    arrays = {name: rng.normal(0, 0.3, (DEPTH, *size)).astype(np.float32) for name, size in sizes.items()}
    for name, shape in {"att": (DEPTH, DIM), "ffn": (DEPTH, DIM), "final": (DIM,)}.items():
        arrays[name] = rng.uniform(0.5, 1.5, shape).astype(np.float32)
    for name in ("embedding", "output"):
        arrays[name] = rng.normal(0, 1, (VOCAB, DIM)).astype(np.float32)
    return arrays


def write_tokenizer(path: Path) -> None:
    """A vocabulary of single bytes, " ", "a" and " a"."""
    pieces = [b"<unk>", b"\n<s>\n", b"\n</s>\n", *(f"<0x{i:02X}>".encode() for i in range(256)), b" ", b"a", b" a"]
    assert len(pieces) == VOCAB
    parts = [struct.pack("<fi", 0.0, len(p)) + p for p in pieces]
    path.write_bytes(struct.pack("<i", max(map(len, pieces))) + b"".join(parts))


def write_llama2c(arrays: dict[str, np.ndarray], folder: Path, *, tied: bool = False) -> Path:
    """Writes tiny.bin and its tokenizer; returns the path of the first."""
    order = ("embedding", "att", "wq", "wk", "wv", "wo", "ffn", "w1", "w2", "w3", "final")
    parts = [arrays[name].tobytes() for name in order]
    parts += [bytes(4 * CONTEXT * HEAD_DIM)] + ([] if tied else [arrays["output"].tobytes()])
    header = (DIM, HIDDEN, DEPTH, HEADS, KV, VOCAB if tied else -VOCAB, CONTEXT)
    folder.mkdir(exist_ok=True)
    (folder / "tiny.bin").write_bytes(struct.pack("<7i", *header) + b"".join(parts))
    write_tokenizer(folder / f"tok{VOCAB}.bin")
    return folder / "tiny.bin"
