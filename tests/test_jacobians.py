"""Jacobians, whose loop over gradients TensorFlow vectorizes, are those of plain autodiff."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import revkeras
from tests.modes import in_mode

pytestmark = pytest.mark.tensorflow("Jacobians of tapes")

L = keras.layers

KINDS = {
    "lstm": lambda: L.LSTM(2, return_sequences=True),
    "gru": lambda: L.GRU(2, return_sequences=True),
    "rnn": lambda: L.SimpleRNN(2, return_sequences=True),
    "dropout": lambda: keras.Sequential([L.Dense(2, activation="tanh"), L.Dropout(0.5)]),
}


def jacobian(call, x, vectorize=True):
    tape, y = watched_call(call, x, persistent=not vectorize)
    return tape.jacobian(y, x, experimental_use_pfor=vectorize)


def batch_jacobian(call, x, vectorize=True):
    tape, y = watched_call(call, x, persistent=not vectorize)
    return tape.batch_jacobian(y, x, experimental_use_pfor=vectorize)


def watched_call(call, x, persistent):
    with tf.GradientTape(persistent=persistent) as tape:
        tape.watch(x)
        return tape, call(x, training=True)


PLACES = {
    "eager": lambda derivative, call, x: derivative(call, x),
    "in a graph": lambda derivative, call, x: tf.function(derivative)(call, x),
    "of a graph": lambda derivative, call, x: derivative(tf.function(call), x),
}


def stack_and_input(kind):
    keras.utils.set_random_seed(0)
    stack = revkeras.ReversibleSequential([KINDS[kind]() for _ in range(2)])
    x = tf.constant(np.random.default_rng(0).standard_normal((2, 2, 4)), tf.float32)
    stack(x)
    return stack, x


# Not all combinations: TensorFlow takes seconds to vectorize an LSTM.
@pytest.mark.parametrize(
    ("kind", "derivative", "place"),
    [
        ("lstm", jacobian, "eager"),
        ("lstm", batch_jacobian, "in a graph"),
        ("gru", batch_jacobian, "eager"),
        ("gru", jacobian, "in a graph"),
        ("rnn", jacobian, "of a graph"),
        ("dropout", jacobian, "eager"),
        ("dropout", batch_jacobian, "in a graph"),
        ("dropout", batch_jacobian, "of a graph"),
    ],
)
def test_jacobians_are_those_of_plain_autodiff(kind, derivative, place):
    stack, x = stack_and_input(kind)
    plain = in_mode(stack, "none")
    found = PLACES[place](derivative, stack, x)
    expected = derivative(plain, x, vectorize=False)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("place", PLACES)
def test_jacobians_have_gradients(place):
    def penalty(call, x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            size = tf.reduce_sum(jacobian(call, x) ** 2)
        return tape.gradient(size, x)

    stack, x = stack_and_input("dropout")
    plain = in_mode(stack, "none")
    found, expected = PLACES[place](penalty, stack, x), penalty(plain, x)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
