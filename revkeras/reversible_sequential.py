"""The layer that users put in a model."""

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import keras

from revkeras import backprop, couplings, streams
from revkeras.block_call import BlockCall, Operands, as_step, call_plainly
from revkeras.call_arguments import argument_names, merged_signature, required_arguments
from revkeras.stateless import is_built, spec_of
from revkeras.step import Layout, Step, run_step, run_steps

MEMORY_MODES = ("reversible", "checkpoint", "none")


@keras.saving.register_keras_serializable(package="revkeras")
class ReversibleSequential(keras.layers.Layer):
    """A stack of blocks whose activations are rebuilt instead of kept.

    The input is split in two streams `(x0, x1)`. Each block `f` takes them a
    half step on:

        y0 = x1
        y1 = coupling_forward(x0, f(x1))

    Training keeps the last streams alone. The backward pass rebuilds the input
    of each block from its output,

        x1 = y0
        x0 = coupling_inverse(y1, f(y0))

    evaluates `f` once for that and for the gradient, and goes on to the block
    before. Activation memory does not grow with the number of blocks; the
    price is one more evaluation of each block, about a third more
    multiplications, and the rounding of the rebuild.

    Dropout draws the same bits in both evaluations, and seeds and statistics
    move once a step, as without the rebuild.

    References:

    - [Gomez et al., 2017](https://arxiv.org/abs/1707.04585)
    - [Jacobsen et al., 2018](https://arxiv.org/abs/1802.07088)

    Args:
        layers: A list of Keras layers or models, each a function of one stream
            that keeps its shape. The same object may stand in it more than
            once: its gradients add up. A block that returns a tuple gives the
            stream's update first; the rest is returned to the caller.
        coupling_forward: `coupling_forward(x, fx) -> y`, or a list of such
            functions that cycles over the layers. Defaults to `None`, which
            means `x + fx`.
        coupling_inverse: `coupling_inverse(y, fx) -> x`, which undoes
            `coupling_forward`, or a list as long. Defaults to `None`, which
            means `y - fx`.
        split_axis: Integer, the axis on which the input is split in two
            halves, or `None`: the whole input goes into both streams, and the
            output is their mean, if the coupling says nothing else. Defaults to
            `-1`.
        memory_mode: `"reversible"` keeps the output of the stack,
            `"checkpoint"` the input of each block, `"none"` leaves it to
            plain differentiation. The outputs and the gradients are the same.
            Defaults to `"reversible"`.
        check_inverse: Boolean, whether to try each coupling once on small
            random values when the layer is built. Defaults to `True`.
        coupling: In the place of the two functions: `"additive"`, `"affine"`,
            `"leapfrog"`, `"momentum"`, an instance of a
            `revkeras.couplings.Coupling`, or a list of them that cycles over
            the layers. Defaults to `None`, which means `"additive"`.
        **kwargs: Arguments of `keras.layers.Layer`, such as `name`. `dtype` is
            the dtype of the two streams; left out, it is the variable dtype
            of the global policy, so that they stay in float32 under mixed
            precision. Blocks have policies of their own.

    Call arguments:
        inputs: A floating-point tensor of shape `(batch, ...)` whose size on
            `split_axis` is even, or a list or tuple of two tensors of equal
            shape, which are taken as the streams.
        training: Boolean, as in any Keras layer.
        mask: A mask for `inputs`, passed to the blocks.
        **arguments: Further arguments, each passed to every block whose
            `call()` names it. Gradients flow to floating-point tensors.

    Returns:
        A tensor of the input's shape, or two streams if two were given. If
        blocks return more than their update: a tuple of that and all they
        return beside it, in order of the blocks.

    Raises:
        ValueError: for bad arguments, a block that changes the stream's shape,
            or couplings that do not undo each other.

    Example:

    >>> import keras, revkeras
    >>> blocks = [keras.layers.Dense(8, activation="relu") for _ in range(4)]
    >>> layer = revkeras.ReversibleSequential(blocks)
    >>> layer(keras.ops.ones((2, 16))).shape
    TensorShape([2, 16])
    """

    def __init__(
        self,
        layers: Sequence[keras.layers.Layer],
        coupling_forward: Callable | Sequence[Callable] | None = None,
        coupling_inverse: Callable | Sequence[Callable] | None = None,
        split_axis: int | None = -1,
        memory_mode: str = "reversible",
        check_inverse: bool = True,
        *,
        coupling: Any = None,
        dtype: Any = None,
        **kwargs: Any,
    ):
        _check_layers(layers)
        split_axis = streams.check_split_axis(split_axis)
        if memory_mode not in MEMORY_MODES:
            raise ValueError(
                f"Invalid value for argument `memory_mode`: expected one of {MEMORY_MODES}, "
                f"received memory_mode={memory_mode!r}."
            )
        resolved = couplings.resolve(coupling, coupling_forward, coupling_inverse)
        # No autocast: it would round the blocks' float32 weights on their way to the engine.
        super().__init__(dtype=_stream_dtype(dtype), autocast=False, **kwargs)
        self.layers = list(layers)
        self.split_axis = split_axis
        self.memory_mode = memory_mode
        self.check_inverse = check_inverse
        self.supports_masking = True
        # Keras's whole-model compile is one program, in which XLA merges the recomputation
        # with the forward pass and puts off weight gradients: memory grows with depth again.
        self.supports_jit = False
        self.couplings = resolved
        # Keras refuses tensors and other values side by side in `**arguments`, so the
        # arguments that blocks take stand in the signature under their names.
        self._call_signature = merged_signature(self._call_signature, self.layers)
        self._argument_specs: dict[str, Any] = {}

    def build(self, input_shape: Any) -> None:
        stream_shape = streams.stream_shape(input_shape, self.split_axis)
        if self.check_inverse:
            with backprop.eager_scope():
                for coupling in self.couplings[: len(self.layers)]:
                    couplings.check_coupling(coupling, stream_shape, self.compute_dtype)
                self._warn_of_depth()
        self._build_blocks(stream_shape, self._block_calls([None, None], None, {}))
        self.input_spec = streams.input_spec(input_shape, self.split_axis)
        self.built = True

    def call(
        self, inputs: Any, training: bool | None = None, mask: Any = None, **arguments: Any
    ) -> Any:
        tensors, layout = streams.enter(
            inputs, self.split_axis, self.compute_dtype, self.couplings[0].enter
        )
        masks = streams.stream_masks(inputs, mask, self.split_axis)
        calls = self._block_calls(masks, training, arguments)
        input_shape = keras.tree.map_structure(lambda x: tuple(x.shape), inputs)
        self._build_blocks(streams.stream_shape(input_shape, self.split_axis), calls)
        if self.memory_mode == "none":
            pair, extras = layout.split(tensors), []
            for call in calls:
                pair, more = call_plainly(call, pair)
                extras.extend(more)
            outputs = layout.join(pair)
        else:
            outputs, extras = self._call_engine(calls, layout, tensors)
        outputs = streams.leave(outputs, inputs, self.couplings[-1].leave)
        return (outputs, *extras) if extras else outputs

    def _call_engine(
        self, calls: list[BlockCall], layout: Layout, tensors: list
    ) -> tuple[list, list]:
        run = backprop.reversible if self.memory_mode == "reversible" else _checkpointed
        weights, state = Operands(), Operands()
        steps, unpacks = zip(*(as_step(call, weights, state) for call in calls), strict=True)
        outputs, sides, updates = run(steps, layout, tensors, weights.values(), state.values())
        for position, value in updates.items():
            state.items[position].assign(value)
        extras = []
        for unpack, side in zip(unpacks, sides, strict=True):
            more, losses = unpack(side)
            extras.extend(more)
            for loss in losses:
                self.add_loss(loss)
        return outputs, extras

    def _block_calls(self, masks: list, training: bool | None, arguments: dict) -> list[BlockCall]:
        arguments = {name: value for name, value in arguments.items() if value is not None}
        names = [argument_names(layer) for layer in self.layers]
        unknown = set(arguments).difference(*names)
        if unknown:
            raise TypeError(
                f"ReversibleSequential '{self.name}' received the arguments {sorted(unknown)}, "
                "which the `call()` of none of its blocks takes. The blocks take: "
                f"{sorted(set().union(*names) - {'mask'})}."
            )
        calls, reads = [], 1
        for index, (layer, accepted) in enumerate(zip(self.layers, names, strict=True)):
            own = {name: value for name, value in arguments.items() if name in accepted}
            mask = masks[reads]
            if mask is not None and "mask" in accepted:
                own["mask"] = mask
            name = f"Block {index} ('{layer.name}', of type {type(layer).__name__})"
            coupling = self.couplings[index % len(self.couplings)]
            calls.append(BlockCall(layer, name, coupling, training, mask, own))
            reads = 1 - reads if coupling.swaps else reads
        return calls

    def _warn_of_depth(self) -> None:
        for coupling in self.couplings:
            limit = coupling.depth_limit(self.compute_dtype)
            blocks = math.ceil(len(self.layers) / len(self.couplings))
            if limit is not None and blocks > limit and self.memory_mode == "reversible":
                warnings.warn(
                    f"{type(coupling).__name__} loses digits in each block that it rebuilds: in "
                    f"{self.compute_dtype} it holds up to about {limit} blocks, and "
                    f"ReversibleSequential '{self.name}' has {blocks} with it, so gradients will "
                    "be wrong. Use fewer blocks, dtype='float64', or memory_mode='checkpoint'.",
                    stacklevel=2,
                )

    def _build_blocks(self, stream_shape: tuple, calls: list[BlockCall]) -> None:
        """Builds the blocks that are not built and whose arguments are there."""
        stream = keras.KerasTensor(stream_shape, dtype=self.compute_dtype)
        for call in calls:
            if is_built(call.layer) or required_arguments(call.layer) - set(call.arguments):
                continue
            specs = spec_of(call.arguments)
            self._argument_specs.update(specs)
            try:
                outputs = call.layer(stream, **specs)
            except Exception:
                if argument_names(call.layer) - {"mask"} - set(call.arguments):
                    continue  # it may miss an argument that only a later call brings
                raise
            call.separate(outputs, stream)

    def compute_output_shape(self, input_shape: Any) -> Any:
        inputs = keras.tree.map_shape_structure(keras.KerasTensor, input_shape)
        return keras.tree.map_structure(lambda x: x.shape, self.compute_output_spec(inputs))

    def compute_output_spec(
        self, inputs: Any, training: bool | None = None, mask: Any = None, **arguments: Any
    ) -> Any:
        streams.check_inputs(inputs)
        input_shape = keras.tree.map_structure(lambda x: tuple(x.shape), inputs)
        shape = streams.stream_shape(input_shape, self.split_axis)
        stream = keras.KerasTensor(shape, dtype=self.compute_dtype)
        calls = self._block_calls(streams.stream_masks(inputs, mask, None), training, arguments)
        extras = []
        for call in calls:
            extras.extend(call.separate(call.layer(stream, **spec_of(call.arguments)), stream)[1])
        outputs = keras.tree.map_structure(
            lambda x: keras.KerasTensor(x.shape, dtype=self.compute_dtype), inputs
        )
        return (outputs, *extras) if extras else outputs

    def get_build_config(self) -> dict | None:
        config = super().get_build_config()
        arguments = {}
        for name, spec in self._argument_specs.items():
            if isinstance(spec, keras.KerasTensor):
                arguments[name] = {"shape": spec.shape, "dtype": spec.dtype}
            elif isinstance(spec, (bool, int, float, str)):
                arguments[name] = {"value": spec}
        return {**config, "arguments": arguments} if config and arguments else config

    def build_from_config(self, config: dict) -> None:
        self.build(config["input_shape"])
        arguments = {
            name: spec["value"]
            if "value" in spec
            else keras.KerasTensor(spec["shape"], dtype=spec["dtype"])
            for name, spec in config.get("arguments", {}).items()
        }
        shape = streams.stream_shape(config["input_shape"], self.split_axis)
        self._build_blocks(shape, self._block_calls([None, None], None, arguments))

    def get_config(self) -> dict:
        unique = list({id(layer): layer for layer in self.layers}.values())
        return {
            **super().get_config(),
            "layers": [keras.saving.serialize_keras_object(layer) for layer in unique],
            "order": [next(i for i, u in enumerate(unique) if u is x) for x in self.layers],
            "coupling": [keras.saving.serialize_keras_object(c) for c in self.couplings],
            "split_axis": self.split_axis,
            "memory_mode": self.memory_mode,
            "check_inverse": self.check_inverse,
        }

    @classmethod
    def from_config(
        cls, config: dict, custom_objects: dict | None = None
    ) -> "ReversibleSequential":
        config = dict(config)
        unique = [
            keras.saving.deserialize_keras_object(layer, custom_objects)
            for layer in config.pop("layers")
        ]
        config["coupling"] = [
            keras.saving.deserialize_keras_object(c, custom_objects) for c in config["coupling"]
        ]
        return cls([unique[i] for i in config.pop("order")], **config)


def _checkpointed(
    steps: Sequence[Step], layout: Layout, inputs: list, weights: list, state: list
) -> tuple[list, list, dict]:
    """Runs the steps and keeps each one's input."""

    def run(step: Step, pair: list, weights: list, state: list) -> tuple[list, list, dict]:
        def function(pair: list, weights: list, state: list) -> tuple[list, dict]:
            pair, sides, updates = run_step(step, pair, weights, state)
            return [*pair, *sides], updates

        outputs, updates = backprop.checkpoint(function, pair, weights, state)
        return outputs[:2], outputs[2:], updates

    pair, sides, updates, _ = run_steps(steps, layout.split(inputs), weights, state, run)
    return layout.join(pair), sides, updates


def _check_layers(layers: Any) -> None:
    if not isinstance(layers, (list, tuple)):
        raise TypeError(
            "Invalid value for argument `layers`: expected a list of Keras layers, received "
            f"layers={layers!r} (of type {type(layers).__name__})."
        )
    if not layers:
        raise ValueError(
            "Invalid value for argument `layers`: expected at least one Keras layer, received "
            "an empty list."
        )
    for index, layer in enumerate(layers):
        if not isinstance(layer, keras.layers.Layer):
            raise TypeError(
                "Invalid value for argument `layers`: expected Keras layers, received "
                f"layers[{index}]={layer!r} (of type {type(layer).__name__}). Wrap a function "
                "in `keras.layers.Lambda`, or write a layer."
            )


def _stream_dtype(dtype: Any) -> str:
    if dtype is None:
        return keras.config.dtype_policy().variable_dtype
    stream_dtype = keras.dtype_policies.get(dtype).compute_dtype
    if "float" not in stream_dtype:
        raise ValueError(
            "Invalid value for argument `dtype`: expected a floating-point dtype for the two "
            f"streams, received dtype={dtype!r}."
        )
    return stream_dtype
