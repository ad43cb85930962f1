"""Run in every worker: restores what another stage and number of workers saved; trains; saves."""

import sys
from pathlib import Path

import keras
import numpy as np

import revkeras
from revkeras.distribute import ZeroStrategy
from revkeras.distribute import sharded_checkpoint as checkpoint

folder, stage = Path(sys.argv[1]), int(sys.argv[2])
loss_file = folder / "loss.npy"

L = keras.layers
keras.utils.set_random_seed(stage)  # each run starts with other weights
strategy = ZeroStrategy(stage=stage, shard_bytes=100)
with strategy.scope():
    blocks = [keras.Sequential([L.Dense(8, activation="gelu")]) for _ in range(2)]
    stack = revkeras.ReversibleSequential(blocks)
    model = keras.Sequential([stack, L.BatchNormalization(), L.Dense(1)])
    model.compile(strategy.optimizer(keras.optimizers.Adam(1e-2)), "mse")
    model.build((None, 16))  # later than it is taken on
x = np.random.default_rng(0).standard_normal((24, 16)).astype("float32")
data = strategy.shard((x, x[:, :1]), batch_size=12)

step = strategy.restore_checkpoint(folder / "checkpoints")
if step is not None:
    np.testing.assert_allclose(model.evaluate(data, verbose=0), np.load(loss_file), rtol=1e-5)
    found = checkpoint.newest(folder / "checkpoints", rank=strategy.rank, size=strategy.size)
    assert found.step == step == int(model.optimizer.iterations)
    for piece in strategy.state_pieces():
        expected = found.read_range(piece.name, piece.start, piece.stop)
        np.testing.assert_array_equal(piece.read(), expected, err_msg=piece.name)
model.fit(data, epochs=1, verbose=0)
model.layers[-1].bias.assign_add([1.0])  # after the last step, and saved as well
strategy.save_checkpoint(folder / "checkpoints", keep=2)
loss = model.evaluate(data, verbose=0)
if strategy.rank == 0:
    np.save(loss_file, loss)
strategy.engine.close()
