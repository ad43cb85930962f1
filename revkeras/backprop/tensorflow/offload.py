"""Weights that stay in the host's memory and come to the device one step at a time."""

import contextlib
from typing import Any

import tensorflow as tf


def host() -> str:
    """The full name of the host, which a scope around it does not change."""
    with tf.init_scope(), tf.device(None), tf.device("CPU:0"):
        return tf.zeros(()).device


def place(offload: str | None) -> contextlib.AbstractContextManager:
    """Where variables are made, and their values read: on the host, or wherever it is now."""
    return tf.device(host()) if offload else contextlib.nullcontext()


def is_on_host(variable: Any) -> bool:
    """Whether a Keras variable lives in the host's memory."""
    return variable.value.device == host()


def fetched(values: Any, offload: str | None, gate: list) -> Any:
    """`values`, which leave the host when the tensors of `gate` are there.

    A value is sent to the device that reads it as soon as it exists. Without the
    wait, the weights of all steps arrived there while the first was computing.
    """
    if not offload:
        return values
    with place(offload), tf.control_dependencies(gate):
        return tf.nest.map_structure(tf.identity, values)
