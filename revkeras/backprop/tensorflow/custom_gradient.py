"""Gradients of our own, which live as long as the graph that they are made in.

TensorFlow's registry, where what differentiates whole graphs looks, forgets nothing, and in a
graph `tf.custom_gradient` puts the gradient there itself: with its graph and all weights that it
knows, so each model that was called in a graph stayed for ever. Here it gets to know a name.
"""

import contextlib
import functools
import itertools
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf
from tensorflow.python.eager import record

from revkeras.backprop.tensorflow.bundle import bundle
from revkeras.backprop.tensorflow.graph import kept_by_graph

_numbers_of_gradients = itertools.count()


def with_gradient(function: Callable, *arguments: Any) -> Any:
    """Calls `function(*arguments) -> (results, gradient, kept)`; the results have that gradient.

    `gradient(kept, *dresults)` returns a list with one for each tensor of the arguments. `kept`
    is a structure of the tensors that it reads: all of which there is one for each block.
    """
    if tf.executing_eagerly():

        @tf.custom_gradient
        def run(*arguments: Any) -> tuple[Any, Callable]:
            results, gradient, kept = function(*arguments)
            return results, functools.partial(gradient, kept)

        return run(*arguments)
    arguments = tf.nest.map_structure(tf.convert_to_tensor, arguments)  # variables are read once
    results, gradient, kept = function(*arguments)
    given, flat = tf.nest.flatten(arguments), tf.nest.flatten(results)
    n = len(flat)
    # Saving a gradient takes TensorFlow the square of the number of tensors that it reads.
    unbundle = bundle(kept)

    def of_copies(operation: tf.Operation | None, *doutputs: Any) -> list:
        exported = operation is None
        return [*[None] * n, *gradient(unbundle() if exported else kept, *doutputs[:n])]

    with _differentiated_by(of_copies):
        copies = tf.identity_n([*flat, *given])[:n]
    record.record_operation("with_gradient", copies, given, functools.partial(gradient, kept))
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

    # AutoGraph, which an export uses, would take as long as all the rest.
    @tf.RegisterGradient(name)
    @tf.autograph.experimental.do_not_convert
    def resolved(operation: tf.Operation | None, *doutputs: Any) -> list:
        return found()(operation, *doutputs)

    graph = tf.compat.v1.get_default_graph()
    with record.stop_recording(), graph.gradient_override_map({"IdentityN": name}):
        yield
