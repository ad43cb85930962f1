"""Gradients of our own, which live as long as the graph that they are made in.

TensorFlow's registry, where what differentiates whole graphs looks, forgets nothing, and in a
graph `tf.custom_gradient` puts the gradient there itself: with its graph and all weights that it
knows, so each model that was called in a graph stayed for ever. Here it gets to know a name.
"""

import contextlib
import itertools
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf
from tensorflow.python.eager import record

from revkeras.backprop.tensorflow.graph import kept_by_graph

_numbers_of_gradients = itertools.count()


def with_gradient(function: Callable, *arguments: Any) -> Any:
    """Calls `function(*arguments) -> (results, gradient)`; the results have that gradient.

    `gradient(*dresults)` returns a list with one for each tensor of the arguments.
    """
    if tf.executing_eagerly():
        return tf.custom_gradient(function)(*arguments)
    arguments = tf.nest.map_structure(tf.convert_to_tensor, arguments)  # variables are read once
    results, gradient = function(*arguments)
    given, flat = tf.nest.flatten(arguments), tf.nest.flatten(results)
    n = len(flat)

    def of_copies(*doutputs: Any) -> list:
        return [*[None] * n, *gradient(*doutputs[:n])]

    with _differentiated_by(of_copies):
        copies = tf.identity_n([*flat, *given])[:n]
    record.record_operation("with_gradient", copies, given, gradient)
    return tf.nest.pack_sequence_as(results, copies)


def stand_in(values: list, dvalues: list) -> tf.Tensor:
    """A scalar that stands for `values` on tapes; what differentiates it puts their gradients.

    They are in `dvalues` by then. `with_gradient` copies its arguments in one operation with its
    results, and so to the results' device; this copies none on tapes, which in a graph make zeros
    for each copy: a quarter of the graph of a deep stack.
    """
    if tf.executing_eagerly():

        @tf.custom_gradient
        def zero(*_):
            return tf.zeros(()), lambda _: list(dvalues)

        return zero(*values)
    with _differentiated_by(lambda *_: [None, *dvalues]):
        token = tf.identity_n([tf.zeros(()), *values])[0]
    record.record_operation("stand_in", [token], list(values), lambda _: list(dvalues))
    return token


@contextlib.contextmanager
def _differentiated_by(gradient: Callable) -> Iterator[None]:
    """The `tf.identity_n` made inside has this gradient, and no tape sees it."""
    kept_by_graph("gradients", list).append(gradient)
    name, found = f"Revkeras{next(_numbers_of_gradients)}", weakref.ref(gradient)
    # Exports name its arguments as it does, and `_` is no name in a graph.
    tf.RegisterGradient(name)(lambda operation, *doutputs: found()(*doutputs))
    graph = tf.compat.v1.get_default_graph()
    with record.stop_recording(), graph.gradient_override_map({"IdentityN": name}):
        yield
