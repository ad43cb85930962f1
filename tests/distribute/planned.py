"""Run in every worker: what `plan` says, against the variables and the bytes that there are."""

import gc
import math

import keras
import numpy as np
import tensorflow as tf

import revkeras
from revkeras.distribute import ZeroStrategy, plan
from tests.compiling import compiled

WIDTH, BLOCKS = 64, 2
L = keras.layers


def live_bytes():
    """All variables of this process."""
    gc.collect()
    variables = [x for x in gc.get_objects() if isinstance(x, tf.Variable)]
    return sum(math.prod(v.shape) * v.dtype.size for v in {id(v): v for v in variables}.values())


def check(stage, make_optimizer, policy="float32", beside=(4 * WIDTH,)):
    keras.backend.clear_session()
    keras.config.set_dtype_policy(policy)
    before = live_bytes()
    strategy = ZeroStrategy(stage=stage, bucket_bytes=2**16, shard_bytes=2**14)
    with strategy.scope():
        blocks = [
            keras.Sequential([L.Dense(2 * WIDTH, activation="gelu"), L.Dense(WIDTH)])
            for _ in range(BLOCKS)
        ]
        model = keras.Sequential(
            [
                keras.Input((2 * WIDTH,)),
                revkeras.ReversibleSequential(blocks),
                *(L.Dense(width) for width in beside),
                L.Dense(1),
            ]
        )
        compiled(model, strategy.optimizer(make_optimizer()))
    x = np.ones((2, 2 * WIDTH), "float32")
    model.train_on_batch(x, x[:, :1])
    sent = strategy.engine.bytes_sent()
    model.train_on_batch(x, x[:, :1])
    sent = strategy.engine.bytes_sent() - sent
    held = live_bytes() - before
    planned = plan(model, stage=stage, workers=strategy.size, bucket_bytes=2**16, shard_bytes=2**14)
    if strategy.rank == 0:
        print(stage, policy, "held", held, planned.kept, "sent", sent, planned.sent)
    np.testing.assert_allclose(held, planned.kept, rtol=0.03)
    np.testing.assert_allclose(sent, planned.sent, rtol=0.03)
    return strategy


for stage in 1, 2:
    check(stage, keras.optimizers.AdamW)
check(3, lambda: keras.optimizers.SGD(momentum=0.9), "mixed_bfloat16")
# Whole variables, of sizes that can be dealt out evenly: what `plan` takes them to be.
strategy = check(3, lambda: keras.optimizers.Muon(1e-3), beside=())
strategy.engine.close()
