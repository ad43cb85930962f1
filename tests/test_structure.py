"""Layers of equal structures trace to equal graphs; what could depend on more has none."""

import sys

import keras
import pytest

import revkeras
from revkeras._stack.structure import structure_of
from tests import blocks
from tests.graphs import graph_of_gradient
from tests.modes import assert_same, built, in_mode, run_step

L = keras.layers


def attention():
    x = keras.Input((5, 4))
    return keras.Model(x, L.MultiHeadAttention(2, 2)(x, x))


def feed_forward(activation="gelu"):
    block = keras.Sequential([L.Dense(8, activation=activation), L.Dropout(0.1), L.Dense(4)])
    block.build((None, 4))
    return block


def structure(layer):
    return structure_of(layer, layer.variables)


@pytest.mark.parametrize("make", [attention, feed_forward])
def test_equal_layers_have_equal_structures(make):
    assert structure(make()) == structure(make()) is not None


def set_rate(block):
    block.layers[1].rate = 0.2


def freeze(block):
    block.layers[0].trainable = False


def hide_an_attribute(block):
    block.layers[2].hidden = 1


def change_its_type(block):
    block.layers[0].use_bias = 1


def share_a_layer(block):
    block.layers[2].__dict__["activation"] = keras.activations.relu


CHANGES = [set_rate, freeze, hide_an_attribute, change_its_type, share_a_layer]


@pytest.mark.parametrize("change", CHANGES)
def test_structures_show_what_changed(change):
    block = feed_forward()
    before = structure(block)
    change(block)
    assert structure(block) != before


def test_the_order_of_values_counts():
    block = feed_forward()
    variables = block.variables
    assert structure_of(block, variables) != structure_of(block, variables[::-1])


class Doubled(L.Dense):
    def call(self, x):
        return 2 * super().call(x)


def replaced():
    layer = L.Dense(4)
    layer.call = lambda x: x
    return layer


FOREIGN = {
    "subclass": lambda: Doubled(4),
    "lambda": lambda: L.Lambda(lambda x: x),
    "activation": lambda: L.Dense(4, activation=lambda x: x),
    "call": replaced,
    "inside": lambda: keras.Sequential([L.Dense(4), Doubled(4)]),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_none_for_code_that_may_depend_on_anything(kind):
    assert structure_of(FOREIGN[kind]()) is None


def test_none_for_a_method_that_was_replaced(monkeypatch):
    monkeypatch.setattr(L.Dense, "call", lambda self, x: x)
    assert structure_of(L.Dense(4)) is None


def n_traced(monkeypatch, layer, x, **arguments):
    """How many blocks are traced to be compared."""
    passes = sys.modules["revkeras._engine.tensorflow.passes"]
    found, fingerprint = [], passes.fingerprint
    monkeypatch.setattr(passes, "fingerprint", lambda *a: found.append(1) or fingerprint(*a))
    graph_of_gradient(layer, x, **arguments)
    return len(found)


@pytest.mark.tensorflow("traces of a graph")
def test_equal_blocks_are_traced_once(monkeypatch):
    x = keras.random.normal((6, 8), seed=1)
    stack = built(revkeras.ReversibleSequential([blocks.dropout(4) for _ in range(5)]), x)
    assert n_traced(monkeypatch, stack, x, training=True) == 1
    set_on = stack.layers[2]
    set_on.hidden = 1
    assert n_traced(monkeypatch, stack, x, training=True) == 2


def test_blocks_that_return_more_and_are_not_traced():
    """What they return beside their update is found where the first one left it."""

    def block():
        x = keras.Input((5, 4))
        y, scores = L.MultiHeadAttention(2, 2)(x, x, return_attention_scores=True)
        return keras.Model(x, [y, scores])

    x = keras.random.normal((2, 5, 8), seed=1)
    stack = built(revkeras.ReversibleSequential([block() for _ in range(3)]), x)
    assert_same(run_step(stack, x), run_step(in_mode(stack, "none"), x))
