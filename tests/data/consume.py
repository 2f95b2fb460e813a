"""Consumes training batches like a run does, for test_kill.py: logs what it saw, then saves its position, every step.

python consume.py FOLDER STATE LOG STEPS WORKERS REPEATS
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

from jaxkd.data import AugmentConfig, Prefetcher, TrainPipeline, open_source


def main(folder: str, state_file: str, log_file: str, steps: str, workers: str, repeats: str) -> None:
    pipeline = TrainPipeline(
        open_source(folder, "train"),
        batch_size=16,
        image_size=(32, 32),
        seed=7,
        augment=AugmentConfig(),
        workers=int(workers),
        repeats=int(repeats),
    )
    saved = Path(state_file)
    if saved.exists():
        pipeline.set_state(json.loads(saved.read_text()))
    batches = Prefetcher(pipeline)
    with open(log_file, "a") as log:
        while batches.get_state()["position"] < int(steps):
            batch = next(batches)
            digest = hashlib.sha256(batch["image"].tobytes() + batch["label"].tobytes()).hexdigest()
            log.write(f"{batches.get_state()['position']} {digest}\n")
            log.flush()
            temporary = saved.with_suffix(".tmp")
            temporary.write_text(json.dumps(batches.get_state()))
            temporary.replace(saved)
    batches.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
