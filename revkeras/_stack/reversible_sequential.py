"""The layer that users put in a model."""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import keras

from revkeras import couplings
from revkeras._engine import verbs, walk
from revkeras._engine.carry import APART, Carry, Layout
from revkeras._keras import call_signature, carry_metric, set_call_signature
from revkeras._stack import streams
from revkeras._stack.block_call import BlockCall
from revkeras._stack.call_arguments import (
    argument_names,
    merged_signature,
    required_arguments,
    takes_further_shapes,
)
from revkeras._stack.ends import enter, leave, log_det_dtype
from revkeras._stack.inverse import Inverse
from revkeras._stack.invertible_call import InvertibleCall, is_invertible
from revkeras._stack.memory_modes import MEMORY_MODES, check_memory_mode, way_of
from revkeras._stack.operands import Operands
from revkeras._stack.plan import Plan, make_plan, plan_of
from revkeras._stack.shared_layers import deserialize_layers, serialize_layers
from revkeras._stack.stack_checks import (
    check_call_arguments,
    check_determined,
    check_exact,
    check_jit_compile,
    check_layer_inverse,
    check_layers,
    check_offload,
    check_required,
    check_start,
    find_depth_limit,
    keep_weights_on_host,
    noted,
    separate_latents,
    stream_dtype,
    warn_of_depth,
)
from revkeras._stack.stateless import is_built, spec_of, take_effect
from revkeras.couplings.depth import DepthLimit
from revkeras.debugging import checks_enabled


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
        layers: A list of Keras layers or models. A block is a function of one
            stream that keeps its shape. A layer that defines `inverse`, such as
            those of `revkeras.layers`, acts on both streams: on the tensor that
            they are halves of, or on each if they are not. The same object may
            stand in the list more than once: its gradients add up. A block that
            returns a tuple gives the stream's update first; the rest is returned
            to the caller.
        coupling_forward: `coupling_forward(x, fx) -> y`, or a list of such
            functions that cycles over the layers. Defaults to `None`, which
            means `x + fx`.
        coupling_inverse: `coupling_inverse(y, fx) -> x`, which undoes
            `coupling_forward`, or a list as long. Defaults to `None`, which
            means `y - fx`.
        split_axis: Integer, the axis on which the input is split in two
            halves, or `None`: the whole input goes into both streams, and the
            output is their mean, if the coupling says nothing else, which has
            no inverse. An odd size has no halves: pad it with a zero. Defaults
            to `-1`.
        memory_mode: `"reversible"` keeps the output of the stack,
            `"checkpoint"` the input of each block, `"none"` leaves it to
            plain differentiation. The outputs and the gradients are the same.
            May be assigned later, for what is traced from then on: `compile()` the
            model again. Defaults to `"reversible"`.
        check_inverse: Boolean, whether to try the couplings on small random
            values when the layer is built: whether each undoes itself, and whether
            all blocks in turn keep enough digits to train with; if not, the layer
            warns. Defaults to `True`.
        coupling: In the place of the two functions: `"additive"`, `"affine"`,
            `"leapfrog"`, `"momentum"`, an instance of a
            `revkeras.couplings.Coupling`, or a list of them that cycles over
            the layers. Defaults to `None`, which means `"additive"`.
        jit_compile: Boolean or `"auto"`, whether XLA compiles the steps of the
            `"reversible"` mode, each once for all blocks that are the same. The
            layer stays out of a compile of the whole model, in which memory
            would grow with depth, whatever `Model.compile()` is told. Defaults to
            `"auto"`, which decides as `Model.compile()` would: not on machines
            without an accelerator, where it is slower. Blocks that draw random
            numbers have no gradients of gradients with it.
        offload: `"host"` keeps the layers' weights in the host's memory, and with
            them what an optimizer keeps for each. They come to the device one layer
            at a time, the next layer's while one computes; wrap the optimizer in
            `revkeras.FusedUpdate`, and gradients go back and weights are updated one
            layer at a time too. JAX, which computes with values of one memory alone,
            needs `FusedUpdate` there. For the `"reversible"` mode only. Defaults to
            `None`, which leaves weights where they are made.
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
        return_log_det: Boolean, whether to return the log-determinant of the
            Jacobian too, of shape `(batch,)`. Defaults to `False`.
        **arguments: Further arguments, each passed to every block whose
            `call()` names it. Gradients flow to floating-point tensors.

    Returns:
        A tensor of the input's shape, if no layer with an inverse changes it, or
        two streams if two were given. If there is more: a tuple of that, of the
        tensors that `Split` took out, of all that blocks return beside their
        update, in order of the layers, and of the log-determinant.

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

    is_block = True  # in another stack it is a function of one stream, though it has an inverse

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
        jit_compile: bool | str = "auto",
        offload: str | None = None,
        dtype: Any = None,
        **kwargs: Any,
    ):
        check_layers(layers)
        split_axis = streams.check_split_axis(split_axis)
        resolved = couplings.resolve(coupling, coupling_forward, coupling_inverse)
        check_exact(resolved, layers)
        check_jit_compile(jit_compile, resolved)
        check_start(resolved, split_axis)
        # No autocast: it would round the blocks' float32 weights on their way to the engine.
        super().__init__(dtype=stream_dtype(dtype), autocast=False, **kwargs)
        self.layers = list(layers)
        self.split_axis = split_axis
        self.check_inverse = check_inverse
        self.jit_compile = jit_compile
        self.offload = offload
        self.memory_mode = memory_mode
        self.residence = verbs.residence(offload)  # sharded training gives it another
        self.supports_masking = True
        self.couplings = resolved
        if resolved[0].exact:
            # Keras merges metrics of one name, and a second stack's would hide the first's.
            self.saturated = verbs.call_metric(name=f"{self.name}_saturated")
            carry_metric(self, self.saturated)
        self.depth = sum(not is_invertible(layer) for layer in layers)  # in blocks
        # The couplings of the blocks, in turn.
        self.block_couplings = list(itertools.islice(itertools.cycle(resolved), self.depth))
        # Keras refuses tensors and other values side by side in `**arguments`, so the
        # arguments that blocks take stand in the signature under their names.
        set_call_signature(self, merged_signature(call_signature(self), self.layers))
        self._argument_specs: dict[str, Any] = {}
        self._start_weights: list[keras.Variable] = []

    @property
    def memory_mode(self) -> str:
        return self._memory_mode

    @memory_mode.setter
    def memory_mode(self, memory_mode: str) -> None:
        check_memory_mode(memory_mode)
        check_offload(self.offload, memory_mode)
        self._memory_mode = memory_mode
        self.supports_jit = verbs.joins_compile or memory_mode == "none"
        if self.built and memory_mode == "reversible":
            warn_of_depth(self, self._depth_limit)

    def build(self, input_shape: Any) -> None:
        shape = streams.stream_shape(input_shape, self.split_axis)
        if self.check_inverse:
            with verbs.eager_scope():
                for coupling in self.couplings[: self.depth]:
                    couplings.check_coupling(coupling, shape, self.compute_dtype)
        self.takes_pair = streams.is_pair(input_shape)
        self._input_shape = input_shape
        if self.memory_mode == "reversible":
            warn_of_depth(self, self._depth_limit)
        start = self.couplings[0].start_shape(shape)
        if start and not self.takes_pair:
            self._start_weights = [self.add_weight(start, "zeros", name="start")]
        plan = self._planned(input_shape, build=self._try_to_build_block)
        self._n_latents = len(plan.latents)
        if self.offload:
            keep_weights_on_host(self.layers)
        if self.check_inverse:
            with verbs.eager_scope():
                for call, source in zip(plan.calls, plan.sources, strict=True):
                    if isinstance(call, InvertibleCall) and verbs.are_initialized(
                        call.layer.variables
                    ):
                        check_layer_inverse(call, source)
        self.input_spec = streams.input_spec(input_shape, self.split_axis)
        layout = self._layout(input_shape)
        whole = streams.whole_shape(plan.stream_shape, layout, self.split_axis)
        self._output_spec, *self._latent_specs = (
            streams.input_spec(s, self.split_axis)
            for s in ([whole] * 2 if layout is APART else whole, *plan.latents)
        )
        self.built = True

    def call(
        self,
        inputs: Any,
        training: bool | None = None,
        mask: Any = None,
        return_log_det: bool = False,
        **arguments: Any,
    ) -> Any:
        shapes, plan = self._planned_on(inputs, training, mask, return_log_det, arguments)
        outputs, held, extras = self._run(inputs, shapes, plan.calls, training, return_log_det)
        results = outputs, *held.latents, *extras, *held.log_det
        return results if len(results) > 1 else outputs

    def inverse(
        self,
        outputs: Any,
        training: bool = False,
        mask: Any = None,
        return_log_det: bool = False,
        **arguments: Any,
    ) -> Any:
        """Runs the stack backwards, with the same weights.

        Differentiable as a call is, in the same memory. States such as the
        statistics of a batch normalization stay as they are, and losses are not
        added.

        Args:
            outputs: What a call returned, without its log-determinant and what
                blocks return beside their update.
            training: Boolean, whether the blocks act as in training. Defaults
                to `False`.
            mask: A mask for `outputs`, passed to the blocks. Defaults to `None`.
            return_log_det: Boolean, whether to return the log-determinant of the
                inverse's Jacobian too. Defaults to `False`.
            **arguments: The further arguments of the call.

        Returns:
            The inputs of the call, or `(inputs, log_det)`.

        Raises:
            ValueError: if the outputs do not determine the inputs.

        Example:

        >>> import keras, revkeras
        >>> layer = revkeras.ReversibleSequential([keras.layers.Dense(4) for _ in range(4)])
        >>> y = layer(keras.ops.ones((1, 8)))
        >>> bool(keras.ops.max(keras.ops.abs(layer.inverse(y) - 1)) < 1e-5)
        True
        """
        check_determined(self, training)
        if self.memory_mode != "reversible":
            warn_of_depth(self, self._depth_limit)
        outputs, latents = separate_latents(self, outputs, self._n_latents)
        outputs, latents = keras.tree.map_structure(
            lambda x: x if keras.ops.is_tensor(x) else keras.ops.convert_to_tensor(x),
            (outputs, latents),
        )
        latents = [
            keras.ops.cast(
                streams.with_shape(x, streams.completed(x.shape, spec)), self.compute_dtype
            )
            for x, spec in zip(latents, self._latent_specs, strict=True)
        ]
        masks = streams.stream_masks(outputs, mask, self.split_axis)
        n_swaps = sum(coupling.swaps for coupling in self.block_couplings)
        masks = masks[::-1] if n_swaps % 2 else masks
        plan = self._planned(self._input_shape, masks, training, arguments, return_log_det)
        shapes = streams.shapes_of(outputs, self._output_spec)
        back = functools.partial(self._run, forwards=False, latents=latents)
        inputs, held, _ = back(outputs, shapes, plan.calls[::-1], training, return_log_det)
        return (inputs, *held.log_det) if return_log_det else inputs

    def as_inverse(self, **kwargs: Any) -> "Inverse":
        """A layer that runs this stack backwards, for use inside models.

        It shares the stack's weights.

        Args:
            **kwargs: Arguments of `keras.layers.Layer`, such as `name`.
        """
        return Inverse(self, **kwargs)

    def _run(
        self,
        inputs: Any,
        shapes: Any,
        calls: Sequence[BlockCall | InvertibleCall],
        training: bool | None,
        log_det: bool,
        *,
        forwards: bool = True,
        latents: Sequence = (),
    ) -> tuple[Any, Carry, list]:
        """Runs the calls, or their inverses, on what `inputs` hold.

        Returns:
            `(outputs, held, extras)`: the streams at the end, in the structure of `inputs`, the
            carry there, and what blocks return beside their update.
        """
        placed, dtype = self.couplings[0].at(0, self.depth), self.compute_dtype
        begun, packed, layout = enter(
            inputs, shapes, self.split_axis, dtype, placed, self._enter, log_det
        )
        begun = begun._replace(latents=tuple(latents))
        way = self._way()
        if forwards and way is walk.plain:
            held, extras = _call_each(calls, packed, begun)
        else:
            weights, state = Operands(), Operands()
            steps = [(c.step if forwards else c.inverse_step)(weights, state) for c in calls]
            is_late = not training and way in (walk.reversible, walk.checkpointed)
            read = self.residence.read
            with self.residence.place():
                values = (
                    weights.values(read),
                    state.values(verbs.read_late(read) if is_late else read),
                )
            held, sides, updates = way(steps, packed, begun, *values, self.residence)
            found = [step.packing.unpack(side) for step, side in zip(steps, sides, strict=True)]
            extras = [x for more, _ in found for x in more]
            if forwards:
                take_effect(self, state.items, updates, [x for _, own in found for x in own])
        last = [self.couplings[0], *self.block_couplings][-1]
        outputs, saturated = leave(held, layout, dtype, placed, inputs, last.leave)
        if placed.exact:
            self.saturated.update_state(saturated if forwards else begun.kept[0])
        return outputs, held, extras

    def _way(self) -> Callable:
        """How the stack runs now, see `way_of`."""
        way = way_of(self)
        # Where nothing can ask for a gradient, there is nothing to keep or to rebuild.
        is_own = way is MEMORY_MODES[self.memory_mode]
        heard = verbs.may_be_replayed() or checks_enabled()
        return way if heard or not (is_own and self.residence.in_place) else walk.plain

    def _jit_compiles(self) -> bool:
        # An exact coupling needs the same bits in both passes, and a check its messages.
        if self.couplings[0].exact or checks_enabled():
            return False
        return verbs.compiles_by_default() if self.jit_compile == "auto" else self.jit_compile

    def _enter(self, x: Any) -> list:
        return self.couplings[0].enter(x, *self._start_weights)

    def _layout(self, input_shape: Any) -> Layout:
        apart = self.split_axis is None or streams.is_pair(input_shape)
        return APART if apart else streams.halves(self.split_axis)

    @functools.cached_property
    def _depth_limit(self) -> DepthLimit | None:
        shape = streams.stream_shape(self._input_shape, self.split_axis)
        single = self.split_axis is None and not self.takes_pair
        return find_depth_limit(self, shape, self.couplings[0].enter if single else None)

    def _planned_on(
        self, inputs: Any, training: bool | None, mask: Any, log_det: bool, arguments: dict
    ) -> tuple[Any, Plan]:
        """The shapes of a call's inputs, and what the call comes to."""
        shapes = streams.shapes_of(inputs, self.input_spec)
        masks = streams.stream_masks(inputs, mask, self.split_axis)
        plan = self._planned(shapes, masks, training, arguments, log_det)
        check_required(plan.calls)
        return shapes, plan

    def _planned(
        self,
        input_shape: Any,
        masks: Sequence = (None, None),
        training: bool | None = None,
        arguments: dict | None = None,
        log_det: bool = False,
        build: Callable | None = None,
    ) -> Plan:
        """What a call comes to; builds blocks that are not built yet."""
        arguments = {k: value for k, value in (arguments or {}).items() if value is not None}
        check_call_arguments(self, arguments)
        build = build or self._build_block
        shape = streams.stream_shape(input_shape, self.split_axis)
        layout, jit_compile = self._layout(input_shape), self._jit_compiles()

        def make() -> Plan:
            with self.residence.place():  # of the variables of layers that are built here
                return make_plan(
                    self.layers,
                    self.block_couplings,
                    shape,
                    layout,
                    self.split_axis,
                    dtype=self.compute_dtype,
                    training=training,
                    log_det=log_det,
                    jit_compile=jit_compile,
                    build=lambda call, stream: build(call.bound(masks, arguments), stream),
                )

        own = id(self.block_couplings), self.compute_dtype
        signature = own, shape, layout.n_tensors, training, log_det, jit_compile
        plan = plan_of(self, signature, make, lasts=lambda: all(map(is_built, self.layers)))
        if plan.latents and self.couplings[0].exact:
            raise ValueError(
                f"ReversibleSequential '{self.name}' holds a layer that takes a part of the "
                f"streams out, beside {type(self.couplings[0]).__name__}(exact=True), which needs "
                "all of them. Use another coupling, or put the layer between two stacks."
            )
        return plan.bound(masks, arguments)

    def _build_block(self, call: BlockCall, stream: keras.KerasTensor) -> None:
        """Builds the block if it is not built and its arguments are there."""
        if is_built(call.layer) or required_arguments(call.layer) - set(call.arguments):
            return
        specs = spec_of(call.arguments)
        self._argument_specs.update(specs)
        with noted(f"{call.name} of ReversibleSequential '{self.name}' failed when it was built."):
            outputs = call.layer(stream, **specs)
        call.separate(outputs, stream)

    def _try_to_build_block(self, call: BlockCall, stream: keras.KerasTensor) -> None:
        """Leaves a block whose `call()` fails without all its arguments to the stack's calls."""
        try:
            self._build_block(call, stream)
        except Exception:
            missing = argument_names(call.layer) - {"mask"} - set(call.arguments)
            reached = call.layer.built or takes_further_shapes(call.layer)
            if not (missing and reached):
                raise

    def compute_mask(self, inputs: Any, previous_mask: Any) -> Any:
        # One that need not fit what a layer made of the shape is dropped.
        keep = all(x.supports_masking for x in self.layers if is_invertible(x))
        return previous_mask if keep else None

    def compute_output_shape(self, input_shape: Any) -> Any:
        inputs = keras.tree.map_shape_structure(keras.KerasTensor, input_shape)
        return keras.tree.map_structure(lambda x: x.shape, self.compute_output_spec(inputs))

    def compute_output_spec(
        self,
        inputs: Any,
        training: bool | None = None,
        mask: Any = None,
        return_log_det: bool = False,
        **arguments: Any,
    ) -> Any:
        shapes, plan = self._planned_on(inputs, training, mask, return_log_det, arguments)
        spec = functools.partial(keras.KerasTensor, dtype=self.compute_dtype)
        shape = streams.whole_shape(plan.stream_shape, self._layout(shapes), self.split_axis)
        outputs = keras.tree.map_structure(lambda x: spec(shape), inputs)
        extras = []
        for call, source in zip(plan.calls, plan.sources, strict=True):
            if isinstance(call, BlockCall):
                results = call.layer(source, **spec_of(call.arguments))
                extras.extend(call.separate(results, source)[1])
        log_det = [keras.KerasTensor(shape[:1], log_det_dtype(self.compute_dtype))]
        log_det = log_det * return_log_det
        results = outputs, *map(spec, plan.latents), *extras, *log_det
        return results if len(results) > 1 else outputs

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
        self._planned(config["input_shape"], arguments=arguments, build=self._try_to_build_block)

    def get_config(self) -> dict:
        unique = list({id(layer): layer for layer in self.layers}.values())
        layers, shared_layers = serialize_layers(unique, f"ReversibleSequential '{self.name}'")
        return {
            **super().get_config(),
            "layers": layers,
            "shared_layers": shared_layers,
            "order": [next(i for i, u in enumerate(unique) if u is x) for x in self.layers],
            "coupling": [keras.saving.serialize_keras_object(c) for c in self.couplings],
            "split_axis": self.split_axis,
            "memory_mode": self.memory_mode,
            "check_inverse": self.check_inverse,
            "jit_compile": self.jit_compile,
            "offload": self.offload,
        }

    @classmethod
    def from_config(
        cls, config: dict, custom_objects: dict | None = None
    ) -> "ReversibleSequential":
        config = dict(config)
        with verbs.place(config["offload"]):
            unique = deserialize_layers(
                config.pop("layers"), config.pop("shared_layers", ()), custom_objects
            )
        config["coupling"] = [
            keras.saving.deserialize_keras_object(c, custom_objects) for c in config["coupling"]
        ]
        return cls([unique[i] for i in config.pop("order")], **config)


def _call_each(
    calls: Sequence[BlockCall | InvertibleCall], layout: Layout, held: Carry
) -> tuple[Carry, list]:
    """Calls the layers as any Keras layers: `(held, extras)`."""
    carry, extras = layout.unpack(held), []
    for call in calls:
        carry, more = call.plain(carry)
        extras.extend(more)
    return layout.pack(carry), extras
