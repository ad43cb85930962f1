"""One call of one block in a stack, as a step of the gradient engine."""

import dataclasses
from collections.abc import Callable
from typing import Any

import keras

from revkeras import backprop
from revkeras.stateless import StatelessLayer, attach_mask, separate_tensors
from revkeras.step import Step


@dataclasses.dataclass(frozen=True)
class BlockCall:
    """A block with all that one call of it takes beside the stream.

    Attributes:
        layer: The block.
        couple: `couple([x0, x1], fx) -> [y0, y1]`.
        uncouple: `uncouple([y0, y1], fx) -> [x0, x1]`.
        training: `training` for the block, or `None`.
        mask: The stream's mask, or `None`.
        arguments: Further arguments of the block's `call()`.
    """

    layer: keras.layers.Layer
    couple: Callable
    uncouple: Callable
    training: bool | None
    mask: Any
    arguments: dict[str, Any]


class Operands:
    """The values that a stack's steps share, each once, however many steps read it."""

    def __init__(self) -> None:
        self.items: list = []  # Keras variables and tensors
        self._positions: dict[int, int] = {}

    def positions(self, items: list) -> tuple[int, ...]:
        """The places of `items` in the list; new ones go to its end."""
        for item in items:
            if id(item) not in self._positions:
                self._positions[id(item)] = len(self.items)
                self.items.append(item)
        return tuple(self._positions[id(item)] for item in items)

    def values(self) -> list:
        """The items as tensors."""
        variables = [v for v in self.items if isinstance(v, keras.Variable)]
        values = iter(backprop.snapshot(variables))
        return [next(values) if isinstance(v, keras.Variable) else v for v in self.items]


def call_plainly(call: BlockCall, streams: list) -> tuple[list, list]:
    """Calls the block as any Keras layer: `(streams, extras)`."""
    outputs = call.layer(
        attach_mask(streams[1], call.mask), **call.arguments, training=call.training
    )
    fx, extras = separate_update(outputs)
    return call.couple(streams, fx), extras


def as_step(call: BlockCall, weights: Operands, state: Operands) -> tuple[Step, Callable]:
    """The call as a pure step, its operands added to `weights` and `state`.

    Returns:
        `(step, unpack)`. Once the step has run, `unpack(sides)` gives
        `(extras, losses)`: what the block returned beside its update, and what
        it added as losses.
    """
    function = StatelessLayer.of(call.layer, call.training)
    floats, others, rebuild = separate_tensors((call.arguments, call.mask))
    n_weights, n_state = len(function.trainable), len(function.state)
    latest = {}

    def block(x: Any, weights: list, state: list) -> tuple[Any, list, dict]:
        arguments, mask = rebuild(weights[n_weights:], state[n_state:])
        outputs, losses, updates = function(
            weights[:n_weights], state[:n_state], attach_mask(x, mask), **arguments
        )
        fx, extras = separate_update(outputs)
        side_floats, side_others, latest["rebuild"] = separate_tensors((extras, losses))
        latest["n_floats"] = len(side_floats)
        return fx, [*side_floats, *side_others], updates

    def unpack(sides: list) -> tuple[list, list]:
        n = latest["n_floats"]
        return latest["rebuild"](sides[:n], sides[n:])

    step = Step(
        block,
        call.couple,
        call.uncouple,
        weights.positions([*function.trainable, *floats]),
        state.positions([*function.state, *others]),
    )
    return step, unpack


def separate_update(outputs: Any) -> tuple[Any, list]:
    """A block's output as the stream's update and the rest."""
    if isinstance(outputs, (tuple, list)):
        return outputs[0], list(outputs[1:])
    return outputs, []
