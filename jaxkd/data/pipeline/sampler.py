"""Order of the records as a function of the seed and the position, so that a run can resume at any position."""

from __future__ import annotations

import numpy as np

from jaxkd.errors import ConfigError, DataError

_ORDER, _RECORD = 0, 1  # streams of random numbers that must not meet
_ROUND = 256  # DeiT cuts an epoch of repeated augmentation to a multiple of this


def record_rng(seed: int, epoch: int, record: int, repeat: int) -> np.random.Generator:
    """Random generator of one copy of a record in one epoch; a function of its arguments only."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence((seed, _RECORD, epoch, record, repeat))))


class EpochSampler:
    """A new permutation of all records every epoch, cut into batches; the incomplete last batch is dropped (as timm).

    What an epoch is:

    - `repeats=1`: every record once, less those of the incomplete last batch.
    - `repeats>1`, repeated augmentation (Hoffer et al. 2020) as in DeiT's and timm's RepeatAugSampler: each record of
      the permutation stands `repeats` times in a row, and the epoch ends after floor(N / 256) * 256 samples (after N
      where N < 256), again less the incomplete last batch. It costs what an epoch without repeats costs, but shows only
      about N / `repeats` different records, another choice every epoch. Of ImageNet's 1,281,167 images, three repeats
      make an epoch of 1,281,024 samples of 427,008 images.

    The copies of a record are neighbours in the global batch. DeiT's processes take every world-th sample, which deals
    the copies out to different GPUs; a global batch, and so the gradient of a step, has the same samples either way.
    Here a host takes a contiguous share, so one device holds most copies. The global order does not depend on the
    number of hosts.

    With `views`, epoch e is epoch e mod `views` again: the same order and, through `record_rng`, the same augmentation.
    """

    def __init__(
        self,
        records: int,
        batch_size: int,
        seed: int,
        host_index: int = 0,
        host_count: int = 1,
        repeats: int = 1,
        views: int = 0,
    ):
        if repeats < 1 or repeats != int(repeats):
            raise ConfigError(f"data.repeats={repeats} is not a number of copies. Give 1 for none, or 3 as DeiT does.")
        samples = records // _ROUND * _ROUND if repeats > 1 and records >= _ROUND else records
        if samples < batch_size:
            cut = f", of which data.repeats={repeats} leaves {samples} samples an epoch (a multiple of {_ROUND})"
            raise DataError(
                f"The training split has {records} images{cut if samples < records else ''}, which is less than "
                f"train.batch_size={batch_size}. Set --config.train.batch_size to {samples} or less."
            )
        self._records, self._batch, self._seed, self._repeats = records, batch_size, seed, int(repeats)
        self._views = views
        self._share = batch_size // host_count
        self._offset = host_index * self._share
        self._cache: tuple[int, np.ndarray] = (-1, np.empty(0, np.int64))
        self.steps_per_epoch = samples // batch_size

    def batch(self, position: int) -> tuple[int, np.ndarray, np.ndarray]:
        """Batch number `position`, counted from 0 over all epochs.

        Returns:
          The epoch (below `views`, if given), this host's records (b,), and which copy of its record each is (b,),
          from 0 to `repeats` - 1.
        """
        epoch, step = divmod(position, self.steps_per_epoch)
        epoch = epoch % self._views if self._views else epoch
        if self._cache[0] != epoch:
            sequence = np.random.SeedSequence((self._seed, _ORDER, epoch))
            self._cache = (epoch, np.random.Generator(np.random.PCG64(sequence)).permutation(self._records))
        start = step * self._batch + self._offset
        places, copies = np.divmod(np.arange(start, start + self._share), self._repeats)
        return epoch, self._cache[1][places], copies
