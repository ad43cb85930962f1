"""What one call of a stack will do: its layers' calls in order, with the shapes between them."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import keras

from revkeras._engine.carry import Layout
from revkeras._keras import flatten_layers
from revkeras._stack.block_call import BlockCall
from revkeras._stack.call_arguments import argument_names
from revkeras._stack.invertible_call import InvertibleCall, is_invertible
from revkeras._stack.streams import stream_shape, whole_shape
from revkeras.couplings import Coupling


@dataclasses.dataclass(frozen=True)
class Plan:
    """The calls of a stack's layers.

    Attributes:
        calls: One for each layer.
        sources: What each layer is called on, as a `KerasTensor`.
        stream_shape: The shape of a stream at the end.
        latents: The shapes of the tensors that leave the stack on the way.
    """

    calls: list[BlockCall | InvertibleCall]
    sources: list[keras.KerasTensor]
    stream_shape: tuple
    latents: list[tuple]


def make_plan(
    layers: Sequence[keras.layers.Layer],
    couplings: Sequence[Coupling],
    shape: tuple,
    layout: Layout,
    axis: int | None,
    *,
    dtype: str,
    masks: list,
    training: bool | None,
    arguments: dict[str, Any],
    log_det: bool,
    jit_compile: bool,
    build: Callable[[BlockCall, keras.KerasTensor], None],
) -> Plan:
    """The plan of one call.

    Args:
        layers: The stack's layers.
        couplings: One for each of them that is a block.
        shape: The shape of a stream at the start.
        layout: How the input holds the streams.
        axis: The axis on which it is split, if it is.
        dtype: The dtype of the streams.
        masks: The masks of the two streams, or `None` each.
        training: `training` for the layers.
        arguments: The arguments for those blocks that take them.
        log_det: Whether log-determinants are summed.
        jit_compile: Whether XLA compiles those layers that support it.
        build: Builds a block, where it is not built.
    """
    calls, sources, latents = [], [], []
    couplings, reads = iter(couplings), 1
    for index, layer in enumerate(layers):
        name = f"Block {index} ('{layer.name}', of type {type(layer).__name__})"
        compiled = jit_compile and all(inner.supports_jit for inner in flatten_layers(layer))
        if is_invertible(layer):
            if log_det and not hasattr(layer, "log_det_jacobian"):
                raise ValueError(
                    f"{name} does not define `log_det_jacobian(inputs)`, which "
                    "`return_log_det=True` asks for."
                )
            source = keras.KerasTensor(whole_shape(shape, layout, axis), dtype=dtype)
            shape, more = _shapes_after(layer, name, source, layout, axis)
            latents.extend(more * layout.n_tensors)
            call = InvertibleCall(layer, name, layout, len(more), training, log_det, compiled)
            masks = masks if layer.supports_masking else [None, None]
        else:
            source = keras.KerasTensor(shape, dtype=dtype)
            accepted = argument_names(layer)
            own = {k: value for k, value in arguments.items() if k in accepted}
            mask = masks[reads]
            if mask is not None and "mask" in accepted:
                own["mask"] = mask
            coupling = next(couplings)
            call = BlockCall(layer, name, coupling, dtype, training, mask, own, compiled)
            reads = 1 - reads if coupling.swaps else reads
            build(call, source)
        calls.append(call)
        sources.append(source)
    return Plan(calls, sources, shape, latents)


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
