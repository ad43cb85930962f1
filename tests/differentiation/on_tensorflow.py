"""By tapes."""

import numpy as np
import tensorflow as tf

FAILED_CHECK = tf.errors.InvalidArgumentError  # when a program runs


def value_and_gradients(function, sources, variables=(), graph=False, jit_compile=False):
    """What `function(*sources)` returns, and the gradients of the sum of all its numbers.

    The gradients are those of the sources, which are tensors, and then of the variables. They may
    be taken inside of such a function, for gradients of gradients.
    """
    sources = list(map(tf.convert_to_tensor, sources))

    def run():
        with tf.GradientTape() as tape:
            tape.watch(sources)
            outputs = function(*sources)
            totals = [tf.reduce_sum(y) for y in tf.nest.flatten(outputs) if y.dtype.is_floating]
            total = tf.add_n(totals)
        found = tape.gradient(total, [*sources, *(v.value for v in variables)])
        return outputs, [d if d is None else tf.convert_to_tensor(d) for d in found]

    return (in_graph(run, jit_compile=jit_compile) if graph else run)()


def in_graph(function, variables=(), jit_compile=False):
    """`function` compiled; it may assign to `variables`."""
    return tf.function(function, jit_compile=jit_compile, autograph=False)  # as Keras's own steps


def jacobian(function, x):
    """Of each row of a batch, of what function returns for it, put into one vector.

    By one gradient for each output: vectorizing them takes longer.
    """
    with tf.GradientTape(persistent=True) as tape:
        x = tf.convert_to_tensor(x)
        tape.watch(x)
        y = _joined(function(x))
        totals = [tf.reduce_sum(y[:, i]) for i in range(y.shape[-1])]
    return np.stack([_joined(tape.gradient(total, x)) for total in totals], axis=1)


def differentiated(layer, inputs, arguments, graph, jit_compile):
    """`(outputs, losses, gradients, state)` of one forward and backward pass.

    The gradients are those of a sum over the outputs and losses: of the inputs, of the floating
    arguments and of the trainable weights.
    """
    floats = [v for v in arguments.values() if tf.is_tensor(v) and v.dtype.is_floating]
    sources = [*inputs, *floats]
    feed = inputs[0] if len(inputs) == 1 else inputs
    before = [v.numpy() for v in layer.variables]

    def step():
        with tf.GradientTape() as tape:
            tape.watch(sources)
            outputs = tf.nest.flatten(layer(feed, **arguments))
            losses = list(layer.losses)
            total = sum(tf.reduce_sum(tf.cast(y, "float64") ** 2 * 0.1) for y in outputs)
            total += sum(tf.cast(loss, "float64") for loss in losses)
        weights = layer.trainable_variables
        found = tf.nest.flatten(tape.gradient(total, [*sources, *(w.value for w in weights)]))
        return outputs, losses, [d if d is None else tf.convert_to_tensor(d) for d in found]

    results = (in_graph(step, jit_compile=jit_compile) if graph else step)()
    state = [v.numpy() for v in layer.variables]
    for variable, value in zip(layer.variables, before):
        variable.assign(value)
    return *results, state


def _joined(tensors):
    rows = [tf.reshape(t, (t.shape[0], -1)) for t in tf.nest.flatten(tensors)]
    return tf.concat(rows, -1)
