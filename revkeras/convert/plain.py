"""The way back from reversible models to ordinary ones."""

import contextlib
from collections.abc import Iterator
from typing import Any

import keras

from revkeras._engine import walk
from revkeras._keras import flatten_layers
from revkeras._stack.masks import MaskOf, makes_masks, masked_as
from revkeras._stack.memory_modes import running
from revkeras._stack.reversible_sequential import ReversibleSequential
from revkeras.convert.momentum_model import MomentumModel
from revkeras.convert.momentum_run import MomentumRun
from revkeras.convert.plain_calls import called_plainly
from revkeras.couplings import Coupling, Momentum


def to_plain(model: keras.Model) -> keras.Model:
    """An ordinary model that computes what a reversible one does, for export.

    The model itself does not change, and the weights are the same, shared and not
    copied. A functional model and a `keras.Sequential` become a functional model of
    the blocks themselves and Keras's operations between them, which is not compiled.
    Its files can be loaded without revkeras where no layer of the model is one of
    revkeras, as those of `revkeras.layers` and the blocks of
    `revkeras.models.ReversibleTransformer` are, and none makes a mask. Around a model
    that is subclassed, around subclassed layers, and where a run of blocks goes across
    the border of a model in the model, it is a model that calls the first one by plain
    differentiation: in exports nothing reversible is left of it.

    Methods that need the reversible stack, as `IRevNet`'s `inverse` and a decoder's
    `generate`, are gone, and so are those of a model's own class. A momentum network
    keeps its velocity: `revkeras.from_momentum_net` undoes the conversion instead.

    Args:
        model: A built `keras.Model`, or a `revkeras.ReversibleSequential`.

    Returns:
        A `keras.Model`.

    Raises:
        TypeError: for what is not a `keras.Model`.
        ValueError: for a model in which nothing is reversible, and one that is not
            built.

    Example:

    >>> import keras, revkeras
    >>> stack = revkeras.ReversibleSequential([keras.layers.Dense(4) for _ in range(3)])
    >>> model = keras.Sequential([keras.Input((8,)), stack])
    >>> plain = revkeras.to_plain(model)
    >>> x = keras.ops.ones((1, 8))
    >>> bool(keras.ops.all(model(x) == plain(x)))
    True
    """
    if isinstance(model, ReversibleSequential):
        return _plain_stack(model)
    if not isinstance(model, keras.Model):
        raise TypeError(
            "Invalid value for argument `model`: expected a `keras.Model` or a "
            f"ReversibleSequential, received model={model!r} (of type {type(model).__name__})."
        )
    if not model.built:
        raise ValueError(
            f"Model '{model.name}' is not built. Call it on data once, or `build()` it, before."
        )
    layers = flatten_layers(model)
    converted = [layer for layer in layers if isinstance(layer, MomentumModel)]
    stacks = [layer for layer in layers if isinstance(layer, ReversibleSequential)]
    if not converted and not stacks:
        raise ValueError(
            f"Model '{model.name}' holds nothing that is reversible: neither a "
            "ReversibleSequential nor runs that `revkeras.to_momentum_net` made."
        )
    runs = [run for layer in converted for run in layer.momentum_runs]
    graph = _functional(model)
    moving = [*([x] for x in stacks), *(run.blocks for run in runs)]
    if graph is None or not _can_be_rewritten(graph, moving):
        return called_plainly(model, [*stacks, *runs])
    blocks = {id(b): (r, i) for r in runs for i, b in enumerate(r.blocks)}
    return _rewritten(graph, blocks, masked=any(map(makes_masks, layers)))


def _plain_stack(stack: ReversibleSequential) -> keras.Model:
    if not stack.built:
        raise ValueError(
            f"ReversibleSequential '{stack.name}' is not built. Call it on data once, or `build()` "
            "it, before."
        )
    inputs = keras.tree.map_shape_structure(
        lambda shape: keras.Input(shape[1:], dtype=stack.compute_dtype), stack._input_shape
    )
    return _written_out(stack, stack.name, (inputs,), {})


def _functional(model: keras.Model) -> keras.Model | None:
    """The model as a functional one, or `None` if it is not."""
    if isinstance(model, MomentumModel) and model.graph_of_blocks is not None:
        return model.graph_of_blocks
    if isinstance(model, keras.Sequential):
        one = len(model.inputs) == len(model.outputs) == 1
        ends = [x[0] if one else x for x in (model.inputs, model.outputs)]
        return keras.Model(*ends, name=model.name)
    return model if hasattr(model, "operations") else None


def _can_be_rewritten(graph: keras.Model, moving: list[list]) -> bool:
    """Whether all of the layers are operations of functional models, each list's of one."""
    graphs = [{id(x) for x in inner.operations} for inner in _graphs(graph)]
    return all(any({id(x) for x in layers} <= inner for inner in graphs) for layers in moving)


def _graphs(graph: keras.Model) -> list[keras.Model]:
    """A functional model, and those in it."""
    inner = [_functional(x) for x in graph.operations if isinstance(x, keras.Model)]
    return [graph, *(found for x in inner if x is not None for found in _graphs(x))]


def _operations(graph: keras.Model) -> list:
    """The operations of a functional model, and of those in it."""
    return [operation for inner in _graphs(graph) for operation in inner.operations]


def _rewritten(
    graph: keras.Model, blocks: dict[int, tuple[MomentumRun, int]], masked: bool
) -> keras.Model:
    """The functional model, with what is reversible in it written out.

    With `masked`, masks go along with the tensors as they did.
    """

    def call(layer: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(layer, ReversibleSequential):
            inputs = args[0] if args else kwargs["inputs"]
            if masked and kwargs.get("mask") is None:
                kwargs["mask"] = keras.tree.map_structure(lambda x: MaskOf()(x), inputs)
            key = id(layer), _shown(args, kwargs)
            if key not in rewritten:  # Keras does not load layers that several models share
                of_layer = sum(other == id(layer) for other, _ in rewritten)
                name = f"{layer.name}_call_{of_layer + 1}" if of_layer else layer.name
                rewritten[key] = _written_out(layer, name, args, kwargs)
                rewritten[key].supports_masking = masked
            outputs = rewritten[key](_symbolic(args, kwargs))
            return _masked_as(inputs, outputs) if masked else outputs
        if id(layer) in blocks:
            run, index = blocks[id(layer)]
            return run.plain_call(index, args, kwargs, masked)
        if isinstance(layer, keras.Model) and (inner := _functional(layer)) is not None:
            inside = {id(x) for x in _operations(inner)}
            stacks = any(isinstance(x, ReversibleSequential) for x in _operations(inner))
            if stacks or inside & set(blocks):
                key = id(layer), None
                if key not in rewritten:
                    rewritten[key] = _rewritten(inner, blocks, masked)
                layer = rewritten[key]
        return layer(*args, **kwargs)

    rewritten: dict[tuple, keras.Model] = {}
    # Keras clones a model as one of its own class, and compiled as it was.
    graph = keras.Model(graph.input, graph.output, name=graph.name)
    return keras.models.clone_model(graph, clone_function=lambda layer: layer, call_function=call)


def _written_out(stack: ReversibleSequential, name: str, args: tuple, kwargs: dict) -> keras.Model:
    """A call of a stack as a functional model of its blocks and what is between them."""
    tensors = _symbolic(args, kwargs)
    inputs = {id(x): keras.Input(batch_shape=x.shape, dtype=x.dtype) for x in tensors}
    args, kwargs = keras.tree.map_structure(lambda x: inputs.get(id(x), x), (args, kwargs))
    with _as_plain(stack):
        outputs = stack.call(*args, **kwargs)
    return keras.Model([inputs[id(x)] for x in tensors], outputs, name=name)


def _symbolic(args: tuple, kwargs: dict) -> list:
    """The symbolic tensors among a call's arguments."""
    return [x for x in keras.tree.flatten((args, kwargs)) if isinstance(x, keras.KerasTensor)]


def _shown(args: tuple, kwargs: dict) -> str:
    """What is equal for calls that can be written out as one model."""
    first: dict[int, int] = {}

    def shown(x: Any) -> Any:
        if isinstance(x, keras.KerasTensor):
            return first.setdefault(id(x), len(first)), x.shape, x.dtype
        return x if isinstance(x, (bool, int, float, str, type(None))) else id(x)

    return repr(keras.tree.map_structure(shown, (args, kwargs)))


def _masked_as(inputs: Any, outputs: Any) -> Any:
    """A stack's outputs, with the masks that its inputs have: those that it hands on."""
    leaves = keras.tree.flatten(outputs)
    for i, x in enumerate(keras.tree.flatten(inputs)):
        leaves[i] = masked_as(leaves[i], x)
    return keras.tree.pack_sequence_as(outputs, leaves)


@contextlib.contextmanager
def _as_plain(stack: ReversibleSequential) -> Iterator[None]:
    """Inside, the stack computes by plain differentiation, in floating point."""
    kept = stack.couplings, stack.block_couplings
    stack.couplings = [_inexact(c) for c in stack.couplings]
    stack.block_couplings = [_inexact(c) for c in stack.block_couplings]
    try:
        with running({stack: walk.plain}):
            yield
    finally:
        stack.couplings, stack.block_couplings = kept


def _inexact(coupling: Coupling) -> Coupling:
    """A coupling without its fixed point, which matters to the way back alone."""
    if not coupling.exact:
        return coupling
    config = {**coupling.get_config(), "exact": False}
    if isinstance(coupling, Momentum):
        config["beta"] = coupling.decay
    return type(coupling)(**config)
