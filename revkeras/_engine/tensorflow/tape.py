"""A tape for measurements."""

import tensorflow as tf


def gradient_tape() -> tf.GradientTape:
    """A tape that records what comes of the tensors it is told to `watch`, and nothing else."""
    return tf.GradientTape(watch_accessed_variables=False)
