"""The same distillation step in PyTorch with timm's networks, eager as people run it, to time ours against.

Needs the extra `parity`. Weights, images, labels, losses, decay groups, moving average and threads are those of the
JAX step; the spectral loss is the published one with its FFT. Images arrive prepared (normalised, erased, mixed), which
the JAX step does itself: what that costs counts against ours.
"""

from __future__ import annotations

import os
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict
from torch_import import import_timm

from jaxkd import tasks, weights
from jaxkd.distill.schedules import weight_schedule
from jaxkd.errors import ConfigError

PyTree = Any
TERMS = ("ce", "kl", "spectral", "mse")


class TorchPeer:
    """The three timed parts of a distillation task, in PyTorch.

    Args:
      config: of the run.
      task: the JAX task whose networks, weights and objective are mirrored.
      params: initial parameters of its student.
      images: (B, H, W, 3), as the student sees them in its first step.
      labels: (B,) integers or (B, K) probabilities.
      rate: learning rate.

    Raises:
      ConfigError: PyTorch or timm is missing, or the task has a part that is not mirrored.
    """

    def __init__(
        self, config: ConfigDict, task: Any, params: PyTree, images: np.ndarray, labels: np.ndarray, rate: float
    ):
        terms = [term.name for term in task.objective.terms]
        if not isinstance(task, tasks.DistillationTask) or getattr(task.student.model, "distillation_token", False):
            raise ConfigError(
                f'--peer=torch mirrors a teacher and a student with one head, not task="{config.task}" with '
                f'student.name="{config.student.name}". The comparison would time two different things. Leave --peer '
                "out, or use e.g. --config=configs/deit_cait.py."
            )
        if not set(terms) <= set(TERMS) or task.frozen is not None or config.optimizer.accumulate != 1:
            raise ConfigError(
                f"--peer=torch mirrors the terms {', '.join(TERMS)} without frozen layers and micro-batches; this run "
                f"has the terms {', '.join(terms)}. The comparison would time two different things. Leave --peer out, "
                "or change the config."
            )
        self.torch, timm = import_timm()
        torch = self.torch
        self.threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        torch.set_num_threads(self.threads)  # as many as XLA takes
        gpu = jax.default_backend() == "gpu" and torch.cuda.is_available()
        self.device = torch.device("cuda" if gpu else "cpu")
        self.name = torch.cuda.get_device_name() if gpu else "cpu"
        self.versions = {"torch": torch.__version__, "timm": timm.__version__}
        self.config, self.task = config, task
        self.teacher = self._network(timm, config.teacher, task.teacher, task.constants).eval()
        self.student = self._network(timm, config.student, task.student, {"params": params["student"]}).train()
        self.images = torch.from_numpy(images.transpose(0, 3, 1, 2).copy()).to(self.device)
        labels = labels.astype(np.float32 if labels.ndim == 2 else np.int64)
        self.labels = torch.from_numpy(labels).to(self.device)
        self.weights = {t.name: float(weight_schedule(t.weight, name=t.name)(0)) for t in task.objective.terms}
        self.pairs = task.objective.pairs
        kept = self.student.no_weight_decay()
        trained = [(n, p) for n, p in self.student.named_parameters() if p.requires_grad]
        plain = {n for n, p in trained if p.ndim <= 1 or n in kept or n.endswith("relative_position_bias_table")}
        self.params = [p for _, p in trained]
        self.optimizer = torch.optim.AdamW(
            [
                {"params": [p for n, p in trained if n not in plain]},
                {"params": [p for n, p in trained if n in plain], "weight_decay": 0.0},
            ],
            lr=rate,
            betas=(config.optimizer.b1, config.optimizer.b2),
            eps=config.optimizer.eps,
            weight_decay=config.optimizer.weight_decay,
            fused=True,
        )
        self.average = [p.detach().clone() for p in self.params] if config.ema.decay else None
        self.answer = self._answer()

    def _network(self, timm: Any, config: ConfigDict, network: Any, variables: PyTree) -> Any:
        args = {k: tuple(v) if isinstance(v, list | tuple) else v for k, v in config.args.items() if v is not None}
        args["img_size"], args["num_classes"] = network.image_size, network.num_classes
        model = timm.create_model(config.name, pretrained=False, **args)
        state = {k: self.torch.from_numpy(v.copy()) for k, v in weights.to_timm(network.model, variables).items()}
        missing, unexpected = model.load_state_dict(state, strict=False)
        wrong = unexpected + [k for k in missing if k in dict(model.named_parameters())]
        if wrong:
            raise ConfigError(
                f"timm's {config.name} and ours differ in {', '.join(wrong[:8])}. The comparison would time two "
                "different networks. Install the timm of the extra `parity`, or leave --peer out."
            )
        return model.to(self.device)

    def _renormalised(self, network: Any) -> Any:
        """The images as `network` wants them: the student's are, the teacher's constants may be others."""
        ours, theirs = self.task.student.spec, network.spec
        if (ours.mean, ours.std) == (theirs.mean, theirs.std):
            return self.images
        mean, std, new_mean, new_std = (
            self.torch.tensor(v, device=self.device)[:, None, None]
            for v in (ours.mean, ours.std, theirs.mean, theirs.std)
        )
        return (self.images * std + mean - new_mean) / new_std

    def _forward(self, model: Any, network: Any, taps: tuple[str, ...]) -> tuple[Any, dict[str, Any]]:
        """(logits, features by our names) with timm's own `forward_intermediates`."""
        half = self.config.precision.compute == "bfloat16"
        with self.torch.autocast(self.device.type, dtype=self.torch.bfloat16, enabled=half):
            images = self._renormalised(network)
            if not taps:
                return model(images), {}
            if not all(tap.rsplit("_", 1)[0] in ("block", "stage") and "." not in tap for tap in taps):
                raise ConfigError(
                    f"--peer=torch reads whole blocks and stages, not {', '.join(taps)}. timm hands out no others. "
                    "Leave --peer out, or pair block_i or stage_i."
                )
            indices = sorted(int(tap.rsplit("_", 1)[1]) for tap in taps)
            kind = taps[0].rsplit("_", 1)[0]
            last, maps = model.forward_intermediates(images, indices=indices, norm=False)
            return model.forward_head(last), {f"{kind}_{i}": m for i, m in zip(indices, maps, strict=True)}

    def _answer(self) -> tuple[Any, dict[str, Any]]:
        with self.torch.no_grad():
            return self._forward(self.teacher, self.task.teacher, self.task.objective.teacher_taps)

    def _loss(self, answer: tuple[Any, dict[str, Any]]) -> Any:
        functional = self.torch.nn.functional
        logits, maps = self._forward(self.student, self.task.student, self.task.objective.student_taps)
        logits, theirs, total = logits.float(), answer[0].float(), 0.0
        for name, weight in self.weights.items():
            if name == "ce":
                value = functional.cross_entropy(logits, self.labels, label_smoothing=self.config.label_smoothing)
            elif name == "kl":
                t = self.config.distill.temperature or 1.0
                ours, target = (functional.log_softmax(v / t, dim=-1) for v in (logits, theirs))
                value = functional.kl_div(ours, target, reduction="batchmean", log_target=True) * t * t
            else:
                values = [self._feature(name, maps[s], answer[1][t]) for s, t in self.pairs]
                value = sum(values) / len(values)
            total = total + weight * value
        return total

    def _feature(self, name: str, student: Any, teacher: Any) -> Any:
        """One pair of (B, C, H, W) maps, as in the published code."""
        torch = self.torch
        student, teacher = student.float(), teacher.float()
        channels = min(student.shape[1], teacher.shape[1])
        student, teacher = self._pooled(student, channels), self._pooled(teacher, channels)
        if name == "mse":
            return torch.nn.functional.mse_loss(student, teacher)
        ours, theirs = (torch.view_as_real(torch.fft.rfft2(v, norm="ortho")) for v in (student, teacher))
        return torch.nn.functional.mse_loss(ours, theirs)

    def _pooled(self, maps: Any, channels: int) -> Any:
        if maps.shape[1] == channels:
            return maps
        rows = self.torch.nn.functional.adaptive_avg_pool1d(maps.flatten(2).transpose(1, 2), channels)
        return rows.transpose(1, 2).unflatten(2, maps.shape[2:])

    def _done(self) -> None:
        if self.device.type == "cuda":
            self.torch.cuda.synchronize()

    def teacher_forward(self) -> None:
        """The teacher's logits and features."""
        with self.torch.inference_mode():
            self._forward(self.teacher, self.task.teacher, self.task.objective.teacher_taps)
        self._done()

    def student_forward_backward(self) -> None:
        """Loss and gradient of the student, the teacher's answer given."""
        self.optimizer.zero_grad(set_to_none=True)
        self._loss(self.answer).backward()
        self._done()

    def train_step(self) -> float:
        """The whole step; returns the loss before it."""
        torch = self.torch
        self.optimizer.zero_grad(set_to_none=True)
        loss = self._loss(self._answer())
        loss.backward()
        torch.nn.utils.get_total_norm([p.grad for p in self.params])  # ours reports it as well
        if self.config.optimizer.clip_norm:
            torch.nn.utils.clip_grad_norm_(self.params, self.config.optimizer.clip_norm)
        self.optimizer.step()
        if self.average is not None:
            with torch.no_grad():
                torch._foreach_lerp_(self.average, self.params, 1.0 - self.config.ema.decay)
        value = float(loss.detach())
        self._done()
        return value
