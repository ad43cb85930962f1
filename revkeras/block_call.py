"""One call of one block in a stack, as a step of the gradient engine."""

import dataclasses
from collections.abc import Callable
from typing import Any

import keras

from revkeras import backprop
from revkeras.couplings import Coupling
from revkeras.stateless import StatelessLayer, attach_mask, separate_tensors
from revkeras.step import Step


@dataclasses.dataclass(frozen=True)
class BlockCall:
    """A block with all that one call of it takes beside the stream.

    Attributes:
        layer: The block.
        name: What errors call it.
        coupling: How the streams take in its output.
        training: `training` for the block, or `None`.
        mask: The stream's mask, or `None`.
        arguments: Further arguments of the block's `call()`.
    """

    layer: keras.layers.Layer
    name: str
    coupling: Coupling
    training: bool | None
    mask: Any
    arguments: dict[str, Any]

    def separate(self, outputs: Any, stream: Any) -> tuple[list, list]:
        """The block's output as `(fx, extras)`: lists of what it is for, and of the rest."""
        try:
            fx, extras = self.coupling.separate(outputs, stream)
        except ValueError as error:
            raise ValueError(f"{self.name} {error}.") from None
        return list(fx) if isinstance(fx, tuple) else [fx], extras

    def couple(self, streams: list, fx: list) -> list:
        return self.coupling.couple(streams, self._cast(fx, streams[0].dtype))

    def uncouple(self, outputs: list, fx: list) -> list:
        return self.coupling.uncouple(outputs, self._cast(fx, outputs[0].dtype))

    def _cast(self, fx: list, dtype: Any) -> Any:
        # A block may compute in 16 bits beside streams of 32.
        fx = [keras.ops.cast(t, dtype) for t in fx]
        return fx[0] if len(fx) == 1 else tuple(fx)


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
    fx, extras = call.separate(outputs, streams[1])
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
        fx, extras = call.separate(outputs, x)
        side_floats, side_others, latest["rebuild"] = separate_tensors((extras, losses))
        latest["n_floats"] = len(side_floats)
        return fx, [*side_floats, *side_others], updates

    def unpack(sides: list) -> tuple[list, list]:
        n = latest["n_floats"]
        return latest["rebuild"](sides[:n], sides[n:])

    step = Step(
        block,
        call.couple,
        call.coupling.source,
        call.uncouple,
        weights.positions([*function.trainable, *floats]),
        state.positions([*function.state, *others]),
    )
    return step, unpack
