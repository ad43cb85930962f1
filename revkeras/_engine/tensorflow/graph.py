"""What keeps TensorFlow from merging, reordering or recording what must not be."""

import contextlib
import functools
import sys
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from revkeras._engine.step import Step
from revkeras._engine.tensorflow._private import (
    NOT_INLINED,
    is_op_determinism_enabled,
    may_be_differentiated,
    record,
    set_attribute,
    take_gradient,
)
from revkeras._engine.tensorflow.tracing import tensors_of
from revkeras.debugging import checks_enabled


def has_float64() -> bool:
    """Whether float64 has 64 bits."""
    return True


# In a program of the whole model, XLA merges a recomputation with the forward pass and puts off
# weight gradients: memory would grow with depth again.
joins_compile = False
eager_scope = tf.init_scope
is_eager = tf.executing_eagerly


def may_be_replayed() -> bool:
    """Whether anything could ask for the gradient of what is computed now."""
    return not tf.executing_eagerly() or record.could_possibly_record()


def replaying(step: Step) -> Step:
    """The step: its random numbers come from its state alone."""
    return step


def unchanged_draws() -> contextlib.AbstractContextManager:
    """Nothing to keep: random numbers come from layers' states alone."""
    return contextlib.nullcontext()


def snapshot(variables: Sequence) -> list[tf.Tensor]:
    """The variables' values as they are now.

    Read here, because `variable.value` is the `tf.Variable` itself: a seed read
    through it in the backward pass has already moved on.
    """
    return [tf.convert_to_tensor(v if isinstance(v, tf.Variable) else v.value) for v in variables]


def are_initialized(variables: Sequence) -> bool:
    """Whether all variables have values; those made while a graph is traced get them later."""
    with tf.init_scope():
        return all(
            bool(v.value.is_initialized()) for v in variables if isinstance(v.value, tf.Variable)
        )


def require(condition: tf.Tensor, message: str, tensors: list) -> list:
    """`tensors`, once `condition` is found to be true; else an error when the graph runs."""
    with tf.control_dependencies([tf.debugging.Assert(condition, [message])]):
        return [tf.identity(x) for x in tensors]


def kept_by_graph(name: str, make: Callable[[], Any]) -> Any:
    """What the graph that is being traced keeps under a name; at first, what `make()` returns.

    It lives as long as the graph. A weak dictionary's values would keep their graph alive.
    """
    graph = tf.compat.v1.get_default_graph()
    name = f"_revkeras_{name}"
    if not hasattr(graph, name):
        setattr(graph, name, make())
    return getattr(graph, name)


def forgotten_by_graph(name: str) -> None:
    """Undoes `kept_by_graph`."""
    delattr(tf.compat.v1.get_default_graph(), f"_revkeras_{name}")


def compiles_by_default() -> bool:
    """Whether Keras would have XLA compile a model that does not say."""
    return (
        any(device.device_type != "CPU" for device in tf.config.list_physical_devices())
        and sys.platform != "darwin"
        and not tf.distribute.has_strategy()
        and not is_op_determinism_enabled()
    )


def one_piece(function: Callable, as_written: bool = False) -> Callable:
    """`function` as one indivisible operation of the graph.

    Grappler merges a recomputation with the forward pass (Dropout's masks stayed
    alive, one a block) and the executor puts off weight gradients and keeps what
    they need. It does neither across a function that it must not inline.

    Eagerly it is the function as it is. What ran eagerly may be differentiated in a graph.
    With `as_written`, Grappler does not reorder the arithmetic in it either.
    """
    # Not made before: a `tf.function` takes 0.4 ms.
    in_graph = functools.cache(lambda: _one_operation(function, as_written))

    def call(*args: Any) -> Any:
        return (function if tf.executing_eagerly() else in_graph())(*args)

    return call


def _one_operation(function: Callable, as_written: bool) -> Callable:
    function = tf.function(function, autograph=False, experimental_attributes=NOT_INLINED)
    if not as_written:
        return repeated(function)

    def call(*args: Any) -> Any:
        results = function(*args)
        _keep_arithmetic_as_written(made_by(results))
        return results

    return repeated(call)


def repeated(function: Callable) -> Callable:
    """A `tf.function` whose later calls in a graph are copies of the operation of the first.

    A call through TensorFlow's own Python took 6 ms, and a copy takes half of one. Tapes
    do not see it: where one could ask for a gradient, the call is an ordinary one.
    """
    first = {}  # results, by what was given

    def call(*args: Any) -> Any:
        flat = tf.nest.flatten(args)
        given = [x for x in flat if x is not None]
        if may_be_differentiated(given):
            return function(*args)
        graph = tf.compat.v1.get_default_graph()
        key = id(graph), *specs(flat)
        if key not in first:
            first[key] = function(*args)
            return first[key]
        outputs = copy_of(made_by(first[key]), given)
        return tf.nest.map_structure(
            lambda y: None if y is None else outputs[y.value_index], first[key]
        )

    return call


def specs(tensors: Sequence) -> tuple:
    """The dtypes and shapes of tensors, `None` where there is none, to compare by."""
    return tuple(x if x is None else (x.dtype, str(x.shape)) for x in tensors)


def copy_of(operation: tf.Operation, tensors: list) -> list[tf.Tensor]:
    """The outputs of the same operation on other tensors."""
    graph = tf.compat.v1.get_default_graph()
    copy = graph.create_op(
        operation.type,
        [*tensors, *operation.inputs[len(tensors) :]],
        [y.dtype for y in operation.outputs],
        attrs=dict(operation.node_def.attr),
    )
    take_gradient(copy, operation)
    for y, like in zip(copy.outputs, operation.outputs, strict=True):
        y.set_shape(like.shape)
    return copy.outputs


def shared(function: Callable, *key: Any) -> Callable:
    """`function` as one operation, traced once for all that have the same key in a graph.

    A graph takes about 15 KiB for each operation. Eagerly, the function as it is.
    """
    if tf.executing_eagerly():
        return function
    known = kept_by_graph("shared", dict)
    if key not in known:
        known[key] = one_piece(function)
    return known[key]


def made_by(results: Any) -> tf.Operation:
    """The operation that calls a `tf.function`, from what the call returned."""
    return next(y.op for y in tf.nest.flatten(results) if y is not None)


def _keep_arithmetic_as_written(call: tf.Operation) -> None:
    """Tells Grappler so for the function that one operation calls.

    `tf.config.optimizer` would tell all threads, and cannot take back an option that was unset.
    """
    config = tf.compat.v1.ConfigProto.FromString(call.get_attr("config_proto"))
    options = config.graph_options.rewrite_options
    options.arithmetic_optimization = options.constant_folding = options.OFF
    value = tf.compat.v1.AttrValue(s=config.SerializeToString(deterministic=True))
    set_attribute(call, "config_proto", value)


def after(gate: Any, values: Any) -> Any:
    """The values, once the tensors of `gate` are there; either may have `None` in it.

    Dropout's draws depend on the seed alone: the executor made those of later
    blocks while the first were computing, and the drawn tensors waited in memory.
    """
    with tf.control_dependencies(tensors_of(gate)):
        return tf.nest.map_structure(lambda x: None if x is None else tf.identity(x), values)


def detached(tensors: Any) -> Any:
    """The tensors, unknown to any tape: what is computed from them is not recorded."""
    flat = tf.nest.flatten(tensors)
    if tf.executing_eagerly() or not flat:
        return tf.nest.map_structure(tf.stop_gradient, tensors)
    with record.stop_recording():  # one operation for all: each takes a while to make
        return tf.nest.pack_sequence_as(tensors, tf.identity_n(flat))


def vjp(function: Callable, *arguments: Any) -> tuple[Any, Callable]:
    """`function(*arguments)`, and its vector-Jacobian product.

    Arguments are copied for it. On a tape, a tensor that appears in two places, such as a block's
    input and its output, receives the gradient of both in each of them.

    Returns:
        `(outputs, pull_back)`: `pull_back(doutputs)`, callable once, returns gradients in
        the structure of the arguments. Either side has `None` where there is no gradient.
    """
    with tf.GradientTape() as tape:
        copies = tf.nest.map_structure(tf.identity, arguments)
        tape.watch(tf.nest.flatten(copies))
        outputs = function(*tf.nest.map_structure(_with_gradient_of_its_own, copies))

    def pull_back(doutputs: Any) -> tuple:
        pairs = [
            (y, dy)
            for y, dy in zip(tf.nest.flatten(outputs), tf.nest.flatten(doutputs), strict=True)
            if dy is not None and y.dtype.is_floating
        ]
        flat = tf.nest.flatten(copies)
        found = [None] * len(flat)
        if pairs:
            found = tape.gradient([y for y, _ in pairs], flat, [dy for _, dy in pairs])
        found = [None if d is None else tf.convert_to_tensor(d) for d in found]
        return tf.nest.pack_sequence_as(copies, found)

    return outputs, pull_back


def _with_gradient_of_its_own(x: tf.Tensor) -> tf.Tensor:
    """A copy of `x`, for which a tape finds a gradient that is no other tensor's too.

    A tape never frees what it finds for two tensors, such as the gradient of both terms of a sum.
    Eager training leaked a stream for each block at each step, tracing leaked the graph.
    """
    return copy_with_gradient(x, tf.identity)


def copy_with_gradient(x: tf.Tensor, gradient: Callable[[tf.Tensor], tf.Tensor]) -> tf.Tensor:
    """A copy of `x`; on tapes, `gradient(dcopy)` is what comes to `x` of the copy's gradient."""
    with record.stop_recording():
        copy = tf.identity(x)
    record.record_operation("copy", [copy], [x], lambda dcopy: [gradient(dcopy)])
    return copy


def finite(tensors: Any, subject: str) -> Any:
    """The tensors; where checks are enabled, an error if one has values that are not finite."""
    if not checks_enabled():
        return tensors
    message = f"{subject} values that are not finite"
    return tf.nest.map_structure(lambda x: tf.debugging.check_numerics(x, message), tensors)
