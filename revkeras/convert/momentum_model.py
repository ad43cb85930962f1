"""A model whose runs of residual blocks are momentum networks."""

import contextlib
import numbers
import re
from collections.abc import Iterator, Sequence
from typing import Any

import keras

from revkeras._engine import verbs
from revkeras._keras import (
    Functional,
    GraphModel,
    call_signature,
    compile_config,
    context_arguments,
    flatten_layers,
    jit_compile_of,
    unpickle_model,
)
from revkeras._stack.call_arguments import argument_names
from revkeras.convert.find_runs import FoundRun, find_runs, named_runs
from revkeras.convert.inlined_blocks import with_blocks
from revkeras.convert.momentum_run import (
    ModelCall,
    MomentumRun,
    clone_refused,
    is_in_run,
    written,
)


def to_momentum_net(
    model: keras.Model, layers: Sequence[str] | None = None, beta: float = 0.1
) -> keras.Model:
    """Makes the runs of residual blocks in a model momentum networks.

    The blocks of a run are called one on the other's output, `x = block(x)`. They
    become a momentum network, which can be trained without keeping what is inside
    or between them ([Sander et al., 2021](https://arxiv.org/abs/2102.07870)):

        v = beta * v + (1 - beta) * (block(x) - x)
        x = x + v

    With `beta` near 0 it computes what the model computed, so pretrained weights go
    on from where they were; what is kept of the velocity changes that little by
    little. The model is changed in its place: it has the same layers, weights,
    names and arguments as before, is of the same class, and trains, saves, exports
    and generates as before. `revkeras.from_momentum_net` is the way back.

    A call of the model computes each run as one `revkeras.ReversibleSequential`.
    It rebuilds inputs bit by bit, which takes `log2(1 / beta)` bits a block and
    element and a second evaluation of each block in the backward pass, where the
    run is too deep to be rebuilt in floating point: see `revkeras.couplings.Momentum`. Values
    beyond its range, such as `2**19 / (blocks + 1)` for what a block adds, are clipped then, and
    counted in the metric `<name of the first block>_momentum_saturated`, which `fit()` and
    `evaluate()` return beside the loss.
    With `beta=0`, or below 0.0005 in such a run, nothing of a block's input is left to
    rebuild it from, and it is kept. Where blocks are called outside of the model's
    own call, as for a cache in generation or in a model of a part of the layers,
    each takes its step by plain differentiation; but a functional model of a part
    of the tensors computes a block of the model's own operations as it was.

    Args:
        model: A built `keras.Model`: functional, `keras.Sequential` or subclassed.
        layers: A list of the names of the blocks, in the order of their calls; they
            may form more than one run. Defaults to `None`, which means all runs of
            at least two residual blocks of one type whose weights have the same
            shapes. Blocks are layers and models, and in a functional model also what
            it makes of its own operations as `x + f(x)`.
        beta: Float from 0, included, to 1, excluded: what is kept of the velocity.
            Defaults to `0.1`.

    Within a run, a block's output is for the next block alone. Blocks whose outputs are read
    otherwise, in inference or in training, are not put in the middle of one. A call in yet
    another mode, such as one that returns all blocks' outputs, is refused where it returns one
    of them as it is, and in a graph where anything reads one. What an eager call computes of
    one is not noticed: it is computed of the run's output.

    Copy a converted model with `copy.deepcopy` or from its config. `keras.models.clone_model`,
    which copies functional and sequential models layer by layer, is refused.

    A model that this one is a part of, and that has trained or predicted, goes on as it
    was traced until it is compiled again.

    Returns:
        The model.

    Raises:
        TypeError: for what is not a `keras.Model`.
        ValueError: for a bad `beta`, a model that is not built, one that is converted
            already or holds one, a model without a run, and names that form none. The
            converted model raises a `TypeError` for arguments that it did not take before.

    Example:

    >>> import keras, revkeras
    >>> x = inputs = keras.Input((8,))
    >>> for _ in range(4):
    ...     x = x + keras.layers.Dense(8, activation="tanh")(x)
    >>> model = keras.Model(inputs, x)
    >>> model is revkeras.to_momentum_net(model, beta=0.2)
    True
    """
    if not isinstance(model, keras.Model):
        raise TypeError(
            "Invalid value for argument `model`: expected a `keras.Model`, received "
            f"model={model!r} (of type {type(model).__name__}). Use `revkeras.to_reversible` for a "
            "list of layers."
        )
    if isinstance(beta, bool) or not isinstance(beta, numbers.Real) or not 0 <= beta < 1:
        raise ValueError(
            "Invalid value for argument `beta`: expected a number from 0, included, to 1, "
            f"excluded; received beta={beta!r}."
        )
    if isinstance(model, MomentumModel):
        raise ValueError(
            f"Model '{model.name}' is a momentum network already. Get it back with "
            "`revkeras.from_momentum_net(model)` to convert it with other arguments."
        )
    if not model.built:
        raise ValueError(
            f"Model '{model.name}' is not built, so its blocks have no weights to compare. Call it "
            "on data once, or `build()` it, before converting it."
        )
    _check_unconverted(model)
    if layers is not None:
        return _convert(model, named_runs(model, layers), float(beta), "reversible")
    graph = with_blocks(model)
    return _convert(model, find_runs(graph or model), float(beta), "reversible", graph)


def from_momentum_net(model: keras.Model) -> keras.Model:
    """Undoes `revkeras.to_momentum_net`, in the model's place.

    Its blocks compute as they did before the conversion, without a velocity, with
    the weights that they have now. `revkeras.to_plain` makes a model that keeps
    the velocity.

    Args:
        model: A model that `revkeras.to_momentum_net` converted, or one that was
            loaded or copied from such a one.

    Returns:
        The model.

    Raises:
        ValueError: for a model that is not converted.

    Example:

    >>> import keras, revkeras
    >>> x = inputs = keras.Input((8,))
    >>> for _ in range(4):
    ...     x = x + keras.layers.Dense(8, activation="tanh")(x)
    >>> model = revkeras.to_momentum_net(keras.Model(inputs, x), beta=0.2)
    >>> model is revkeras.from_momentum_net(model)
    True
    """
    if not isinstance(model, MomentumModel) or not model.momentum_runs:
        raise ValueError(
            "Invalid value for argument `model`: expected a model that "
            f"`revkeras.to_momentum_net` converted, received model={model!r} (of type "
            f"{type(model).__name__}). Pass the model that was converted, not one that holds it."
        )
    return revert(model)


def _check_unconverted(model: keras.Model) -> None:
    for layer in flatten_layers(model, include_self=False):
        if isinstance(layer, MomentumModel) or is_in_run(layer):
            raise ValueError(
                f"Model '{model.name}' holds a momentum network already: '{layer.name}' (of type "
                f"{type(layer).__qualname__}) is one, or a block of one. Undo that with "
                "`revkeras.from_momentum_net` before you convert this one."
            )


class MomentumModel(GraphModel):
    """What the class of a converted model has before the class it had.

    It is that class with runs that take their blocks' places.
    """

    _momentum_runs: "_Runs"

    @property
    def momentum_runs(self) -> list[MomentumRun]:
        # Keras makes models of this class without any, of layers of this one.
        return self._momentum_runs.runs if "_momentum_runs" in vars(self) else []

    @property
    def graph_of_blocks(self) -> keras.Model | None:
        """The model with blocks that its own operations make as layers, if it has such."""
        return self._momentum_runs.graph if "_momentum_runs" in vars(self) else None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        _check_arguments(self, set(kwargs))
        return super().__call__(*args, **kwargs)

    def compute_output_spec(self, *args: Any, **kwargs: Any) -> Any:
        if self.graph_of_blocks is None:
            return super().compute_output_spec(*args, **kwargs)
        with self._as_it_was():
            return self.compute_output_spec(*args, **kwargs)

    def graph_to_run(self) -> keras.Model | None:
        """What a functional model runs in its call, and Keras where it clones one."""
        graph = self.graph_of_blocks
        if graph is not None and not self.momentum_runs[0].is_called():
            raise TypeError(clone_refused(f"Model '{self.name}' is"))
        return graph

    def call(self, *args: Any, **kwargs: Any) -> Any:
        with ModelCall(self.momentum_runs) as call:
            outputs = super().call(*args, **kwargs)
        call.check(outputs)
        return outputs

    def get_config(self) -> dict:
        layers = flatten_layers(self.graph_of_blocks or self)
        places = {id(layer): place for place, layer in enumerate(layers)}
        runs = [
            {
                "blocks": [[places[id(block)], block.name] for block in run.blocks],
                "arguments": None if run.arguments is None else sorted(run.arguments),
                "beta": run.beta,
                "memory_mode": run.memory_mode,
            }
            for run in self.momentum_runs
        ]
        with written(self.momentum_runs), self._as_it_was():
            model = keras.saving.serialize_keras_object(self)
        return {"model": model, "runs": runs, "with_blocks": self.graph_of_blocks is not None}

    @classmethod
    def from_config(cls, config: dict, custom_objects: dict | None = None) -> keras.Model:
        original = cls.original_class
        known = {keras.saving.get_registered_name(original): original, **(custom_objects or {})}
        return SavedMomentumModel.from_config(config, known)

    def get_build_config(self) -> None:
        return None  # the model inside has its own

    def __reduce__(self) -> tuple:
        _, arguments = super().__reduce__()
        return unpickle_model, arguments  # the class of `self` cannot be pickled

    @contextlib.contextmanager
    def _as_it_was(self) -> Iterator[None]:
        """Inside, the model is of the class it had."""
        converted = type(self)
        self.__class__ = converted.original_class
        try:
            yield
        finally:
            self.__class__ = converted


@keras.saving.register_keras_serializable("revkeras")
class SavedMomentumModel:
    """Makes a momentum model of a file's config: its class is made when it is converted."""

    @classmethod
    def from_config(cls, config: dict, custom_objects: dict | None = None) -> keras.Model:
        # The converted model is compiled, where that is asked for.
        original = {k: v for k, v in config["model"].items() if k != "compile_config"}
        model = keras.saving.deserialize_keras_object(original, custom_objects)
        graph = with_blocks(model) if config["with_blocks"] else None
        layers = flatten_layers(graph or model)
        for run in config["runs"]:
            blocks = [layers[place] if place < len(layers) else None for place, _ in run["blocks"]]
            names = [name for _, name in run["blocks"]]
            found = [getattr(block, "name", "") for block in blocks]
            if list(map(_unnumbered, found)) != list(map(_unnumbered, names)):
                raise ValueError(
                    f"Model '{model.name}' does not have the layers {names} where they were when "
                    "it was converted, so it cannot be loaded. Rebuild the model, convert it, and "
                    "load its weights."
                )
            arguments = None if run["arguments"] is None else frozenset(run["arguments"])
            runs = [FoundRun(blocks, arguments)]
            model = _convert(model, runs, run["beta"], run["memory_mode"], graph)
        return model

    def get_config(self) -> dict:
        raise NotImplementedError("Configs of momentum models come from the models.")


def _convert(
    model: keras.Model,
    found: list[FoundRun],
    beta: float,
    memory_mode: str,
    graph: keras.Model | None = None,
) -> keras.Model:
    """Puts runs into the places of the blocks of the model, or of `graph`, that is made of it."""
    runs = [MomentumRun(run.blocks, beta, run.arguments, memory_mode) for run in found]
    for run in runs:
        run.attach()
    if not isinstance(model, MomentumModel):
        model._momentum_runs = _Runs(model, graph)
        model.__class__ = _class_of(type(model))
        if not verbs.joins_compile:  # in one program, memory would grow with depth
            model.supports_jit = False
            if jit_compile_of(model):
                model.jit_compile = False
    model.momentum_runs.extend(runs)
    _forget_graphs(model)
    return model


def _unnumbered(name: str) -> str:
    """A layer's name without the number that Keras puts behind one of its own."""
    return re.sub(r"_\d+$", "", name)


def _check_arguments(model: keras.Model, names: set[str]) -> None:
    """Raises if the model's own call does not take one of the arguments."""
    parameters = call_signature(model).parameters
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    own = type(model).original_class.call
    if takes_any and own not in (Functional.call, keras.Sequential.call):
        return
    taken = {next(iter(parameters)), "training", *argument_names(model)}
    if names <= taken:
        return
    # Others like `training`: Keras hands them to the layers that know them.
    in_context = map(context_arguments, flatten_layers(model))
    if unknown := names - taken.union(*in_context):
        way = "All tensors of a functional model go into its first argument." if takes_any else ""
        raise TypeError(
            f"Model '{model.name}' received the arguments {sorted(unknown)}, which its `call()` "
            f"does not take: it takes {sorted(taken)}. {way}".rstrip()
        )


def revert(model: keras.Model) -> keras.Model:
    """The model with its blocks and its class as they were."""
    for run in model.momentum_runs:
        run.detach()
    model.__class__ = type(model).original_class
    model._momentum_runs.restore(model)
    del model._momentum_runs
    _forget_graphs(model)
    return model


def _forget_graphs(model: keras.Model) -> None:
    """Makes `fit()`, `evaluate()`, `predict()` and KerasHub's `generate()` trace the model anew."""
    model.train_function = model.test_function = model.predict_function = None
    if hasattr(model, "generate_function"):
        model.generate_function = None


class _Runs:
    """The runs, out of sight of Keras, which would track the layers in a list.

    And what `Model.compile()` had decided before they were made.
    """

    def __init__(self, model: keras.Model, graph: keras.Model | None):
        self.runs: list[MomentumRun] = []
        self.graph = graph
        self.supports_jit = model.supports_jit
        self.compiled = compile_config(model), jit_compile_of(model)

    def restore(self, model: keras.Model) -> None:
        model.supports_jit = self.supports_jit
        config, jit_compile = self.compiled
        if compile_config(model) is config:  # not compiled since
            model.jit_compile = jit_compile


def _class_of(original: type) -> type:
    """The class of a converted model: under this name its config is found again."""
    body = {
        "original_class": original,
        "__module__": original.__module__,
        "__qualname__": original.__qualname__,
    }
    name = keras.saving.get_registered_name(SavedMomentumModel)
    return type(name, (MomentumModel, original), body)
