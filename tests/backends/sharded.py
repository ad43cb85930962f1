"""Trains a small model on JAX's devices, and prints the loss of each step.

`python -m tests.backends.sharded KIND [ADDRESS PROCESSES PROCESS]`: KIND is `one`, `data` or
`model`, how batches or weights are dealt out.
"""

import json
import sys

import keras
import numpy as np

import revkeras

L = keras.layers


def distribution(kind):
    devices = keras.distribution.list_devices()
    if kind == "data":
        return keras.distribution.DataParallel(devices=devices)
    mesh = keras.distribution.DeviceMesh((1, len(devices)), ["batch", "model"], devices)
    layouts = keras.distribution.LayoutMap(mesh)
    layouts[".*kernel"] = (None, "model")
    layouts[".*bias"] = ("model",)
    return keras.distribution.ModelParallel(layout_map=layouts, batch_dim_name="batch")


def main(kind, address=None, processes="1", process="0"):
    if address:
        keras.distribution.initialize(address, int(processes), int(process))
    if kind != "one":
        keras.distribution.set_distribution(distribution(kind))
    keras.utils.set_random_seed(0)
    blocks = [
        keras.Sequential([L.Dense(32, activation="gelu"), L.Dropout(0.1, seed=1), L.Dense(8)])
        for _ in range(4)
    ]
    model = keras.Sequential(
        [keras.Input((16,)), revkeras.ReversibleSequential(blocks), L.Dense(4)]
    )
    model.compile(keras.optimizers.Adam(0.01), "mse")
    rng = np.random.default_rng(0)
    x = rng.standard_normal((32, 16)).astype("float32")
    y = rng.standard_normal((32, 4)).astype("float32")
    if kind == "data":  # each process feeds its own rows
        n = 32 // int(processes)
        rows = slice(int(process) * n, (int(process) + 1) * n)
        x, y = x[rows], y[rows]
    losses = []
    for _ in range(5):
        losses.append(float(model.train_on_batch(x, y)))
    kernel = model.layers[0].layers[0].layers[0].kernel.value
    pieces = kernel.sharding.devices_indices_map(kernel.shape).values()
    print(json.dumps({"losses": losses, "shards": len(set(map(str, pieces)))}))


if __name__ == "__main__":
    main(*sys.argv[1:])
