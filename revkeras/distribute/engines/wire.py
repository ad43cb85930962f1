"""The form in which tensors travel, where an engine has no kernel for their dtype."""

import tensorflow as tf

# What collectives compute in; others go as int32.
_WIRE_TYPES = (tf.float32, tf.float64, tf.float16, tf.bfloat16, tf.int32, tf.int64)


def to_wire(x: tf.Tensor) -> tf.Tensor:
    """`x` in a dtype that collectives compute in."""
    return x if x.dtype in _WIRE_TYPES else tf.cast(x, tf.int32)


def copyable(wire: tf.Tensor) -> tf.Tensor:
    """Gathers and broadcasts have no kernel for bfloat16; they only copy, so float16 does."""
    return tf.bitcast(wire, tf.float16) if wire.dtype == tf.bfloat16 else wire


def from_copy(copied: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
    """Undoes `copyable` and `to_wire`."""
    return tf.bitcast(copied, dtype) if dtype == tf.bfloat16 else tf.cast(copied, dtype)


def is_16_bit(dtype: tf.DType) -> bool:
    """Whether sums of it are taken in 32 bits."""
    return dtype in (tf.float16, tf.bfloat16)


def mean_of(total: tf.Tensor, size: int) -> tf.Tensor:
    """The mean whose sum over `size` ranks is `total`; rounded down for integers."""
    return total / size if total.dtype.is_floating else total // size
