"""Small training runs, on many workers or on one, that are to end with the same weights."""

import dataclasses
from collections.abc import Callable

import keras
import numpy as np

import revkeras

L = keras.layers
STEPS, BATCH = 20, 24  # divisible by 2, 3 and 4


@dataclasses.dataclass(frozen=True)
class Case:
    """One run: a model, an optimizer, and the arguments of the strategy."""

    optimizer: Callable
    model: Callable
    options: dict


def dense():
    return keras.Sequential(
        [
            keras.Input((10,)),
            L.Dense(17, activation="tanh"),
            L.Dense(13, activation="tanh", name="middle"),
            L.Dense(3),
        ]
    )


def stack(memory_mode="reversible"):
    def block():
        return keras.Sequential([L.LayerNormalization(), L.Dense(9, activation="tanh"), L.Dense(5)])

    return keras.Sequential(
        [
            keras.Input((10,)),
            L.Dense(10),
            revkeras.ReversibleSequential([block() for _ in range(4)], memory_mode=memory_mode),
            L.Dense(3),
        ]
    )


OPTIMIZERS = {
    "sgd": lambda: keras.optimizers.SGD(0.05, momentum=0.9),
    "adamw": lambda: keras.optimizers.AdamW(1e-2, weight_decay=0.02),
    "lion": lambda: keras.optimizers.Lion(1e-3),
    "muon": lambda: keras.optimizers.Muon(1e-2),
}

CASES = {
    f"{name}-{model.__name__}-{stage}": Case(
        optimizer, model, {"stage": stage, "bucket_bytes": 600, "shard_bytes": 400}
    )
    for name, optimizer in OPTIMIZERS.items()
    for model in (dense, stack)
    for stage in (1, 2, 3)
}


def batches(steps=STEPS):
    rng = np.random.default_rng(3)
    x = rng.standard_normal((steps, BATCH, 10)).astype("float32")
    y = np.tanh(x @ rng.standard_normal((10, 3))).astype("float32")
    return list(zip(x, y))


def train(case, strategy=None):
    """Trains on this rank's rows of each batch; returns the weights."""
    rank, size = (strategy.rank, strategy.size) if strategy else (0, 1)
    keras.utils.set_random_seed(5 + 100 * rank)
    if strategy is None:
        model = case.model()
        model.compile(case.optimizer(), "mse")
    else:
        with strategy.scope():
            model = case.model()
            model.compile(strategy.optimizer(case.optimizer()), "mse")
    rows = slice(rank * BATCH // size, (rank + 1) * BATCH // size)
    for x, y in batches():
        model.train_on_batch(x[rows], y[rows])
    return model.get_weights()
