"""Gradients in a loop that TensorFlow vectorizes, as `tape.jacobian` does.

The loop differentiates once for each output. TensorFlow turns its operations into ones that
compute all rounds at a time. A value that it stacks so, one for each round, cannot be read
by the loop of an LSTM: TensorFlow has no gradient for that. What is rebuilt is the same in each
round, but TensorFlow takes all that such a loop has computed to differ.
"""

import functools
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from revkeras._engine.carry import Carry
from revkeras._engine.tensorflow._private import (
    default_conversion,
    same_in_all_rounds,
    vectorize_by,
)
from revkeras._engine.tensorflow.graph import copy_of, made_by
from revkeras._engine.tensorflow.tracing import tensors_of


def rebuilding_once(backward: Callable) -> Callable:
    """A step's `backward`, see `Passes`, that rebuilds once for all rounds of a vectorized loop."""

    def call(carry: Carry, dcarry: Carry, weights: list, state: list, dsides: list) -> tuple:
        results = backward(carry, dcarry, weights, state, dsides)
        if not tf.executing_eagerly():
            parts = (carry, False), (dcarry, True), ((weights, state), False), (dsides, True)
            varies = [varies for part, varies in parts for _ in tensors_of(part)]
            rebuilt = [x.value_index for x in tensors_of(results[0])]
            # TensorFlow calls this where an operation has it, instead of its own converter.
            vectorize_by(made_by(results), functools.partial(_vectorized, varies, rebuilt))
        return results

    return call


def _vectorized(varies: list[bool], rebuilt: list[int], operation: Any) -> list:
    """All rounds of an operation, with the outputs `rebuilt` computed once.

    Args:
        varies: Whether each input is a gradient, which those outputs do not depend on.
        rebuilt: Their positions among the operation's outputs.
        operation: The operation and its inputs, as TensorFlow gives them to a converter.
    """
    outputs = default_conversion(operation)
    captured = [False] * (operation.num_inputs - len(varies))
    given = list(zip(operation.inputs, [*varies, *captured], strict=True))
    if any(x.is_stacked and not varies for x, varies in given):
        return outputs  # an outer loop's rounds differ in it
    # A function of its own, because tapes do not see copies.
    once = tf.function(functools.partial(copy_of, operation.op), autograph=False)
    once = once([_of_one_round(x) for x, _ in given])
    for i in rebuilt:
        outputs[i] = same_in_all_rounds(once[i])
    return outputs


def _of_one_round(x: Any) -> tf.Tensor:
    return tf.zeros(tf.shape(x.t)[1:], x.t.dtype) if x.is_stacked else x.t
