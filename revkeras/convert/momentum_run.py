"""A run of blocks that act as one momentum network, each block in its old place."""

import contextlib
import contextvars
import dataclasses
import inspect
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import keras
from keras import ops

from revkeras._engine import verbs, walk
from revkeras._keras import (
    add_metric,
    at_least_float32,
    call_signature,
    flatten_layers,
    get_tensor_attr,
    remove_metric,
    set_tensor_attr,
    take_losses,
    twin,
)
from revkeras._stack.masks import masked_as
from revkeras._stack.memory_modes import way_of
from revkeras._stack.reversible_sequential import ReversibleSequential
from revkeras.checkpoint import Checkpoint
from revkeras.convert.find_runs import same_arguments
from revkeras.convert.residual import Original, Residual, difference, is_original, original
from revkeras.couplings import Momentum

# The calls of models that are under way, and the runs whose models' configs are being written.
_CALLS: contextvars.ContextVar = contextvars.ContextVar("calls", default=())
_WRITTEN: contextvars.ContextVar = contextvars.ContextVar("written", default=())
# What a block returned for the next one has its place in the run under this name.
_POSITION = "_revkeras_position"
# What a run replaces in its blocks.
_REPLACED = "call", "compute_output_spec", "get_config"


@dataclasses.dataclass
class Position:
    """What a run notes on a tensor that goes from one of its blocks to the next.

    Attributes:
        run: The run.
        index: The block that the tensor comes from.
        arguments: What the run was called with, if it is computed as a whole.
        output: Its output then.
        extras: What the blocks returned beside it, one list a block.
        velocity: If the run goes block by block: the velocity,
        wide: and the tensor in the dtype of the streams, if it has another one.
    """

    run: "MomentumRun"
    index: int
    arguments: dict[str, Any] | None = None
    output: Any = None
    extras: list | None = None
    velocity: Any = None
    wide: Any = None


class MomentumRun:
    """Takes the place of the `call()` of each of its blocks.

    In a call of its model, the first block computes the whole run as one reversible stack, and
    the last one returns its output: the model's own code calls them one after the other. What
    the blocks before it return is for the next one alone; each is a tensor of its own, so that
    another reader is noticed. Elsewhere, and with arguments that the model does not give all
    blocks, such as caches, each block takes its own step, and the velocity goes along with the
    tensor.

    Args:
        blocks: The blocks, built, in the order of their calls.
        beta: What is kept of the velocity.
        arguments: The names of the further arguments that all blocks get in a call of their
            model, or `None` if that is not known.
        memory_mode: `"reversible"` or `"none"`.
    """

    def __init__(
        self,
        blocks: Sequence[keras.layers.Layer],
        beta: float,
        arguments: frozenset[str] | None,
        memory_mode: str = "reversible",
    ):
        self.blocks = list(blocks)
        self.beta = beta
        self.arguments = arguments
        self.memory_mode = memory_mode
        self.hosts = [_host(block) for block in blocks]
        originals = [Original(block) for block in blocks]
        self.dtype = at_least_float32(blocks[0].variable_dtype)
        # Without a velocity nothing is left of a block's input, so it is kept.
        self.checkpoints = [Checkpoint(x) for x in originals]
        self.stack = _stack(originals, beta, self.dtype) if beta else None
        self.decay = self.stack.couplings[0].decay if beta else 0.0  # a fraction, where exact

    @property
    def rebuilds(self) -> bool:
        """Whether inputs of its blocks are rebuilt, instead of kept."""
        whole = self.memory_mode != "none" and self.stack is not None
        return whole and self.stack.memory_mode == "reversible"

    def is_computed_whole(self) -> bool:
        """Whether a call of its model is under way, and not by plain differentiation."""
        return self.is_called() and way_of(self) is not walk.plain

    def attach(self) -> None:
        """Takes the blocks' places."""
        self.own = [{k: v for k, v in vars(x).items() if k in _REPLACED} for x in self.blocks]
        for index, block in enumerate(self.blocks):
            block.call = _Call(self, index, block.call)
            block.compute_output_spec = _Spec(block, block.compute_output_spec)
            block.get_config = _Config(self, index, block.get_config)
        if self.stack is not None and self.stack.couplings[0].exact:
            add_metric(self.hosts[0], self.stack.saturated)

    def detach(self) -> None:
        """Gives the places back."""
        for block, own in zip(self.blocks, self.own, strict=True):
            for name in _REPLACED:
                delattr(block, name)
            for name, value in own.items():
                setattr(block, name, value)
        if self.stack is not None and self.stack.couplings[0].exact:
            remove_metric(self.hosts[0], self.stack.saturated)

    def call(self, index: int, call: Any, args: tuple, kwargs: dict) -> Any:
        """What block `index` returns in the place of `call(*args, **kwargs)`."""
        block = self.blocks[index]
        whole = self.is_computed_whole()
        if not self.beta:
            if whole:
                return self._run(index, self.checkpoints[index], *args, **kwargs)
            return call(*args, **kwargs)
        x, arguments = _bind(block, args, kwargs)
        training = arguments.pop("training", None)
        position = get_tensor_attr(x, _POSITION)
        self._check(index, position)
        if position is None:
            known = self.arguments is None or set(arguments) - {"mask"} <= self.arguments
            if whole and known:
                return self._start(x, arguments, training)
            position = Position(self, -1, velocity=ops.zeros_like(ops.cast(x, self.dtype)))
        if position.velocity is None:
            return self._hand_on(index, position, arguments)
        return self._step(index, x, position, {**arguments, "training": training})

    def _step(self, index: int, x: Any, position: Position, arguments: dict) -> Any:
        """One block, by plain differentiation."""
        with original(self.blocks[index]):
            outputs = self.blocks[index](x, **arguments)
        return self._stepped(index, x, outputs, position)

    def _stepped(
        self, index: int, x: Any, outputs: Any, position: Position, masked: bool = False
    ) -> Any:
        several = isinstance(outputs, (tuple, list))
        fx, *extras = outputs if several else [outputs]
        wide = ops.cast(x, self.dtype) if position.wide is None else position.wide
        v = self.decay * position.velocity + (1 - self.decay) * difference(fx, wide)
        wide = wide + v
        y = ops.cast(wide, fx.dtype)
        y = masked_as(y, fx) if masked else y
        if index + 1 < len(self.blocks):
            wide = None if y is wide else wide
            set_tensor_attr(y, _POSITION, Position(self, index, velocity=v, wide=wide))
        return (y, *extras) if several else y

    def plain_call(self, index: int, args: tuple, kwargs: dict, masked: bool) -> Any:
        """A block's step on symbolic tensors: a twin of the block, and operations around it.

        With `masked`, its output takes on the mask that the block's own would have.
        """
        block = self.blocks[index]
        x, arguments = _bind(block, args, kwargs)
        position = get_tensor_attr(x, _POSITION)
        self._check(index, position)
        if position is None:
            position = Position(self, -1, velocity=ops.zeros_like(ops.cast(x, self.dtype)))
        outputs = twin(block, self.own[index], _REPLACED)(x, **arguments)
        return self._stepped(index, x, outputs, position, masked)

    def _start(self, x: Any, arguments: dict, training: bool | None) -> Any:
        """The whole run, in the call of its first block."""
        outputs = self._run(0, self.stack, x, training=training, **arguments)
        y, *extras = outputs if isinstance(outputs, tuple) else [outputs]
        n = len(extras) // len(self.blocks)
        extras = [extras[i * n : (i + 1) * n] for i in range(len(self.blocks))]
        y = ops.cast(y, x.dtype)  # blocks keep it
        return self._returned(Position(self, 0, arguments, y, extras))

    def _returned(self, position: Position) -> Any:
        """What a block returns where the run is computed as a whole."""
        y, extras = position.output, position.extras[position.index]
        if position.index + 1 < len(self.blocks):
            y = ops.copy(y)
            set_tensor_attr(y, _POSITION, position)
            self._call().handed_on.append(y)
        return (y, *extras) if extras else y

    def _run(self, index: int, layer: keras.layers.Layer, *args: Any, **kwargs: Any) -> Any:
        """Calls a layer of the run; what it adds as losses, a layer of block `index` adds."""
        outputs, losses = take_losses(layer, lambda: layer(*args, **kwargs))
        for loss in losses:
            self.hosts[index].add_loss(loss)
        return outputs

    def _hand_on(self, index: int, position: Position, arguments: dict) -> Any:
        if not same_arguments(arguments, position.arguments):
            raise ValueError(
                f"{self.name_of(index)} is called with other arguments than the block before it: "
                f"{sorted(arguments)} against {sorted(position.arguments)}, or other values of "
                "them. Its run was converted for calls with the same ones. Convert the blocks that "
                "get the same, by their names in `layers`."
            )
        return self._returned(dataclasses.replace(position, index=index))

    def _check(self, index: int, position: Position | None) -> None:
        comes_from = -1 if position is None else position.index
        if (position is not None and position.run is not self) or comes_from != index - 1:
            before = f"of '{self.blocks[index - 1].name}'" if index else "from outside its run"
            raise ValueError(
                f"{self.name_of(index)} is a part of a momentum network and expected the output "
                f"{before}, as it is, received another tensor. Call the whole run, or get the "
                "model back with `revkeras.from_momentum_net(model)`."
            )

    def _call(self) -> "ModelCall | None":
        """The call of its model that is under way."""
        return next((call for call in _CALLS.get() if self in call.runs), None)

    def is_called(self) -> bool:
        """Whether a call of its model is under way."""
        return self._call() is not None

    def name_of(self, index: int) -> str:
        """What errors call a block."""
        block = self.blocks[index]
        return f"Block '{block.name}' (of type {type(block).__name__})"


@dataclasses.dataclass
class ModelCall:
    """A call of a model; inside, its runs may compute as a whole.

    Attributes:
        runs: The model's runs.
        handed_on: What blocks returned for the next one alone.
    """

    runs: Sequence[MomentumRun]
    handed_on: list = dataclasses.field(default_factory=list)

    def __enter__(self) -> "ModelCall":
        self._token = _CALLS.set((*_CALLS.get(), self))
        return self

    def __exit__(self, *_: Any) -> None:
        _CALLS.reset(self._token)

    def check(self, outputs: Any) -> None:
        """Raises if what was for the next block alone is an output, or is read in the graph."""
        leaving = {id(x) for x in keras.tree.flatten(outputs)}
        for x in self.handed_on:
            if id(x) in leaving or verbs.is_read(x):
                position = get_tensor_attr(x, _POSITION)
                name = position.run.name_of(position.index)
                raise ValueError(
                    f"{name} is in the middle of a momentum network, which is computed as a whole, "
                    "and expected its output to be read by the next block alone. This call of the "
                    "model reads it too, which the calls that the model was converted for did not. "
                    "Convert the original with `layers` that leave out each block behind an output "
                    "that is read, or undo it with `revkeras.from_momentum_net(model)`."
                )


@contextlib.contextmanager
def written(runs: Iterable[MomentumRun]) -> Iterator[None]:
    """Inside, the blocks of `runs` give their configs, which go into one of the model."""
    token = _WRITTEN.set((*_WRITTEN.get(), *runs))
    try:
        yield
    finally:
        _WRITTEN.reset(token)


def is_in_run(layer: keras.layers.Layer) -> bool:
    """Whether a run has taken the place of a layer."""
    return isinstance(vars(layer).get("call"), _Call)


@dataclasses.dataclass(frozen=True)
class _Call:
    run: MomentumRun
    index: int
    before: Any

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if is_original(self.run.blocks[self.index]):
            return self.before(*args, **kwargs)
        return self.run.call(self.index, self.before, args, kwargs)


@dataclasses.dataclass(frozen=True)
class _Spec:
    """Shapes are those of the block itself."""

    block: keras.layers.Layer
    before: Any

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with original(self.block):
            return self.before(*args, **kwargs)


@dataclasses.dataclass(frozen=True)
class _Config:
    """A block's config, which alone makes a block that is in no run."""

    run: MomentumRun
    index: int
    before: Any

    def __call__(self) -> dict:
        if self.run in _WRITTEN.get():
            return self.before()
        raise TypeError(clone_refused(f"{self.run.name_of(self.index)} is a part of"))


def clone_refused(subject: str) -> str:
    """What is said where Keras would make a copy of a part that is not converted."""
    return (
        f"{subject} a momentum network, and what is made of its config alone, as by "
        "`keras.models.clone_model`, would not be. Save or copy the model that was converted, "
        "with `copy.deepcopy(model)` or `type(model).from_config(model.get_config())`, or clone "
        "it before it is converted."
    )


def _stack(originals: list, beta: float, dtype: str) -> ReversibleSequential:
    """The reversible stack of the run: exact where rounding would spoil it."""
    functions = []
    for block in originals:
        function = Residual(block)
        function.built = True  # it need not be residual: any block is `x + (block(x) - x)`
        functions.append(function)
    coupling, mode = Momentum(beta), "reversible"
    if len(functions) > coupling.depth_limit(dtype):
        try:
            coupling = Momentum(beta, exact=True)
        except ValueError:  # too near to 0: next to nothing is left of a block's input
            mode = "checkpoint"
    return ReversibleSequential(
        functions,
        coupling=coupling,
        split_axis=None,
        memory_mode=mode,
        check_inverse=False,
        dtype=dtype,
        name=f"{originals[0].block.name}_momentum",
    )


def _host(block: keras.layers.Layer) -> keras.layers.Layer:
    """The layer to which a block's losses and metrics are given.

    Keras passes over the metrics of models in a model, and does not see a block that was made of
    a functional model's own layers.
    """
    layers = flatten_layers(block)
    return next((x for x in layers if x.weights and not isinstance(x, keras.Model)), block)


def _bind(block: keras.layers.Layer, args: tuple, kwargs: dict) -> tuple[Any, dict]:
    """A block's input, and its further arguments without those left `None`."""
    bound = call_signature(block).bind(*args, **kwargs).arguments
    (_, x), *rest = bound.items()
    arguments = {}
    for name, value in rest:
        kind = call_signature(block).parameters[name].kind
        more = value if kind is inspect.Parameter.VAR_KEYWORD else {name: value}
        arguments.update({k: v for k, v in more.items() if v is not None})
    return x, arguments
