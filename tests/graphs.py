"""The graph of a gradient, and what stands in it."""

import tensorflow as tf


def graph_function(layer, x, **arguments):
    """A traced function from an input like `x` to the gradients at it and at the weights."""

    @tf.function
    def gradient(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = tf.reduce_sum(layer(x, **arguments))
        return tape.gradient(y, [x, *(w.value for w in layer.trainable_variables)])

    return gradient.get_concrete_function(x)


def graph_of_gradient(layer, x, **arguments):
    """The graph of a step's gradient, with the functions that it calls."""
    return graph_function(layer, x, **arguments).graph


def operations(graph, kind):
    """How often an operation stands in the functions that a graph calls."""
    functions = graph.as_graph_def().library.function
    return sum(node.op == kind for function in functions for node in function.node_def)
