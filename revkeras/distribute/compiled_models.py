"""What a model that is compiled under a strategy's scope does differently."""

import contextlib
import functools
import inspect
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import keras

from revkeras._engine import verbs
from revkeras._keras import compile_config
from revkeras.distribute import membership, variable_creation
from revkeras.distribute.callbacks import SameData, only_from_rank_0, refuse_unfit
from revkeras.distribute.data_sharding import RowsOfRank
from revkeras.distribute.files import exporting_together, saving_together
from revkeras.distribute.metrics import LogsOfAllRanks
from revkeras.distribute.model_optimizers import facts, in_attributes
from revkeras.distribute.start import start_together
from revkeras.distribute.zero_optimizer import ZeroOptimizer

_LENGTHS = (
    *("epochs", "initial_epoch", "steps_per_epoch"),
    *("validation_steps", "validation_freq", "validation_split"),
)


@contextlib.contextmanager
def intercepted_compile(strategy: Any) -> Iterator[None]:
    """Within it, the strategy takes on the models that are compiled."""
    compile, from_config = keras.Model.compile, keras.Model.compile_from_config

    @functools.wraps(compile)
    def compile_for(model: keras.Model, *args: Any, **kwargs: Any) -> None:
        signature = inspect.signature(compile)
        call = signature.bind(model, *args, **kwargs)
        given = call.arguments
        if "optimizer" not in given:  # as in a `compile()` of the user's that has others
            default = signature.parameters["optimizer"].default
            given["optimizer"] = strategy.optimizer(keras.optimizers.get(default))
            strategy.unasked_optimizers.add(given["optimizer"])
        optimizer = given["optimizer"]
        if optimizer is not None:
            _refuse_foreign("optimizer", optimizer, strategy)
        _refuse_xla(given)
        scales = given.pop("auto_scale_loss", True)
        if optimizer is not None and scales and model.dtype_policy.name == "mixed_float16":
            optimizer.scale_dynamically()
        given.update(jit_compile=False, auto_scale_loss=False)
        compile(*call.args, **call.kwargs)
        if optimizer is not None:  # files are to be read without this package
            compile_config(model).config["optimizer"] = optimizer.wrapped()
        strategy.take_on(model)

    @functools.wraps(from_config)
    def compile_from_file(model: keras.Model, config: dict) -> None:
        if type(model).compile is not compile_for:
            from_config(model, config)  # which warns that nothing is compiled
            return
        config = keras.saving.deserialize_keras_object(config)
        optimizer = strategy.optimizer(config.pop("optimizer"))
        model.compile(optimizer, **{**config, "jit_compile": False})
        if model.built:
            optimizer.build(model.trainable_variables)

    keras.Model.compile, keras.Model.compile_from_config = compile_for, compile_from_file
    try:
        yield
    finally:
        keras.Model.compile, keras.Model.compile_from_config = compile, from_config


def take_part(model: keras.Model, strategy: Any, prepare: Callable[[Any], None]) -> None:
    """Has the model's methods act as one of many workers'.

    Args:
        model: A compiled model.
        strategy: The strategy, of more than one worker.
        prepare: `prepare(x)` is called before the model is first called on inputs.
    """
    logs = LogsOfAllRanks(model, strategy.engine)
    for name in ("train_step", "test_step", "predict_step"):
        setattr(model, name, _step(model, name, strategy, prepare, logs))
    model.get_metrics_result = logs.get_metrics_result
    for name in ("save", "save_weights"):
        setattr(model, name, saving_together(model, name, strategy))
    model.export = exporting_together(model, strategy, variable_creation.KERAS_OWN)
    for name in ("fit", "evaluate", "predict"):
        setattr(model, name, _from_rank_0(getattr(type(model), name), model, strategy))


def _step(
    model: keras.Model, name: str, strategy: Any, prepare: Callable, logs: LogsOfAllRanks
) -> Callable:
    step = getattr(type(model), name).__get__(model)
    agreed = []

    @functools.wraps(step)
    def taken_together(data: Any) -> Any:
        x, _, _ = keras.utils.unpack_x_y_sample_weight(data)
        with verbs.eager_scope():
            if not agreed:
                for attribute, optimizer in in_attributes(model):
                    _refuse_foreign(attribute, optimizer, strategy)
                membership.agree({f"the batch of `{name}`": _spec(data), **facts(strategy, model)})
                agreed.append(True)
            prepare(x)
        if name == "predict_step":
            return step(data)
        if name == "train_step":
            start_together(model, x, strategy.engine)
        results = logs.of(step, data)
        if name == "train_step":
            strategy.average_state(model)
        return results

    return taken_together


def _from_rank_0(method: Callable, model: keras.Model, strategy: Any) -> Callable:
    """The method with its progress bar and its files from rank 0 alone."""

    @functools.wraps(method)
    def run(*args: Any, **kwargs: Any) -> Any:
        call = inspect.signature(method).bind(model, *args, **kwargs)
        given = call.arguments
        own = strategy.callbacks()
        if method.__name__ == "fit":
            membership.agree(_length_of(call))
            first = strategy.first_batches(given.get("x"))
            if strategy.rank == 0 and not first:
                _warn_of_whole_batches(strategy.size)
            own += map(SameData, first)
        if strategy.rank:
            given["verbose"] = 0
        callbacks = given.get("callbacks")
        if not isinstance(callbacks, keras.callbacks.CallbackList):
            callbacks = keras.tree.flatten(callbacks) if callbacks else []
            own = [c for c in own if type(c) not in map(type, callbacks)]
            refuse_unfit(callbacks, strategy.stage)
            given["callbacks"] = only_from_rank_0([*own, *callbacks], strategy.rank)
        if isinstance(given.get("x"), RowsOfRank) and method.__name__ == "fit":
            given["x"].shuffles, given["shuffle"] = given.get("shuffle", True), False
        return method(*call.args, **call.kwargs)

    return run


def _warn_of_whole_batches(size: int) -> None:
    warnings.warn(
        "`fit` got data that `strategy.shard` did not make. If the workers read the same data, "
        f"each of the {size} computes whole batches, and training is no faster for it: write "
        "`model.fit(strategy.shard(dataset))`. If each reads a part of its own, all is well.",
        stacklevel=3,
    )


def _length_of(fit: inspect.BoundArguments) -> dict:
    """What says how many steps a call of `fit` takes, beside its data."""
    fit = inspect.BoundArguments(fit.signature, dict(fit.arguments))
    fit.apply_defaults()
    given = fit.arguments
    facts = {f"`fit`'s {name}": str(given[name]) for name in _LENGTHS if name in given}
    return {**facts, "validation": given.get("validation_data") is not None}


def _spec(data: Any) -> str:
    leaves = keras.tree.flatten(data)
    return ", ".join(f"{tuple(x.shape)} {x.dtype.name}" for x in leaves if x is not None)


def _refuse_xla(given: dict) -> None:
    if given.get("jit_compile", "auto") is True:
        raise ValueError(
            "Invalid value for argument `jit_compile`: expected 'auto' or False under a "
            "ZeroStrategy, received jit_compile=True. XLA would compile the whole step as one "
            "program, which the communication between workers cannot be a part of. Blocks "
            "are compiled by themselves: ReversibleSequential(jit_compile=True)."
        )


def _refuse_foreign(name: str, optimizer: Any, strategy: Any) -> None:
    if not isinstance(optimizer, ZeroOptimizer):
        raise ValueError(
            f"Invalid value for argument `{name}`: expected one that the strategy made, "
            "strategy.optimizer(keras.optimizers.AdamW(1e-3)), received "
            f"{name}={optimizer!r} (of type {type(optimizer).__name__}), by which each worker "
            "would train for itself."
        )
    if optimizer.strategy is not strategy:
        raise ValueError(
            f"Invalid value for argument `{name}`: expected one that this scope's strategy made, "
            "received that of another strategy. Use one strategy for all that is trained together."
        )
