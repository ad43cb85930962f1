"""Models that are compiled under a strategy's scope."""

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import keras

from revkeras import backprop
from revkeras.distribute.optimizer import ZeroOptimizer


@contextlib.contextmanager
def intercepted(strategy: Any) -> Iterator[None]:
    """Within it, the strategy takes on the models that are compiled."""
    compile = keras.Model.compile

    @functools.wraps(compile)
    def compile_for(model: keras.Model, optimizer: Any = "rmsprop", *args: Any, **kwargs: Any):
        _refuse_foreign(optimizer, strategy)
        if kwargs.get("jit_compile") is True:
            raise ValueError(
                "Invalid value for argument `jit_compile`: expected 'auto' or False under a "
                "ZeroStrategy, received jit_compile=True. XLA would compile the whole step as one "
                "program, which the communication between workers cannot be a part of. Blocks "
                "are compiled by themselves: ReversibleSequential(jit_compile=True)."
            )
        kwargs["jit_compile"] = False
        scales = kwargs.pop("auto_scale_loss", True) and model.dtype_policy.name == "mixed_float16"
        if scales:
            optimizer.scale_dynamically()
        compile(model, optimizer, *args, auto_scale_loss=False, **kwargs)
        # Files are to be read without this package.
        model._compile_config.config["optimizer"] = optimizer.inner
        strategy.take_on(model)

    keras.Model.compile = compile_for
    try:
        yield
    finally:
        keras.Model.compile = compile


def _refuse_foreign(optimizer: Any, strategy: Any) -> None:
    if not isinstance(optimizer, ZeroOptimizer):
        raise ValueError(
            "Invalid value for argument `optimizer`: expected one that the strategy made, "
            "strategy.optimizer(keras.optimizers.AdamW(1e-3)), received "
            f"optimizer={optimizer!r} (of type {type(optimizer).__name__}), by which each worker "
            "would train for itself."
        )
    if optimizer.strategy is not strategy:
        raise ValueError(
            "Invalid value for argument `optimizer`: expected one that this scope's strategy made, "
            "received that of another strategy. Use one strategy for all that is trained together."
        )


def in_step(model: keras.Model, prepare: Any) -> None:
    """Calls `prepare(x)` before the model is first called on an input."""
    for name in ("train_step", "test_step", "predict_step"):
        setattr(model, name, _preparing(getattr(model, name), prepare))


def _preparing(step: Any, prepare: Any) -> Any:
    @functools.wraps(step)
    def prepared(data: Any) -> Any:
        with backprop.eager_scope():
            prepare(keras.utils.unpack_x_y_sample_weight(data)[0])
        return step(data)

    return prepared
