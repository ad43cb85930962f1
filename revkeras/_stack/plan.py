"""What a call of a stack comes to: its layers' calls in order, with the shapes between them."""

import dataclasses
import weakref
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import keras

from revkeras._engine.carry import Layout
from revkeras._stack.block_call import BlockCall
from revkeras._stack.call_arguments import argument_names
from revkeras._stack.invertible_call import InvertibleCall, is_invertible
from revkeras._stack.streams import stream_shape, whole_shape
from revkeras.couplings import Coupling

# By stack. In an attribute, Keras and TensorFlow would track and save them.
_known: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()
_MOST = 64  # plans of one stack: each length of a sequence has its own


@dataclasses.dataclass(frozen=True)
class Plan:
    """The calls of a stack's layers, for inputs of one shape.

    Attributes:
        couplings: Those that it was made for.
        calls: One for each layer. Without masks and arguments, until `bound`.
        sources: What each layer is called on, as a `KerasTensor`.
        stream_shape: The shape of a stream at the end.
        latents: The shapes of the tensors that leave the stack on the way.
    """

    couplings: Sequence[Coupling]
    calls: list[BlockCall | InvertibleCall]
    sources: list[keras.KerasTensor]
    stream_shape: tuple
    latents: list[tuple]

    def bound(self, masks: Sequence, arguments: dict[str, Any]) -> "Plan":
        """The plan with the masks of both streams, or `None` each, and the blocks' arguments."""
        if not arguments and all(mask is None for mask in masks):
            return self
        calls = [call.bound(masks, arguments) for call in self.calls]
        return dataclasses.replace(self, calls=calls)


def plan_of(
    stack: Any, signature: Hashable, make: Callable[[], Plan], lasts: Callable[[], bool]
) -> Plan:
    """The stack's plan for calls of one signature, kept for later calls if it `lasts()`."""
    plans = _known.setdefault(stack, {})
    if signature in plans:
        return plans[signature]
    plan = make()
    if lasts():
        if len(plans) == _MOST:
            plans.clear()
        plans[signature] = plan
    return plan


def make_plan(
    layers: Sequence[keras.layers.Layer],
    couplings: Sequence[Coupling],
    shape: tuple,
    layout: Layout,
    axis: int | None,
    *,
    dtype: str,
    training: bool | None,
    log_det: bool,
    jit_compile: bool,
    build: Callable[[BlockCall, keras.KerasTensor], None],
) -> Plan:
    """The plan for calls of one signature.

    Args:
        layers: The stack's layers.
        couplings: One for each of them that is a block.
        shape: The shape of a stream at the start.
        layout: How the input holds the streams.
        axis: The axis on which it is split, if it is.
        dtype: The dtype of the streams.
        training: `training` for the layers.
        log_det: Whether log-determinants are summed.
        jit_compile: Whether XLA compiles those layers that support it.
        build: Builds a block, where it is not built.
    """
    calls, sources, latents = [], [], []
    placed = (c.at(i, len(couplings)) for i, c in enumerate(couplings))
    reads, fits = 1, True
    for index, layer in enumerate(layers):
        name = f"Block {index} ('{layer.name}', of type {type(layer).__name__})"
        if is_invertible(layer):
            if log_det and not hasattr(layer, "log_det_jacobian"):
                raise ValueError(
                    f"{name} does not define `log_det_jacobian(inputs)`, which "
                    "`return_log_det=True` asks for."
                )
            source = keras.KerasTensor(whole_shape(shape, layout, axis), dtype=dtype)
            shape, more = _shapes_after(layer, name, source, layout, axis)
            latents.extend(more * layout.n_tensors)
            call = InvertibleCall(layer, name, layout, len(more), training, log_det, jit_compile)
            fits = fits and layer.supports_masking
        else:
            source = keras.KerasTensor(shape, dtype=dtype)
            accepts, coupling = frozenset(argument_names(layer)), next(placed)
            at = reads if fits else None
            call = BlockCall(layer, name, coupling, dtype, training, accepts, at, jit_compile)
            reads = 1 - reads if coupling.swaps else reads
            build(call, source)
        calls.append(call)
        sources.append(source)
    return Plan(couplings, calls, sources, shape, latents)


def _shapes_after(
    layer: keras.layers.Layer,
    name: str,
    source: keras.KerasTensor,
    layout: Layout,
    axis: int | None,
) -> tuple[tuple, list[tuple]]:
    """The shape of a stream after an invertible layer, and those of the tensors that leave."""
    outputs = layer.compute_output_spec(source) if layer.built else layer(source)
    head, *latents = outputs if isinstance(outputs, (tuple, list)) else [outputs]
    if head.dtype != source.dtype:
        raise ValueError(
            f"{name} has an inverse of its own and must keep the streams' dtype: expected "
            f"{source.dtype}, received {head.dtype}. Construct it with dtype='{source.dtype}'."
        )
    try:
        shape = head.shape if layout.n_tensors == 2 else stream_shape(head.shape, axis)
    except ValueError as error:
        raise ValueError(f"{name} gives a tensor that is not two streams. {error}") from None
    return tuple(shape), [tuple(z.shape) for z in latents]
