"""Small training runs, on many workers or on one, that are to end with the same weights."""

import dataclasses
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

import revkeras

L, O = keras.layers, keras.optimizers
BATCH = 24  # divisible by 2, 3 and 4
STEPS = 20


def dense():
    return keras.Sequential([keras.Input((10,)), L.Dense(17, "tanh"), L.Dense(13), L.Dense(3)])


def stack(depth=4):
    def block():
        return keras.Sequential([L.LayerNormalization(), L.Dense(9, "tanh"), L.Dense(5)])

    return keras.Sequential(
        [
            keras.Input((10,)),
            L.Dense(10),
            revkeras.ReversibleSequential([block() for _ in range(depth)]),
            L.Dense(3),
        ]
    )


def odd(embedding=True):
    """Frozen, shared and unused variables, a constraint and a regularizer, an embedding."""
    x = keras.Input((10,))
    shared = L.Dense(10, "tanh")
    frozen = L.Dense(10, trainable=False)
    limited = L.Dense(12, kernel_constraint=keras.constraints.MaxNorm(0.9))
    y = frozen(shared(x)) + shared(shared(x))
    y = limited(y) + L.Dense(12, kernel_regularizer="l2")(x)
    if embedding:
        tokens = keras.ops.cast(keras.ops.abs(x) * 3, "int32")
        y += keras.ops.mean(L.Embedding(20, 12)(keras.ops.minimum(tokens, 19)), axis=1)
    return keras.Model(x, L.Dense(3)(WithUnused()(y)))


def odd_without_embedding():
    # One process squares an embedding's gradient row by row, before repeated rows are summed up.
    return odd(embedding=False)


class WithUnused(keras.layers.Layer):
    def build(self, shape):
        self.used = self.add_weight((shape[-1],), "ones", name="used")
        self.unused = self.add_weight((7,), "ones", name="unused")

    def call(self, x):
        return x * self.used


def checkpointed():
    block = keras.Sequential([L.Dense(30, "relu"), L.Dense(10)])
    return keras.Sequential([keras.Input((10,)), revkeras.Checkpoint(block), L.Dense(3)])


def recurrent():
    x = keras.Input((10,))
    return keras.Model(x, L.Dense(3)(L.LSTM(6)(keras.ops.expand_dims(x, -1))))


def one_layer():
    return keras.Sequential([keras.Input((10,)), L.Dense(3)])


def frozen_blocks():
    model = stack()
    model.layers[1].layers[1].trainable = False
    return model


@dataclasses.dataclass(frozen=True)
class Case:
    """One run.

    Attributes:
        optimizer: Makes the optimizer.
        model: Makes the model.
        stage: The strategy's stage.
        policy: The dtype policy.
        tolerance: How far the weights may be off, relative to the largest of a tensor.
        options: Further arguments of the strategy.
    """

    # What is off is measured relative to a tensor's norm; in 16 bits, to that of all weights.

    optimizer: Callable
    model: Callable = stack
    stage: int = 2
    policy: str = "float32"
    tolerance: float = 1e-5
    options: dict = dataclasses.field(default_factory=dict)


def excluding(optimizer):
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    return optimizer


FOUR = {
    "sgd": lambda: O.SGD(0.05, momentum=0.9),
    "adamw": lambda: O.AdamW(1e-2, weight_decay=0.02),
    "lion": lambda: O.Lion(1e-3),
    "muon": lambda: O.Muon(1e-2),
}
ELEMENTWISE = {
    "rmsprop": lambda: O.RMSprop(1e-3, momentum=0.9, centered=True),
    "adagrad": lambda: O.Adagrad(1e-2),
    "adadelta": lambda: O.Adadelta(1.0),
    "adamax": lambda: O.Adamax(1e-3),
    "nadam": lambda: O.Nadam(1e-3),
    "ftrl": lambda: O.Ftrl(1e-2),
    "amsgrad": lambda: O.Adam(1e-3, amsgrad=True),
}
WHOLE = {
    "adafactor": lambda: O.Adafactor(1e-2),
    "lamb": lambda: O.Lamb(1e-2),
    "schedulefree": lambda: O.ScheduleFreeAdamW(1e-2),
}
OPTIONS = {
    "clipnorm": lambda: O.SGD(0.1, momentum=0.9, clipnorm=0.05),
    "global_clipnorm": lambda: O.SGD(0.1, momentum=0.9, global_clipnorm=0.1),
    "clipvalue": lambda: O.SGD(0.1, momentum=0.9, clipvalue=0.01),
    "ema": lambda: O.Adam(1e-2, use_ema=True, ema_momentum=0.8, ema_overwrite_frequency=5),
    "accumulation": lambda: O.AdamW(1e-2, gradient_accumulation_steps=4, global_clipnorm=0.1),
    "schedule": lambda: O.Adam(O.schedules.ExponentialDecay(1e-2, 5, 0.5)),
    "exclusions": lambda: excluding(O.AdamW(1e-2, weight_decay=0.5)),
    "loss_scale": lambda: O.LossScaleOptimizer(O.Adam(1e-3), initial_scale=2.0**10),
}

CASES = {
    f"{name}-{stage}": Case(optimizer, stage=stage)
    for name, optimizer in FOUR.items()
    for stage in (1, 2, 3)
}
MORE = {
    **{name: Case(make) for name, make in (ELEMENTWISE | WHOLE).items()},
    **{
        f"{name}-{stage}": Case(make, stage=stage, policy="float64", tolerance=1e-9)
        for name, make in OPTIONS.items()
        for stage in (2, 3)
    },
    "adafactor-3": Case(WHOLE["adafactor"], stage=3),
    "muon-clipnorm": Case(lambda: O.Muon(1e-2, clipnorm=0.02), stage=3),
    "odd-2": Case(FOUR["sgd"], odd),
    "odd-3": Case(FOUR["sgd"], odd, 3),
    "odd-lamb-3": Case(WHOLE["lamb"], odd_without_embedding, 3, "float64", 1e-9),
    "checkpointed": Case(FOUR["adamw"], checkpointed, 3),
    "recurrent": Case(FOUR["adamw"], recurrent, 3),
    "frozen_blocks": Case(FOUR["adamw"], frozen_blocks, 3),
    "bfloat16-2": Case(FOUR["sgd"], dense, 2, "mixed_bfloat16", 3e-2),
    "bfloat16-s": Case(FOUR["sgd"], stack, 2, "mixed_bfloat16", 3e-2),
    "bfloat16-3": Case(FOUR["sgd"], stack, 3, "mixed_bfloat16", 3e-2),
    "float16-2": Case(FOUR["sgd"], dense, 2, "mixed_float16", 2e-3),
    "float16-3": Case(FOUR["sgd"], stack, 3, "mixed_float16", 2e-3),
    "host-2": Case(FOUR["adamw"], dense, options={"offload": "host"}),
    "host-3": Case(FOUR["adamw"], stage=3, options={"offload": "host"}),
    "idle_ranks": Case(FOUR["muon"], one_layer),
}


def batches(with_overflow=False, steps=STEPS):
    rng = np.random.default_rng(3)
    x = rng.standard_normal((steps, BATCH, 10)).astype("float32")
    y = np.tanh(x @ rng.standard_normal((10, 3))).astype("float32")
    if with_overflow:
        x[7, 0] = 1e30  # on rank 0 alone
    return list(zip(x, y))


def train(case, strategy=None) -> list[Any]:
    """Trains on this rank's rows of each batch; returns the weights."""
    rank, size = (strategy.rank, strategy.size) if strategy else (0, 1)
    keras.utils.set_random_seed(5 + 100 * rank)
    keras.config.set_dtype_policy(case.policy)
    keras.config.set_floatx("float64" if case.policy == "float64" else "float32")
    if strategy is None:
        model = case.model()
        model.compile(case.optimizer(), "mse", jit_compile=False)
        model.optimizer.build(model.trainable_variables)  # eagerly, as ScheduleFreeAdamW needs it
    else:
        with strategy.scope():
            model = case.model()
            model.compile(strategy.optimizer(case.optimizer()), "mse")
    rows = slice(rank * BATCH // size, (rank + 1) * BATCH // size)
    scales = isinstance(case.optimizer(), O.LossScaleOptimizer)
    for x, y in batches(with_overflow=scales):
        model.train_on_batch(x[rows], y[rows])
    model.optimizer.finalize_variable_values(model.trainable_variables)
    if strategy is not None:
        strategy.publish_exactly(model)
    keras.config.set_dtype_policy("float32")
    keras.config.set_floatx("float32")
    return model.get_weights()


def error(case, found, expected):
    """How far the weights are off, as the case's tolerance counts it."""
    norm = np.linalg.norm
    parts = [norm(a.astype("float64") - b) for a, b in zip(found, expected, strict=True)]
    wholes = [norm(b) for b in expected]
    if "16" in case.policy:
        return norm(parts) / norm(wholes)
    return max(part / (whole or 1) for part, whole in zip(parts, wholes))
