"""One worker of `benchmarks/distributed.py`, which starts it: `distributed_worker.py OUT JSON`."""

import gc
import json
import math
import statistics
import sys
import time
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from step_cost import memory

import revkeras
from revkeras.distribute import ZeroStrategy, plan

L = keras.layers


def build(depth, width, hidden):
    blocks = [
        keras.Sequential(
            [L.LayerNormalization(), L.Dense(hidden, activation="gelu"), L.Dense(width)]
        )
        for _ in range(depth)
    ]
    return keras.Sequential(
        [keras.Input((2 * width,)), revkeras.ReversibleSequential(blocks), L.Dense(1)]
    )


def variable_bytes():
    gc.collect()
    variables = {id(x): x for x in gc.get_objects() if isinstance(x, tf.Variable)}
    return sum(math.prod(v.shape) * v.dtype.size for v in variables.values())


def stepper(model, batch, width):
    """A training step as `fit` takes it, on the same batch again and again."""
    x = np.random.default_rng(0).standard_normal((batch, 2 * width)).astype("float32")
    data = iter(tf.data.Dataset.from_tensors((x, x[:, :1])).repeat())
    model.make_train_function()
    return lambda: model.train_function(data)


def zero(strategy, depth, width, hidden):
    with strategy.scope():
        model = build(depth, width, hidden)
        model.compile(strategy.optimizer(keras.optimizers.AdamW(1e-4)), "mse")
    return model


def state(stage, depth, width, hidden, batch):
    """What a rank holds between steps and sends in one, and what `plan` says."""
    strategy = ZeroStrategy(stage)
    model = zero(strategy, depth, width, hidden)
    step = stepper(model, batch, width)
    step()
    sent = strategy.engine.bytes_sent()
    step()
    sent = strategy.engine.bytes_sent() - sent
    planned = plan(model, stage=stage, workers=strategy.size)
    parameters = sum(math.prod(v.shape) for v in model.trainable_variables) * 4
    return {
        "held": variable_bytes(),
        "planned": planned.kept,
        "sent": sent,
        "planned_sent": planned.sent,
        "parameters": parameters,
    }


def peak(depth, width, hidden, batch):
    """The process's peak over a few steps, at stage 3."""
    strategy = ZeroStrategy(3)
    model = zero(strategy, depth, width, hidden)
    step = stepper(model, batch, width)
    for _ in range(2):
        step()
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    level = memory._status_bytes("VmRSS")
    for _ in range(3):
        step()
    return {"peak": memory._status_bytes("VmHWM"), "level": level}


def step_time(depth, width, hidden, batch, rounds, steps):
    """Stage 2 beside plain data parallel, by turns in the same processes."""
    strategy = ZeroStrategy(2)
    engine = strategy.engine

    class DataParallel(keras.optimizers.AdamW):
        """Every worker holds everything, and gradients are all-reduced in one bucket."""

        def apply(self, grads, trainable_variables=None):
            flat = engine.all_reduce(tf.concat([tf.reshape(g, [-1]) for g in grads], 0), "mean")
            parts = tf.split(flat, [math.prod(g.shape) for g in grads])
            grads = [tf.reshape(part, g.shape) for part, g in zip(parts, grads)]
            super().apply(grads, trainable_variables)

    plain = build(depth, width, hidden)
    plain.compile(DataParallel(1e-4), "mse", jit_compile=False)
    contestants = {
        "stage 2": stepper(zero(strategy, depth, width, hidden), batch, width),
        "data parallel": stepper(plain, batch, width),
    }
    seconds = {name: [] for name in contestants}
    for round_ in range(rounds + 1):
        order = sorted(contestants, reverse=bool(round_ % 2))
        for name in order:
            engine.barrier()
            start = time.perf_counter()
            for _ in range(steps):
                contestants[name]()
            engine.barrier()
            if round_:
                seconds[name].append((time.perf_counter() - start) / steps)
    ratios = [a / b for a, b in zip(seconds["stage 2"], seconds["data parallel"])]
    return {
        "ratio": statistics.median(ratios),
        **{name: statistics.median(each) for name, each in seconds.items()},
    }


if __name__ == "__main__":
    out, configuration = Path(sys.argv[1]), json.loads(sys.argv[2])
    what = {"state": state, "peak": peak, "step_time": step_time}[configuration.pop("what")]
    result = what(**configuration)
    engine = ZeroStrategy().engine
    if engine.rank == 0:
        out.write_text(json.dumps(result))
    engine.close()
