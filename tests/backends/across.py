"""Trains a saved model on the backend that runs, and prints what it computes.

`python -m tests.backends.across make|train FILE.keras FILE.weights.h5`
"""

import json
import sys

import keras
import numpy as np

import revkeras
from tests import blocks

L = keras.layers


def build():
    keras.utils.set_random_seed(0)
    layers = [blocks.dense(4), blocks.batch_norm(4), revkeras.layers.Permute(seed=1)]
    layers += [L.Dense(4, activation="tanh"), blocks.regularized(4)]
    momentum = {"coupling": revkeras.couplings.Momentum(0.9), "split_axis": None}
    return keras.Sequential(
        [
            keras.Input((8,)),
            revkeras.ReversibleSequential(layers),
            revkeras.ReversibleSequential([L.Dense(8, "tanh") for _ in range(2)], **momentum),
            revkeras.Checkpoint(blocks.dense(8)),
            L.Dense(3),
        ]
    )


def train(file, weights):
    model = keras.models.load_model(file)
    again = build()
    again.load_weights(weights)
    rng = np.random.default_rng(0)
    x, y = (rng.standard_normal((12, n)).astype("float32") for n in (8, 3))
    first = model.predict(x, verbose=0)
    np.testing.assert_allclose(again.predict(x, verbose=0), first, rtol=1e-5, atol=1e-6)
    model.compile(keras.optimizers.SGD(0.05, momentum=0.9), "mse")
    losses = model.fit(x, y, batch_size=4, epochs=3, shuffle=False, verbose=0).history["loss"]
    weights = [v.tolist() for v in model.get_weights()]
    return {"predictions": first.tolist(), "losses": losses, "weights": weights}


if __name__ == "__main__":
    what, file, weights = sys.argv[1:]
    if what == "make":
        model = build()
        model.save(file)
        model.save_weights(weights)
    else:
        print(json.dumps(train(file, weights)))
