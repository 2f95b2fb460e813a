"""Files that the pages of the documentation need: a trained run, its exports, weights and a photograph.

One network is trained for two steps at toy size. `runs/first_light/teacher` and `runs/student` are both this run.
"""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

SHORT = ("--config.data.workers=0", "--config.log.tensorboard=False", "--config.ema.decay=0.5")
SIZE = {"img_size": 16, "patch_size": 8, "embed_dim": 8, "depth": 1, "num_heads": 2}


def prepare(folder: Path) -> None:
    """Fills `folder`, through the commands that the pages show."""
    import jax
    import numpy as np
    from PIL import Image
    from safetensors.numpy import save_file

    from jaxkd import convert, main, models, weights

    def done(command, *words: str) -> None:
        said = io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            code = command.main(list(words))
        assert code == 0, f"{words} ended with {code}:\n{said.getvalue()}"

    rng = np.random.default_rng(0)
    (folder / "photos/val/bird").mkdir(parents=True)
    for name in ("photo.jpg", "photos/val/bird/0801.jpg"):
        Image.fromarray(rng.integers(0, 255, (20, 24, 3)).astype(np.uint8)).save(folder / name)

    run, enlarge = folder / "runs/first_light/teacher", folder / "runs/enlarge"
    size = [f"--config.student.args.{name}={value}" for name, value in SIZE.items()]
    steps = ("--config.train.steps=2", "--config.train.batch_size=8", "--config.schedule.warmup_epochs=0")
    done(main, "--config=supervised:embedded", f"--workdir={run}", *size, *steps, *SHORT)
    (folder / "runs/student").symlink_to(run)
    done(convert, f"--weights={run}", f"--out={folder / 'digits.onnx'}", "--with-preprocessing")
    done(convert, f"--weights={run}", f"--out={folder / 'digits.stablehlo'}")

    (folder / "pieces").mkdir()
    for i in range(2):
        Image.fromarray(rng.integers(0, 255, (64, 64, 3)).astype(np.uint8)).save(folder / f"pieces/{i}.png")
    small = ("--config.student.args.num_feat=4", "--config.student.args.num_block=1", "--config.data.patches.size=32")
    steps = ("--config.schedule.steps=2", "--config.train.batch_size=2")
    data = (f"--config.data.source={folder / 'pieces'}", f"--config.eval.sets=('a={folder / 'pieces'}',)")
    done(main, "--config=mdbn_x4", f"--workdir={enlarge}", *data, *small, *steps, *SHORT)

    model = models.create("deit_tiny_patch16_224", num_classes=4)
    shapes = models.abstract_variables(model, (1, 224, 224, 3))
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    save_file(weights.to_timm(model, zeros), folder / "student.safetensors")
