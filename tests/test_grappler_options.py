"""Grappler's options for one function leave those of the process, and of other threads, alone."""

import threading

import keras
import pytest
import tensorflow as tf

import revkeras
from tests import blocks
from tests.graphs import graph_of_gradient
from tests.modes import built

pytestmark = pytest.mark.tensorflow("Grappler")

OPTIONS = "arithmetic_optimization", "constant_folding"


def options_of_calls(graph):
    """The options of Grappler with which a graph calls its functions."""
    found = []
    for operation in graph.get_operations():
        if operation.type.endswith("PartitionedCall"):
            config = tf.compat.v1.ConfigProto.FromString(operation.get_attr("config_proto"))
            found.append(config.graph_options.rewrite_options)
    return found


def options_seen():
    """The options that the process has, and those that a function traced here is called with."""
    inner = tf.function(lambda x: x + 1.0)

    @tf.function
    def outer(x):
        return inner(x)

    graph = outer.get_concrete_function(tf.TensorSpec(())).graph
    called_with = [options.SerializeToString() for options in options_of_calls(graph)]
    return tf.config.optimizer.get_experimental_options(), called_with


class Watching(blocks.Attention):
    """Attention that notes which options the code around it would see while it is traced."""

    seen = ()

    def call(self, x):
        found = [options_seen()]
        thread = threading.Thread(target=lambda: found.append(options_seen()))
        thread.start()
        thread.join()
        self.seen = [*self.seen, *found]
        return super().call(x)


@pytest.fixture(params=["unset", "set"])
def options(request):
    """The options of a user, who has set none or one. It is off by default, and may stay set."""
    if request.param == "set":
        tf.config.optimizer.set_experimental_options({"debug_stripper": False})
    return tf.config.optimizer.get_experimental_options()


def test_attention_changes_no_option_of_the_process_or_of_another_thread(options):
    expected = options_seen()
    layers = [Watching(4) for _ in range(2)]
    x = tf.ones((2, 3, 8))
    stack = built(revkeras.ReversibleSequential(layers, memory_mode="reversible"), x)
    graph_of_gradient(stack, x)
    assert tf.config.optimizer.get_experimental_options() == options
    assert options_seen() == expected
    seen = [found for layer in layers for found in layer.seen]
    assert len(seen) > 2
    assert all(found == expected for found in seen)


@pytest.mark.parametrize(("block", "as_written"), [(blocks.attention, True), (blocks.dense, False)])
def test_attention_alone_is_computed_as_written(options, block, as_written):
    x = tf.ones((2, 3, 8))
    stack = built(revkeras.ReversibleSequential([block(4) for _ in range(3)]), x)
    calls = options_of_calls(graph_of_gradient(stack, x))
    assert len(calls) >= 6  # two a block
    for found in calls:
        off = [getattr(found, option) == found.OFF for option in OPTIONS]
        assert off == [as_written] * 2
        assert (found.debug_stripper == found.OFF) is (options.get("debug_stripper") is False)


def test_a_gradient_of_a_gradient_is_computed_as_written_too():
    """There the call is no copy, and TensorFlow rewrites it."""
    x = tf.ones((2, 3, 8))
    stack = built(revkeras.ReversibleSequential([blocks.attention(4)]), x)

    @tf.function
    def second(x):
        with tf.GradientTape() as outer:
            outer.watch(x)
            with tf.GradientTape() as inner:
                inner.watch(x)
                y = keras.ops.sum(stack(x) ** 2)
            d = inner.gradient(y, x)
        return outer.gradient(d, x)

    calls = options_of_calls(second.get_concrete_function(x).graph)
    assert sum(found.arithmetic_optimization == found.OFF for found in calls) >= 2
