"""Gradients of our own, which live as long as the graph that they are made in.

Inside a graph, `tf.custom_gradient` stores the gradient in a global registry that is never
cleared. The gradient keeps its graph and weights alive, so every traced model leaked. We
register only a name that resolves to a weak reference.
"""

import itertools
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from revkeras._engine.tensorflow._private import record
from revkeras._engine.tensorflow.graph import copy_with_gradient, detached, kept_by_graph
from revkeras._engine.tensorflow.keeping import Keeping
from revkeras._engine.tensorflow.replayable import refuse_untracked
from revkeras._engine.tensorflow.unread import where_read

_numbers_of_gradients = itertools.count()


def with_gradient(function: Callable, *arguments: Any) -> Any:
    """Calls `function(*arguments) -> (results, gradient)`; the results have that gradient.

    `gradient(*dresults)` gets `None` for each result that the loss does not depend on. It
    returns a list with one gradient, or `None`, for each tensor of the arguments. One that reads
    tensors of every block is a `Keeping`.
    """
    arguments = tf.nest.map_structure(tf.convert_to_tensor, arguments)  # variables are read once
    results, gradient = function(*arguments)
    given, flat = tf.nest.flatten(arguments), tf.nest.flatten(results)
    n = len(flat)
    copies = _differentiated_by(_after_graph(gradient, n), [*flat, *given])[:n]
    connected: list = []

    def from_tape(*dresults: Any) -> list:
        chosen = [d if any(d is c for c in connected) else None for d in dresults]
        connected.clear()
        return gradient(*chosen)

    record.record_operation("with_gradient", copies, given, from_tape, _refuse_forward_mode)
    return tf.nest.pack_sequence_as(results, [_noting(connected, y) for y in copies])


def custom_vjp(
    run: Callable,
    back: Callable,
    inputs: Any,
    weights: list,
    state: list,
    place: Callable,
    keeps: str,
) -> tuple:
    """Calls `run(inputs, weights, state) -> (results, kept)`; the results have the gradient `back`.

    No tape sees what happens in `run`. The first result is of floating-point tensors; the second
    are further ones, whose gradients are asked for; what follows has none.

    Args:
        back: `back(known, doutputs, dsides, weights, kept)`, from what is known and the gradients
            of the first two results, returns those of `inputs` and `weights`. Gradients are
            `None` where there is none.
        place: `place()` is a scope in which weights and state live.
        keeps: What is known then: `"results"`, the first of them, or `"inputs"`.
    """
    known = []  # as tapes know it: through this, gradients have gradients

    def function(inputs: Any, _: list) -> tuple[tuple, Keeping]:
        with tf.GradientTape() as watcher:
            with place():
                own = detached(weights), where_read(detached, state)
            results, kept = run(detached(inputs), *own)
        refuse_untracked(watcher.watched_variables())

        def grad(kept: tuple, *dresults: Any) -> list:
            doutputs, dsides, _ = tf.nest.pack_sequence_as(results, dresults)
            dinputs, dweights = back(known[0], doutputs, dsides, *kept)
            return [*tf.nest.flatten(dinputs), *dweights]

        return results, Keeping.of(grad, (weights, kept))

    with place():
        scalars = stand_ins(weights)
    results = with_gradient(function, inputs, scalars)
    known.append(inputs if keeps == "inputs" else results[0])
    return results


def stand_ins(values: list) -> list[tf.Tensor]:
    """Scalars whose gradients, of whatever shape, are those of `values`.

    `with_gradient` copies its arguments in one operation with its results, and so to the
    results' device. With these for arguments, values stay where they are.
    """
    if tf.executing_eagerly():
        return values
    zeros = {}
    for dtype in dict.fromkeys(value.dtype for value in values):
        # Any shape, as the gradient's is the value's.
        zeros[dtype] = tf.compat.v1.placeholder_with_default(tf.zeros((), dtype), None)
    scalars = []
    for value in values:
        scalar, _ = _identity(_stand_in_gradient(value), [zeros[value.dtype], value])
        record.record_operation("stand_in", [scalar], [value], lambda d: [d], _refuse_forward_mode)
        scalars.append(scalar)
    return scalars


_stand_in_gradients: set[str] = set()  # those that TensorFlow's registry has


def _stand_in_gradient(value: tf.Tensor) -> str:
    """The name of a gradient; an export traces it once, for one dtype and shape."""
    sizes = "unknown" if value.shape.rank is None else "x".join(map(str, value.shape))
    name = f"RevkerasStandIn{value.dtype.name}.{sizes}"
    if name not in _stand_in_gradients:
        tf.RegisterGradient(name)(lambda operation, dscalar, dcopy: [None, dscalar])
        _stand_in_gradients.add(name)
    return name


def _noting(connected: list, y: tf.Tensor) -> tf.Tensor:
    """`y`; its gradient, if it gets one, is put into `connected`.

    A tape makes zeros for outputs of an operation that have no gradient. Weights that the loss
    does not depend on would get zeros too where plain Keras has `None`.
    """

    def gradient(dy: tf.Tensor) -> tf.Tensor:
        connected.append(tf.identity(dy))
        return connected[-1]

    return copy_with_gradient(y, gradient)


def _refuse_forward_mode(*_: Any) -> None:
    raise NotImplementedError(
        "`tf.autodiff.ForwardAccumulator` cannot differentiate what revkeras computes again in the "
        "backward pass. Use `tf.GradientTape`, two of them for products with a Hessian, or "
        "`memory_mode='none'`, where TensorFlow sees every operation."
    )


def _after_graph(gradient: Callable, n: int) -> Callable:
    """The gradient of an operation with `n` results, for what differentiates whole graphs."""

    def of_operation(operation: Any, *doutputs: Any) -> list:
        chosen = [None if _is_filled_in(d) else d for d in doutputs[:n]]
        # An export traces the gradient of no operation.
        is_saved = operation is None and isinstance(gradient, Keeping)
        return [*[None] * n, *(gradient.saved if is_saved else gradient)(*chosen)]

    return of_operation


def _is_filled_in(d: Any) -> bool:
    """Whether a symbolic gradient is the zeros that TensorFlow makes where there is none."""
    if d is None or d.op.type == "ZerosLike":
        return True
    if d.op.type == "Fill":
        return tf.get_static_value(d.op.inputs[1]) == 0
    return d.op.type == "Const" and not np.any(tf.get_static_value(d))


def _differentiated_by(gradient: Callable, tensors: list) -> list[tf.Tensor]:
    """Copies of the tensors with this gradient in graphs; no tape sees them."""
    if tf.executing_eagerly():
        with record.stop_recording():
            return [tf.identity(x) for x in tensors]
    kept_by_graph("gradients", list).append(gradient)
    found = weakref.ref(gradient)

    # AutoGraph, by which an export traces it, would take as long as all else in the gradient.
    @tf.autograph.experimental.do_not_convert
    def resolved(operation: Any, *doutputs: Any) -> list:
        gradient = found()
        if gradient is None:
            raise LookupError(
                "The graph in which a revkeras layer was called is gone, and its gradient with it. "
                "Keep the `tf.function`, `tf.Graph` or model that the graph belongs to for as long "
                "as you differentiate what was made of it."
            )
        return gradient(operation, *doutputs)

    name = f"Revkeras{next(_numbers_of_gradients)}"
    tf.RegisterGradient(name)(resolved)
    return _identity(name, tensors)


def _identity(gradient: str, tensors: list) -> list[tf.Tensor]:
    graph = tf.compat.v1.get_default_graph()
    with record.stop_recording(), graph.gradient_override_map({"IdentityN": gradient}):
        return tf.identity_n(tensors)
