"""Gradient checkpointing for any one layer."""

from typing import Any

import keras

from revkeras._engine import verbs, walk
from revkeras._engine.carry import APART, Carry
from revkeras._engine.step import Step
from revkeras._keras import call_signature, set_call_signature
from revkeras._stack.operands import Operands
from revkeras._stack.stateless import (
    Packing,
    StatelessLayer,
    is_built,
    separate_tensors,
    spec_of,
    take_effect,
)
from revkeras._stack.structure import structure_of


def call_checkpointed(
    layer: keras.layers.Layer,
    residence: Any,
    owner: keras.layers.Layer,
    training: bool | None,
    args: tuple,
    kwargs: dict,
) -> Any:
    """Calls a layer, whose values live in `residence`, with gradient checkpointing.

    The losses that it adds in its `call()` become those of `owner`.
    """
    if not is_built(layer):
        layer(*spec_of(args), **spec_of(kwargs))
    if residence.in_place and not verbs.may_be_replayed():
        return layer(*args, training=training, **kwargs)
    weights, state = Operands(), Operands()
    step, inputs = _step(layer, training, args, kwargs, weights, state)
    read_state = residence.read if training else verbs.read_late(residence.read)
    _, (side,), updates = walk.checkpointed(
        [step], APART, inputs, weights.values(residence.read), state.values(read_state), residence
    )
    outputs, losses = step.packing.unpack(side)
    take_effect(owner, state.items, updates, losses)
    return outputs


def _step(
    layer: keras.layers.Layer,
    training: bool | None,
    args: tuple,
    kwargs: dict,
    weights: Operands,
    state: Operands,
) -> tuple[Step, Carry]:
    """The call as a step, whose sides are all that it returns, and the carry that it takes."""
    function = StatelessLayer.of(layer, training)
    floats, others, rebuild = separate_tensors((args, kwargs))
    n_state = len(function.state)
    packing = Packing()

    def block(source: list, weights: list, state: list) -> tuple[list, list, dict]:
        args, kwargs = rebuild(source, state[n_state:])
        outputs, losses, updates = function(weights, state[:n_state], *args, **kwargs)
        return [], packing.pack((outputs, losses)), updates

    # Eagerly nothing is traced.
    owners = (*function.trainable, *function.state)
    structure = None if verbs.is_eager() else structure_of(layer, owners)
    arguments = structure and structure_of(spec_of((args, kwargs)))
    step = Step(
        f"Layer '{layer.name}' (of type {type(layer).__name__})",
        lambda carry: list(carry.streams),
        block,
        lambda carry, fx: Carry(()),
        None,
        None,
        weights.positions(function.trainable),
        state.positions([*function.state, *others]),
        packing,
        arguments and (structure, arguments, training),
        owners=function.trainable,
        state_owners=(*function.state, *others),
        inference=training is False,
    )
    return step, Carry(tuple(floats))


@keras.saving.register_keras_serializable(package="revkeras")
class Checkpoint(keras.layers.Wrapper):
    """Keeps a layer's input for the gradient and computes its inside again.

    For a layer that is not reversible ([Chen et al.,
    2016](https://arxiv.org/abs/1604.06174)). Dropout draws the same bits in the
    recomputation, and seeds and statistics move once a step.

    Args:
        layer: The Keras layer or model to wrap.
        **kwargs: Arguments of `keras.layers.Layer`, such as `name`.

    Call arguments:
        *args: What the wrapped layer takes, passed on to it.
        training: Boolean, as in any Keras layer.
        **kwargs: Further arguments of the wrapped layer.

    Returns:
        What the wrapped layer returns.

    Example:

    >>> import keras, revkeras
    >>> wide = keras.Sequential([keras.layers.Dense(64, activation="gelu"), keras.layers.Dense(8)])
    >>> revkeras.Checkpoint(wide)(keras.ops.ones((2, 8))).shape
    TensorShape([2, 8])
    """

    def __init__(self, layer: keras.layers.Layer, **kwargs: Any):
        if not isinstance(layer, keras.layers.Layer):
            raise TypeError(
                "Invalid value for argument `layer`: expected a Keras layer, received "
                f"layer={layer!r} (of type {type(layer).__name__})."
            )
        # The wrapped layer casts its inputs and weights by its own policy.
        kwargs = {"dtype": layer.dtype_policy.variable_dtype, **kwargs, "autocast": False}
        super().__init__(layer, **kwargs)
        self.supports_masking = layer.supports_masking
        self.supports_jit = verbs.joins_compile
        self.residence = verbs.residence(None)  # sharded training gives it another
        set_call_signature(self, call_signature(layer))

    def build(self, input_shape: Any = None) -> None:
        self.built = True  # the layer inside is built by the first call, with all its arguments

    def call(self, *args: Any, training: bool | None = None, **kwargs: Any) -> Any:
        return call_checkpointed(self.layer, self.residence, self, training, args, kwargs)

    def compute_output_shape(self, *args: Any, **kwargs: Any) -> Any:
        return self.layer.compute_output_shape(*args, **kwargs)

    def compute_output_spec(self, *args: Any, **kwargs: Any) -> Any:
        return self.layer(*args, **kwargs)

    def compute_mask(self, inputs: Any, previous_mask: Any) -> Any:
        return self.layer.compute_mask(inputs, previous_mask)
