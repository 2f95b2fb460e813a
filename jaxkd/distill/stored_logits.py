"""A compact form of a teacher's logits, for a cache on disk."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd.errors import ConfigError

LOG_PROBS, CLASSES = "teacher_log_probs", "teacher_classes"


@dataclass(frozen=True)
class LogitFormat:
    """Log-probabilities of a teacher's `top_k` likeliest classes, and one number for all others.

    The others share the rest of the probability evenly, as in TinyViT (arXiv 2207.10666) and FKD (arXiv 2112.01528),
    which derive it from the kept probabilities. Our choice: it is stored, as the logarithm of the others' mean
    probability, because one minus a sum near one keeps few digits. Log-probabilities are the logits without a constant
    of each image, on which no term of this package depends.

    Attributes:
      num_classes: K.
      top_k: k, the classes that are kept; 0 for all, which loses nothing but what `dtype` rounds.
      dtype: of the log-probabilities, "float32" or "float16".

    Raises:
      ConfigError: fewer classes than `top_k`.
    """

    num_classes: int
    top_k: int = 0
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if self.top_k > self.num_classes:
            raise ConfigError(
                f"teacher.cache.top_k={self.top_k} is more than the {self.num_classes} classes of the teacher. Set it "
                "to 0 for all of them, or to a smaller number."
            )

    @property
    def keeps_all(self) -> bool:
        """Whether the log-probabilities of all classes are kept."""
        return self.top_k in (0, self.num_classes)

    @property
    def arrays(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Name -> shape and type of what is stored for one image."""
        if self.keeps_all:
            return {LOG_PROBS: jax.ShapeDtypeStruct((self.num_classes,), np.dtype(self.dtype))}
        return {
            LOG_PROBS: jax.ShapeDtypeStruct((self.top_k + 1,), np.dtype(self.dtype)),
            CLASSES: jax.ShapeDtypeStruct((self.top_k,), np.min_scalar_type(self.num_classes - 1)),
        }

    @property
    def bytes_per_image(self) -> int:
        """Size of `arrays`."""
        return sum(math.prod(a.shape) * a.dtype.itemsize for a in self.arrays.values())

    def pack(self, logits: jax.Array) -> dict[str, jax.Array]:
        """(B, K) logits -> `arrays` of B images: the kept log-probabilities, likeliest first, then that of the others.

        Where all classes are kept they stay in their order.
        """
        log_probs = jax.nn.log_softmax(logits.astype(jnp.float32))
        if self.keeps_all:
            return {LOG_PROBS: log_probs.astype(self.dtype)}
        kept, classes = jax.lax.top_k(log_probs, self.top_k)
        others = jax.vmap(lambda row, place: row.at[place].set(-jnp.inf))(log_probs, classes)
        others = jax.nn.logsumexp(others, axis=1, keepdims=True) - math.log(self.num_classes - self.top_k)
        return {
            LOG_PROBS: jnp.concatenate([kept, others], axis=1).astype(self.dtype),
            CLASSES: classes.astype(self.arrays[CLASSES].dtype),
        }

    def unpack(self, stored: Mapping[str, jax.Array]) -> jax.Array:
        """(B, K) fp32 log-probabilities, which stand for the logits; `stored` may hold other arrays too."""
        values = stored[LOG_PROBS].astype(jnp.float32)
        if self.keeps_all:
            return values
        whole = jnp.broadcast_to(values[:, -1:], (values.shape[0], self.num_classes))
        classes = stored[CLASSES].astype(jnp.int32)
        return jax.vmap(lambda row, place, new: row.at[place].set(new))(whole, classes, values[:, :-1])
