"""Which record comes when: a function of the seed and the position alone, so that any position can be gone to."""

from __future__ import annotations

import numpy as np

from jaxkd.errors import DataError

_ORDER, _RECORD = 0, 1  # streams of random numbers that must not meet


def record_rng(seed: int, epoch: int, record: int) -> np.random.Generator:
    """The random numbers of one record in one epoch, whoever asks for them and when."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence((seed, _RECORD, epoch, record))))


class EpochSampler:
    """A new permutation of all records every epoch, cut into batches; the incomplete last batch is dropped (as timm).

    Args:
      records: how many there are.
      batch_size: global, over all hosts.
      seed: of the run.
      host_index: which host this is; each takes a contiguous share of every batch.
      host_count: how many there are; `batch_size` must divide by it. The global order does not depend on it.

    Raises:
      DataError: fewer records than one batch.
    """

    def __init__(self, records: int, batch_size: int, seed: int, host_index: int = 0, host_count: int = 1):
        if records < batch_size:
            raise DataError(
                f"The training split has {records} images, which is less than train.batch_size={batch_size}. An epoch "
                f"is cut into whole batches, and there would be none. Set --config.train.batch_size to {records} or "
                "less."
            )
        self._records, self._batch, self._seed = records, batch_size, seed
        self._share = batch_size // host_count
        self._offset = host_index * self._share
        self._cache: tuple[int, np.ndarray] = (-1, np.empty(0, np.int64))

    @property
    def steps_per_epoch(self) -> int:
        """Batches of an epoch."""
        return self._records // self._batch

    def batch(self, position: int) -> tuple[int, np.ndarray]:
        """(epoch, this host's records) of batch number `position`, counted from 0 over all epochs."""
        epoch, step = divmod(position, self.steps_per_epoch)
        if self._cache[0] != epoch:
            sequence = np.random.SeedSequence((self._seed, _ORDER, epoch))
            self._cache = (epoch, np.random.Generator(np.random.PCG64(sequence)).permutation(self._records))
        start = step * self._batch + self._offset
        return epoch, self._cache[1][start : start + self._share]
