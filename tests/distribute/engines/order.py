"""Run in every worker: collectives whose inputs are ready in opposite orders on the workers.

With the argument "unordered" nothing keeps their order.
"""

import sys
import time

import numpy as np
import tensorflow as tf

from revkeras.distribute import engines

COUNT = 6

tf.config.threading.set_inter_op_parallelism_threads(2)
engine = engines.choose()
if "unordered" in sys.argv:
    engine._order.run = lambda collective, *_: collective()


def late(value, seconds):
    def wait():
        time.sleep(seconds)
        return np.full(4, value, "float32")

    return tf.ensure_shape(tf.numpy_function(wait, [], tf.float32, stateful=False), [4])


@tf.function
def step():
    delays = [0.05 * place for place in range(COUNT)]
    if engine.rank % 2:
        delays.reverse()
    return [engine.broadcast(late(10**n, delay)) for n, delay in enumerate(delays)]


for _ in range(3):
    for n, value in enumerate(step()):
        np.testing.assert_array_equal(value, np.full(4, 10.0**n))
engine.close()
