"""By tapes."""

import tensorflow as tf


def differentiated(layer, inputs, arguments, graph, jit_compile):
    """`(outputs, losses, gradients, state)`.

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
        return outputs, losses, tape.gradient(total, [*sources, *(w.value for w in weights)])

    if graph:
        step = tf.function(step, jit_compile=jit_compile, autograph=False)  # as Keras's own steps
    results = step()
    state = [v.numpy() for v in layer.variables]
    for variable, value in zip(layer.variables, before):
        variable.assign(value)
    return *results, state
