"""Word-level EEG of people who read sentences: the text of `data.source` -> an `EegCorpus`.

    corpus = open_eeg("embedded:synthetic_zuco?snr=16&subjects=12&seed=0")

See `synthetic_zuco.SyntheticZuco` for the settings of the synthetic corpus.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from jaxkd.data.sources.eeg_corpus import EegCorpus
from jaxkd.data.sources.synthetic_zuco import EMBEDDED_EEG, SyntheticZuco, synthetic_corpus
from jaxkd.errors import DataError, did_you_mean, first_few


def open_eeg(source: str, *, subjects: Sequence[str] | None = None) -> EegCorpus:
    """The readings of a corpus of word-level EEG.

    Args:
      source: "embedded:synthetic_zuco", with settings after a question mark.
      subjects: codes of the subjects to read; None is all.

    Raises:
      DataError: the source does not exist, or has not one of `subjects`.
    """
    name = source.partition("?")[0]
    if name not in EMBEDDED_EEG:
        raise DataError(
            f'data.source="{source}" does not exist.{did_you_mean(name, EMBEDDED_EEG)} There is: '
            f"{', '.join(EMBEDDED_EEG)}."
        )
    return _of_subjects(synthetic_corpus(SyntheticZuco.parse(source)), source, subjects)


def _of_subjects(corpus: EegCorpus, source: str, subjects: Sequence[str] | None) -> EegCorpus:
    if subjects is None:
        return corpus
    unknown = sorted(set(subjects) - set(corpus.subjects))
    if unknown:
        raise DataError(
            f'"{source}" has no readings of {first_few(unknown, 5)}. The subjects are: {", ".join(corpus.subjects)}.'
        )
    return corpus.select(np.isin(corpus.subject, list(subjects)))
