"""The same distillation step in PyTorch with timm's networks, for step_time.py to compare with.

Needs the extra `parity`. Weights, images, labels, losses, decay groups, moving average and threads are those of the
JAX step; the spectral loss is the published one with its FFT. Images arrive prepared (normalised, erased, mixed), which
the JAX step does itself: that work counts against jaxkd. Three forms: eager with autocast, as most people run it;
torch.compile of each block, which compiles in seconds; and torch.compile of the teacher's forward pass and of the
student's loss, which takes minutes.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cached_property
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
FORMS = ("eager", "compile_blocks", "compile")


class TorchPeer:
    """The three timed parts of a distillation task, in PyTorch.

    Args:
      config: of the run.
      task: the JAX task whose networks, weights and objective are mirrored.
      params: initial parameters of its student.
      images: (B, H, W, 3), as the student sees them in its first step.
      labels: (B,) integers or (B, K) probabilities.
      rate: learning rate.
      form: one of `FORMS`.

    Raises:
      ConfigError: PyTorch or timm is missing, or a tap or a network that timm does not have; see `check_mirrored`.
    """

    def __init__(
        self,
        config: ConfigDict,
        task: Any,
        params: PyTree,
        images: np.ndarray,
        labels: np.ndarray,
        rate: float,
        *,
        form: str = "eager",
    ):
        self.torch, timm = import_timm()
        torch = self.torch
        self.threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        torch.set_num_threads(self.threads)  # as many as XLA takes
        gpu = jax.default_backend() == "gpu" and torch.cuda.is_available()
        self.device = torch.device("cuda" if gpu else "cpu")
        self.name = torch.cuda.get_device_name() if gpu else "cpu"
        self.versions = {"torch": torch.__version__, "timm": timm.__version__}
        self._held = torch.cuda.memory_allocated() if gpu else 0  # by an earlier peer in this process
        self.config, self.task = config, task
        self.images = torch.from_numpy(images.transpose(0, 3, 1, 2).copy()).to(self.device)
        labels = labels.astype(np.float32 if labels.ndim == 2 else np.int64)
        self.labels = torch.from_numpy(labels).to(self.device)
        teacher = self._network(timm, config.teacher, task.teacher, task.constants).eval()
        student = self._network(timm, config.student, task.student, {"params": params["student"]}).train()
        self._build_optimizer(student, rate)
        self._teacher = self._forward(teacher, task.teacher, task.objective.teacher_taps)
        self._loss = self._student_loss(self._forward(student, task.student, task.objective.student_taps))
        if form == "compile":
            torch._dynamo.reset()
            self._teacher = torch.compile(self._teacher, dynamic=False)  # compiled for its shapes, as XLA does
            self._loss = torch.compile(self._loss, dynamic=False)
        elif form == "compile_blocks":
            torch._dynamo.reset()
            for block in (*_blocks(teacher), *_blocks(student)):
                block.compile(dynamic=False)

    def _build_optimizer(self, student: Any, rate: float) -> None:
        config, kept = self.config, student.no_weight_decay()
        trained = [(n, p) for n, p in student.named_parameters() if p.requires_grad]
        plain = {n for n, p in trained if p.ndim <= 1 or n in kept or n.endswith("relative_position_bias_table")}
        self.params = [p for _, p in trained]
        self.optimizer = self.torch.optim.AdamW(
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

    def _network(self, timm: Any, config: ConfigDict, network: Any, variables: PyTree) -> Any:
        args = {k: tuple(v) if isinstance(v, list | tuple) else v for k, v in config.args.items() if v is not None}
        args["img_size"], args["num_classes"] = network.image_size, network.num_classes
        model = timm.create_model(config.name, pretrained=False, **args)
        state = {k: self.torch.from_numpy(v.copy()) for k, v in weights.to_timm(network.model, variables).items()}
        missing, unexpected = model.load_state_dict(state, strict=False)
        wrong = unexpected + [k for k in missing if k in dict(model.named_parameters())]
        if wrong:
            raise ConfigError(
                f"timm's {config.name} and that of jaxkd differ in {', '.join(wrong[:8])}, so the comparison would "
                "time two different networks. Install the timm of the extra `parity`, or leave --peer out."
            )
        return model.to(self.device)

    def _renormalise(self, network: Any) -> Callable[[Any], Any]:
        """From the student's normalisation to that of `network`, whose constants may be others."""
        given, wanted = self.task.student.spec, network.spec
        if (given.mean, given.std) == (wanted.mean, wanted.std):
            return lambda images: images
        mean, std, new_mean, new_std = (np.array(v) for v in (given.mean, given.std, wanted.mean, wanted.std))
        scale, shift = (
            self.torch.tensor(v, dtype=self.torch.float32, device=self.device)[:, None, None]
            for v in (std / new_std, (mean - new_mean) / new_std)
        )
        return lambda images: images * scale + shift

    def _forward(self, model: Any, network: Any, taps: tuple[str, ...]) -> Callable[[Any], tuple[Any, dict[str, Any]]]:
        """Images -> (logits, features by the names of jaxkd), with timm's own `forward_intermediates`."""
        if not all(tap.rsplit("_", 1)[0] in ("block", "stage") and "." not in tap for tap in taps):
            raise ConfigError(
                f"--peer=torch reads whole blocks and stages, not {', '.join(taps)}: timm returns no others. "
                "Leave --peer out, or pair block_i or stage_i."
            )
        torch, kind, renormalise = self.torch, self.device.type, self._renormalise(network)
        half = self.config.precision.compute == "bfloat16"
        names = {int(tap.rsplit("_", 1)[1]): tap for tap in taps}
        indices = sorted(names)

        def forward(images: Any) -> tuple[Any, dict[str, Any]]:
            with torch.autocast(kind, dtype=torch.bfloat16, enabled=half):
                images = renormalise(images)
                if not indices:
                    return model(images), {}
                last, maps = model.forward_intermediates(images, indices=indices, norm=False)
                return model.forward_head(last), {names[i]: m for i, m in zip(indices, maps, strict=True)}

        return forward

    def _student_loss(self, forward: Callable[[Any], tuple[Any, dict[str, Any]]]) -> Callable[..., Any]:
        """(images, labels, teacher logits, teacher maps) -> the weighted sum of all terms."""
        torch, config, task = self.torch, self.config, self.task
        functional = torch.nn.functional
        weight_of = {t.name: float(weight_schedule(t.weight, name=t.name)(0)) for t in task.objective.terms}
        pairs = task.objective.pairs
        smoothing, temperature = float(config.label_smoothing), float(config.distill.temperature or 1.0)

        def loss(images: Any, labels: Any, teacher_logits: Any, teacher_maps: dict[str, Any]) -> Any:
            logits, maps = forward(images)
            logits, teacher_logits, total = logits.float(), teacher_logits.float(), 0.0
            for name, weight in weight_of.items():
                if name == "ce":
                    value = functional.cross_entropy(logits, labels, label_smoothing=smoothing)
                elif name == "kl":
                    given, target = (functional.log_softmax(v / temperature, dim=-1) for v in (logits, teacher_logits))
                    value = functional.kl_div(given, target, reduction="batchmean", log_target=True) * temperature**2
                else:
                    values = [_feature_loss(torch, name, maps[s], teacher_maps[t]) for s, t in pairs]
                    value = sum(values) / len(values)
                total = total + weight * value
            return total

        return loss

    @cached_property
    def _answer(self) -> tuple[Any, dict[str, Any]]:
        """The teacher's output, computed once, for the part that is timed without the teacher."""
        return self._teach()

    def _teach(self) -> tuple[Any, dict[str, Any]]:
        with self.torch.no_grad():
            return self._teacher(self.images)

    def _wait(self) -> None:
        if self.device.type == "cuda":
            self.torch.cuda.synchronize()

    def teacher_forward(self) -> None:
        """The teacher's logits and features."""
        self._teach()
        self._wait()

    def student_forward_backward(self) -> None:
        """Loss and gradient of the student, the teacher's output given."""
        answer = self._answer
        self.optimizer.zero_grad(set_to_none=True)
        self._loss(self.images, self.labels, *answer).backward()
        self._wait()

    def train_step(self) -> float:
        """The whole step; returns the loss before it."""
        torch = self.torch
        self.optimizer.zero_grad(set_to_none=True)
        loss = self._loss(self.images, self.labels, *self._teach())
        loss.backward()
        torch.nn.utils.get_total_norm([p.grad for p in self.params])  # jaxkd reports it as well
        if self.config.optimizer.clip_norm:
            torch.nn.utils.clip_grad_norm_(self.params, self.config.optimizer.clip_norm)
        self.optimizer.step()
        if self.average is not None:
            with torch.no_grad():
                torch._foreach_lerp_(self.average, self.params, 1.0 - self.config.ema.decay)
        value = float(loss.detach())
        self._wait()
        return value

    def peak_megabytes(self) -> float | None:
        """Peak of PyTorch's allocator (2^20 bytes) in two train steps, without what an earlier peer holds; GPU only."""
        if self.device.type != "cuda":
            return None
        self.train_step()  # the optimiser's moments are made in the first
        self.torch.cuda.empty_cache()
        self.torch.cuda.reset_peak_memory_stats()
        self.train_step()
        return (self.torch.cuda.max_memory_allocated() - self._held) / 2**20


def _blocks(model: Any) -> list[Any]:
    """Transformer blocks of a network of timm; those of one class share a compiled program."""
    stages = model.layers if hasattr(model, "layers") else [model]
    return [b for stage in stages for b in (*stage.blocks, *getattr(stage, "blocks_token_only", ()))]


def check_mirrored(config: ConfigDict, task: Any) -> None:
    """Raises ConfigError: PyTorch or timm is missing, or the task has a part that is not mirrored."""
    import_timm()
    terms = [term.name for term in task.objective.terms]
    if not isinstance(task, tasks.DistillationTask) or getattr(task.student.model, "distillation_token", False):
        raise ConfigError(
            f'--peer=torch mirrors a teacher and a student with one head, not task="{config.task}" with '
            f'student.name="{config.student.name}". Leave --peer out, or use e.g. --config=configs/deit_cait.py.'
        )
    if not set(terms) <= set(TERMS) or task.frozen is not None or config.optimizer.accumulate != 1:
        raise ConfigError(
            f"--peer=torch mirrors the terms {', '.join(TERMS)} without frozen layers and micro-batches; this run "
            f"has the terms {', '.join(terms)}. Leave --peer out, or change the config."
        )


def _feature_loss(torch: Any, name: str, student: Any, teacher: Any) -> Any:
    """One pair of (B, C, H, W) maps, as in the published code."""
    student, teacher = student.float(), teacher.float()
    channels = min(student.shape[1], teacher.shape[1])
    student, teacher = _pool_channels(torch, student, channels), _pool_channels(torch, teacher, channels)
    if name != "mse":
        student, teacher = (torch.view_as_real(torch.fft.rfft2(v, norm="ortho")) for v in (student, teacher))
    return torch.nn.functional.mse_loss(student, teacher)


def _pool_channels(torch: Any, maps: Any, channels: int) -> Any:
    if maps.shape[1] == channels:
        return maps
    rows = torch.nn.functional.adaptive_avg_pool1d(maps.flatten(2).transpose(1, 2), channels)
    return rows.transpose(1, 2).unflatten(2, maps.shape[2:])
