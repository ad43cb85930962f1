"""Run in every worker: trains with checkpoints; `RANK:STEP` says who is killed, and when.

`python resuming.py FOLDER STAGE RANK:STEP` is killed. `python resuming.py FOLDER STAGE` goes on,
and then compares the weights with those of a training that was never stopped. Then it does the same
for Muon in bfloat16 at stage 3, stopped by an exception.
"""

import contextlib
import os
import signal
import sys
from pathlib import Path

import keras
import numpy as np

import revkeras
from revkeras.distribute import SaveAndResume, ZeroStrategy

FEATURES, ROWS, BATCH, EPOCHS, EVERY = 16, 120, 12, 3, 4

folder, stage, killed = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]


class Killed(keras.callbacks.Callback):
    """Ends this worker as `kill -9` does, in the middle of a step's callbacks."""

    def __init__(self, step):
        super().__init__()
        self._left = step

    def on_train_batch_begin(self, batch, logs=None):
        self._left -= 1
        if self._left < 0:
            os.kill(os.getpid(), signal.SIGKILL)


class Stopped(keras.callbacks.Callback):
    """Ends `fit` on all ranks, in the middle of an epoch."""

    def on_train_batch_begin(self, batch, logs=None):
        if batch == EVERY + 2:
            raise KeyboardInterrupt


class Losses(keras.callbacks.Callback):
    """Each epoch's logs, which a resumed epoch has over all of its batches."""

    def __init__(self):
        super().__init__()
        self.logs = {}

    def on_epoch_end(self, epoch, logs=None):
        self.logs[epoch] = logs


def build():
    L = keras.layers
    blocks = [
        keras.Sequential([L.Dense(FEATURES // 2, activation="gelu"), L.Dropout(0.2)])
        for _ in range(4)
    ]
    return keras.Sequential(
        [
            keras.Input((FEATURES,)),
            revkeras.ReversibleSequential(blocks),
            L.BatchNormalization(),
            L.Dense(3),
        ]
    )


def adamw():
    return keras.optimizers.AdamW(keras.optimizers.schedules.CosineDecay(1e-2, 100))


def train(directory, callbacks=(), stage=stage, make=adamw):
    keras.backend.clear_session()
    keras.utils.set_random_seed(1)
    strategy = ZeroStrategy(stage=stage, shard_bytes=64)
    with strategy.scope():
        model = build()
        optimizer = strategy.optimizer(make())
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(optimizer, loss, metrics=["accuracy"])
    random = np.random.default_rng(0)
    x = random.standard_normal((ROWS, FEATURES)).astype("float32")
    y = random.integers(0, 3, ROWS)
    losses = Losses()
    model.fit(
        strategy.shard((x, y), batch_size=BATCH),
        epochs=EPOCHS,
        verbose=0,
        callbacks=[SaveAndResume(strategy, directory, EVERY, keep=2), losses, *callbacks],
    )
    weights = {piece.name: piece.read() for piece in strategy.state_pieces()}
    return strategy, weights, losses.logs


if killed:
    rank, step = map(int, killed[0].split(":"))
    own = int(ZeroStrategy(stage=stage, shard_bytes=64).rank)
    train(folder / "stopped", [Killed(step)] if own == rank else [])
    raise AssertionError("not killed")


def same_weights(found, expected):
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-6, atol=1e-7, err_msg=name)


strategy, weights, logs = train(folder / "stopped")
_, expected, expected_logs = train(folder / "whole")
same_weights(weights, expected)
assert set(expected_logs) == set(range(EPOCHS))
for epoch, by_name in logs.items():
    for name, value in by_name.items():
        np.testing.assert_allclose(value, expected_logs[epoch][name], rtol=1e-5, err_msg=name)
assert logs, "nothing was left to train"
assert len(list((folder / "stopped").iterdir())) == 2

keras.config.set_dtype_policy("mixed_bfloat16")
whole_variables = {"stage": 3, "make": lambda: keras.optimizers.Muon(1e-2)}
with contextlib.suppress(KeyboardInterrupt):
    train(folder / "rounded", [Stopped()], **whole_variables)
    raise AssertionError("not stopped")
_, weights, _ = train(folder / "rounded", **whole_variables)
_, expected, _ = train(folder / "rounded-whole", **whole_variables)
same_weights(weights, expected)
print("same weights", sorted(logs))
strategy.engine.close()
