"""Small training runs, on many workers or on one, that are to end with the same weights."""

import dataclasses
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

import revkeras
from revkeras.distribute.parameters import raw
from revkeras.distribute.zero_optimizer import ZeroOptimizer
from tests.compiling import compiled

L, opt = keras.layers, keras.optimizers
BATCH = 24  # divisible by 2, 3 and 4
STEPS = 20


def dense():
    return keras.Sequential([keras.Input((10,)), L.Dense(17, "tanh"), L.Dense(3)])


def stack(width=5, first=()):
    """A stack of two blocks, each with the layers that `first` makes and two dense ones."""

    def block():
        layers = [make() for make in first]
        return keras.Sequential([*layers, L.Dense(2 * width - 1, "tanh"), L.Dense(width)])

    return keras.Sequential(
        [
            keras.Input((10,)),
            L.Dense(2 * width),
            revkeras.ReversibleSequential([block() for _ in range(2)]),
            L.Dense(3),
        ]
    )


def normalized():
    return stack(first=[L.LayerNormalization])


def wide():
    return stack(width=64, first=[L.LayerNormalization])


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


class WithPenalty(keras.Model):
    """Its loss has the squares of two gradients in it: at the inputs, and at the weights."""

    def train_step(self, data):
        x, y, _ = keras.utils.unpack_x_y_sample_weight(data)
        with tf.GradientTape() as tape:
            with tf.GradientTape(persistent=True) as inner:
                inner.watch(x)
                outputs = self(x, training=True)
                loss = self.compute_loss(x, y, outputs)
            slopes = inner.gradient(outputs, x)  # of each row alone
            gradients = inner.gradient(loss, self.trainable_weights)  # of slices, at stage 3
            squares = [tf.reduce_sum(g**2) for g in gradients]
            slope = tf.cast(tf.reduce_mean(slopes**2), loss.dtype)
            total = loss + 0.1 * slope + 0.01 * tf.add_n(squares)
        gradients = tape.gradient(total, self.trainable_weights)
        self.optimizer.apply(gradients, self.trainable_weights)
        return {"loss": loss}


def with_penalty():
    block = keras.Sequential([L.Dense(30, "tanh"), L.Dense(10)])
    x = keras.Input((10,))
    return WithPenalty(x, stack()(revkeras.Checkpoint(block)(L.Dense(10, "tanh")(x))))


class Clipped(keras.Sequential):
    """Assigns its weights inside the compiled step, before the update and after it."""

    def train_step(self, data):
        for v in self.trainable_variables:
            v.assign(0.99 * v)
        logs = super().train_step(data)
        for v in self.trainable_variables:
            v.assign(keras.ops.clip(v, -0.2, 0.2))
        return logs


def clipped():
    return Clipped(stack().layers)


def clipped_dense():
    return Clipped([keras.Input((10,)), *dense().layers])


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
        steps: How many batches it is trained on.
    """

    # What is off is measured relative to a tensor's norm; in 16 bits, to that of all weights.

    optimizer: Callable
    model: Callable = stack
    stage: int = 2
    policy: str = "float32"
    tolerance: float = 1e-5
    options: dict = dataclasses.field(default_factory=dict)
    steps: int = STEPS


def excluding(optimizer):
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    return optimizer


FOUR = {
    "sgd": lambda: opt.SGD(0.05, momentum=0.9),
    "adamw": lambda: opt.AdamW(1e-2, weight_decay=0.02),
    "lion": lambda: opt.Lion(1e-3),
    "muon": lambda: opt.Muon(1e-2),
}
ELEMENTWISE = {
    "rmsprop": lambda: opt.RMSprop(1e-3, momentum=0.9, centered=True),
    "adagrad": lambda: opt.Adagrad(1e-2),
    "adadelta": lambda: opt.Adadelta(1.0),
    "adamax": lambda: opt.Adamax(1e-3),
    "nadam": lambda: opt.Nadam(1e-3),
    "ftrl": lambda: opt.Ftrl(1e-2),
    "amsgrad": lambda: opt.Adam(1e-3, amsgrad=True),
}
WHOLE = {
    "adafactor": lambda: opt.Adafactor(1e-2),
    "lamb": lambda: opt.Lamb(1e-2),
    "schedulefree": lambda: opt.ScheduleFreeAdamW(1e-2),
}
OPTIONS = {
    "clipnorm": lambda: opt.SGD(0.1, momentum=0.9, clipnorm=0.05),
    "global_clipnorm": lambda: opt.SGD(0.1, momentum=0.9, global_clipnorm=0.1),
    "clipvalue-schedule": lambda: opt.SGD(
        opt.schedules.ExponentialDecay(0.1, 5, 0.5), momentum=0.9, clipvalue=0.01
    ),
    "ema-exclusions": lambda: excluding(
        opt.AdamW(1e-2, weight_decay=0.5, use_ema=True, ema_momentum=0.8, ema_overwrite_frequency=5)
    ),
    "accumulation": lambda: opt.AdamW(1e-2, gradient_accumulation_steps=4, global_clipnorm=0.1),
}


def of_costs(optimizer, stage, policy="float32"):
    """What a step moves is seen in the second one."""
    return Case(FOUR[optimizer], wide, stage, policy, options={"bucket_bytes": 2**14}, steps=2)


CASES = {
    f"{name}-{stage}": Case(optimizer, normalized if name == "adamw" else stack, stage)
    for name, optimizer in FOUR.items()
    for stage in (1, 2, 3)
}
# Tracing a stack takes longest: norms of whole variables are taken over a stack's slices too, and
# the rest is on dense layers.
OF_NORMS = "clipnorm", "global_clipnorm", "accumulation"
MORE = {
    **{name: Case(make, dense) for name, make in ELEMENTWISE.items()},
    **{name: Case(make, normalized) for name, make in WHOLE.items()},
    **{
        name: Case(make, stack if name in OF_NORMS else dense, 3, "float64", 1e-9)
        for name, make in OPTIONS.items()
    },
    "loss_scale": Case(
        lambda: opt.LossScaleOptimizer(opt.Adam(1e-3), initial_scale=2.0**10), dense, 3
    ),
    "muon-clipnorm": Case(lambda: opt.Muon(1e-2, clipnorm=0.02), stage=3),
    "odd-2": Case(FOUR["sgd"], odd),
    "odd-3": Case(FOUR["sgd"], odd, 3),
    "odd-lamb-3": Case(WHOLE["lamb"], odd_without_embedding, 3, "float64", 1e-9),
    "checkpointed": Case(FOUR["adamw"], checkpointed, 3),
    "recurrent": Case(FOUR["adamw"], recurrent, 3),
    "frozen_blocks": Case(FOUR["adamw"], frozen_blocks, 3),
    **{
        f"clipped-{name}-3": Case(make, clipped, 3, "float64", 1e-9)
        for name, make in {"muon": FOUR["muon"], **WHOLE}.items()
    },
    "clipped-bfloat16-3": Case(FOUR["muon"], clipped_dense, 3, "mixed_bfloat16", 3e-2),
    # One in which each element of a gradient is on one rank alone, as in one process.
    "penalty": Case(lambda: opt.SGD(0.01), with_penalty, 3, "float64", 1e-9, {"shard_bytes": 1}),
    "bfloat16-2": Case(FOUR["sgd"], normalized, 2, "mixed_bfloat16", 3e-2),
    "bfloat16-3": Case(FOUR["sgd"], normalized, 3, "mixed_bfloat16", 3e-2),
    "float16-2": Case(FOUR["sgd"], dense, 2, "mixed_float16", 2e-3),
    "float16-3": Case(FOUR["sgd"], normalized, 3, "mixed_float16", 2e-3),
    "host-2": Case(FOUR["adamw"], dense, options={"offload": "host"}),
    "host-3": Case(FOUR["adamw"], stage=3, options={"offload": "host"}),
    **{f"bytes-{stage}": of_costs("adamw", stage) for stage in (1, 2, 3)},
    "bytes-muon-3": of_costs("muon", 3),
    "bytes-bfloat16-2": of_costs("sgd", 2, "mixed_bfloat16"),
    "bytes-bfloat16-3": of_costs("sgd", 3, "mixed_bfloat16"),
    "idle_ranks": Case(FOUR["muon"], one_layer),
}


def batches(with_overflow=False, steps=STEPS):
    rng = np.random.default_rng(3)
    x = rng.standard_normal((steps, BATCH, 10)).astype("float32")
    y = np.tanh(x @ rng.standard_normal((10, 3))).astype("float32")
    if with_overflow:
        x[7, 0, 0] = np.inf  # the first layer's gradient is NaN, in one row of it: rank 0's
    return list(zip(x, y))


def train(case, strategy=None):
    """Trains on this rank's rows of each batch; returns the weights, and what it cost."""
    rank, size = (strategy.rank, strategy.size) if strategy else (0, 1)
    keras.utils.set_random_seed(5 + 100 * rank)
    keras.config.set_dtype_policy(case.policy)
    keras.config.set_floatx("float64" if case.policy == "float64" else "float32")
    if strategy is None:
        model = compiled(case.model(), case.optimizer(), jit_compile=False)
    else:
        with strategy.scope():
            model = case.model()
            model.compile(strategy.optimizer(case.optimizer()), "mse")
        # From the values that all ranks start with, which ScheduleFreeAdamW copies.
        model.optimizer.build(model.trainable_variables)
    rows = slice(rank * BATCH // size, (rank + 1) * BATCH // size)
    overflows = isinstance(case.optimizer(), opt.LossScaleOptimizer)
    sent = 0
    for x, y in batches(overflows)[: case.steps]:
        before = strategy.engine.bytes_sent() if strategy else 0
        model.train_on_batch(x[rows], y[rows])
        sent = strategy.engine.bytes_sent() - before if strategy else 0
    model.optimizer.finalize_variable_values(model.trainable_variables)
    if strategy is not None:
        strategy.publish_exactly(model)
    keras.config.set_dtype_policy("float32")
    keras.config.set_floatx("float32")
    costs = {"sent": sent, "held": held(model)}
    if overflows and strategy is not None:
        costs["updates"] = int(model.optimizer.iterations)
        costs["scale"] = float(model.optimizer.wrapped().dynamic_scale)
    return model.get_weights(), costs


def held(model):
    """The bytes of parameters, masters and slots in this process."""
    if not isinstance(model.optimizer, ZeroOptimizer):
        return 0
    pieces = [own.piece for own in model.optimizer.owned().values()]
    variables = [*model.trainable_variables, *pieces, *model.optimizer.variables]
    tensors = {id(raw(v)): raw(v) for v in variables}
    return sum(x.dtype.size * x.shape.num_elements() for x in tensors.values())


def error(case, found, expected):
    """How far the weights are off, as the case's tolerance counts it."""
    norm = np.linalg.norm
    parts = [norm(a.astype("float64") - b) for a, b in zip(found, expected, strict=True)]
    wholes = [norm(b) for b in expected]
    if "16" in case.policy:
        return norm(parts) / norm(wholes)
    return max(part / (whole or 1) for part, whole in zip(parts, wholes))
