"""Unreadable images: each is logged once and counted, and too many of them are an error."""

from __future__ import annotations

import logging
import threading

from jaxkd.errors import DataError

MAX_BROKEN = 0.01  # share of unreadable records that pipelines accept unless told otherwise
_LOG = logging.getLogger(__name__)


class BrokenImages:
    """Collects unreadable records of a split; safe to use from several threads.

    Attributes:
      found: record number (as text, so that it can be JSON) -> what is wrong with it.
    """

    def __init__(self, records: int, most: float):
        self.found: dict[str, str] = {}
        self._records, self._most = records, most
        self._lock = threading.Lock()

    def add(self, broken: dict[str, str]) -> None:
        """Notes unreadable records, each once."""
        with self._lock:
            new = {k: v for k, v in broken.items() if k not in self.found}
            self.found |= new
            for reason in new.values():
                _LOG.warning("Skipped. %s", reason)
            if len(self.found) > self._most * self._records:
                shown, more = list(self.found.values())[:20], len(self.found) - 20
                raise DataError(
                    f"{len(self.found)} of {self._records} images cannot be read, more than the share "
                    f"data.max_broken={self._most}. Repair or remove them, or raise data.max_broken. "
                    + " | ".join(shown + [f"and {more} more"] * (more > 0))
                )
