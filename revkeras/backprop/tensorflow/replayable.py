"""What a block may not do where it is replayed for the gradient."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import tensorflow as tf

from revkeras.backprop.tensorflow.fingerprint import fingerprint


def check_replays(name: str, function: Callable, arguments: Any) -> None:
    """Raises for a function that would compute something else when it is traced again.

    Eagerly that cannot be told.
    """
    if tf.executing_eagerly():
        return
    found = fingerprint(function, arguments)
    refuse_unreplayable(name, found.operations)
    if fingerprint(function, arguments) != found:
        refuse_changing(name, found.operations)


def refuse_untracked(variables: Sequence[tf.Variable]) -> None:
    """Raises if a block read a variable that is none of the engine's arguments."""
    if variables:
        raise ValueError(
            "A block reads variables that Keras does not track as its own, so no gradient "
            f"could reach them: {[v.name for v in variables]}. Make them weights of the "
            "block: create them with `self.add_weight(...)` in `build()`, or hold the layers "
            "that own them in attributes of the block."
        )


_DRAWS = {
    "FractionalAvgPool",
    "FractionalMaxPool",
    "Multinomial",
    "NonDeterministicInts",
    "ParameterizedTruncatedNormal",
    "RandomGamma",
    "RandomPoisson",
    "RandomPoissonV2",
    "RandomShuffle",
    "RandomStandardNormal",
    "RandomUniform",
    "RandomUniformInt",
    "RngReadAndSkip",
    "StatefulRandomBinomial",
    "TruncatedNormal",
}


def refuse_changing(name: str, operations: Iterable[str]) -> None:
    """Raises for a step that traces to another graph each time."""
    if {"PyFunc", "EagerPyFunc", "PyFuncStateless"} & set(operations):
        return  # these have another number each time
    raise ValueError(
        f"{name} does not trace to the same graph twice, so its replay in the backward pass would "
        "compute something else. Its `call()` depends on Python values that change, such as "
        "random numbers of NumPy, a counter or the time. Draw random numbers by `keras.random` "
        "with `seed=self.seed_generator`, a `keras.random.SeedGenerator` made in the block's "
        "`__init__()`, keep what changes in `self.add_weight(..., trainable=False)`, or leave the "
        "block out of what is recomputed, as `memory_mode='none'` does."
    )


def refuse_unreplayable(name: str, operations: Iterable[str]) -> None:
    """Raises if a step draws random numbers that it would not draw again."""
    found = sorted(_DRAWS & set(operations))
    if found:
        raise ValueError(
            f"{name} draws random numbers by TensorFlow's {', '.join(found)}, which gives others "
            "when the block is replayed in the backward pass. Draw them by `keras.random` with "
            "`seed=self.seed_generator`, a `keras.random.SeedGenerator` made in the block's "
            "`__init__()`, or leave the block out of what is recomputed, as `memory_mode='none'` "
            "does."
        )
