"""Run in every worker: trains with checkpoints; `RANK:STEP` says who is killed, and when.

`python resuming.py FOLDER STAGE RANK:STEP` is killed. `python resuming.py FOLDER STAGE` goes on,
and then compares the weights with those of a training that was never stopped. It also compares what
Muon updates at stage 3, which all read in bfloat16, before and after a save in the middle of an
epoch.
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
from tests.compiling import compiled

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
    """Ends `fit` on all ranks after its first save; keeps what this rank updated until then."""

    def on_train_batch_begin(self, batch, logs=None):
        if batch == EVERY:
            raise KeyboardInterrupt

    def on_train_batch_end(self, batch, logs=None):
        self.updated = updated(self.model)  # before `SaveAndResume` saves


def updated(model):
    return {own.variable.path: own.piece.numpy() for own in model.optimizer.owned().values()}


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
        for _ in range(2)
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


def start(stage, make, policy="float32"):
    keras.backend.clear_session()
    keras.config.set_dtype_policy(policy)
    keras.utils.set_random_seed(1)
    strategy = ZeroStrategy(stage=stage, shard_bytes=64)
    with strategy.scope():
        model = build()
        optimizer = strategy.optimizer(make())
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        compiled(model, optimizer, loss, metrics=["accuracy"])
    return strategy, model


def train(directory, callbacks=(), started=None):
    strategy, model = started or start(stage, adamw)
    random = np.random.default_rng(0)
    x = random.standard_normal((ROWS, FEATURES)).astype("float32")
    y = random.integers(0, 3, ROWS)
    losses = Losses()
    model.fit(
        strategy.shard((x, y), batch_size=BATCH),
        epochs=EPOCHS,
        verbose=0,
        callbacks=[*callbacks, SaveAndResume(strategy, directory, EVERY, keep=2), losses],
    )
    weights = {piece.name: piece.read() for piece in strategy.state_pieces()}
    return strategy, weights, losses.logs


if killed:
    rank, step = map(int, killed[0].split(":"))
    own = int(ZeroStrategy(stage=stage, shard_bytes=64).rank)
    train(folder / "stopped", [Killed(step)] if own == rank else [])
    raise AssertionError("not killed")


strategy, weights, logs = train(folder / "stopped")
_, expected, expected_logs = train(folder / "whole")
for name, values in expected.items():
    np.testing.assert_allclose(weights[name], values, rtol=1e-6, atol=1e-7, err_msg=name)
assert set(expected_logs) == set(range(EPOCHS))
for epoch, by_name in logs.items():
    for name, value in by_name.items():
        np.testing.assert_allclose(value, expected_logs[epoch][name], rtol=1e-5, err_msg=name)
assert logs, "nothing was left to train"
assert len(list((folder / "stopped").iterdir())) == 2

muon = 3, lambda: keras.optimizers.Muon(1e-2), "mixed_bfloat16"
stopped = Stopped()
with contextlib.suppress(KeyboardInterrupt):
    train(folder / "rounded", [stopped], start(*muon))
    raise AssertionError("not stopped")
strategy, model = start(*muon)
assert strategy.restore_checkpoint(folder / "rounded") == EVERY
for name, values in updated(model).items():
    np.testing.assert_array_equal(values, stopped.updated[name], err_msg=name)
print("same weights", sorted(logs))
strategy.engine.close()
