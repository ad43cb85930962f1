"""What a deep stack costs before it trains or serves: its first step, and its export.

    python benchmarks/deep_stacks.py

Blocks are Dense(8) with tanh, so that all the time goes into making graphs. Each figure is the
processor's time in a process of its own; contestants vary fastest. What was exported is loaded
again.
"""

import argparse
import dataclasses
import tempfile
import time

import fresh_process
from measurement import KERAS_CONTESTANTS
from tables import table

ENVIRONMENT = {"TF_CPP_MIN_LOG_LEVEL": "2"}
CHANNELS, BATCH = 16, 4
CONTESTANTS = {"plain": "plain Keras model"} | {
    mode: KERAS_CONTESTANTS[mode] for mode in ("none", "checkpoint", "reversible")
}
PARTS = "first step", "export", "load"


@dataclasses.dataclass(frozen=True)
class Configuration:
    """What one process measures."""

    contestant: str
    depth: int


def measure(c):
    """The processor's seconds for each part, in this process."""
    import keras
    import numpy as np
    import tensorflow as tf
    from keras_contestants import plain_model, reversible_sequential

    blocks = [keras.layers.Dense(CHANNELS // 2, activation="tanh") for _ in range(c.depth)]
    if c.contestant == "plain":
        model = plain_model(blocks, (CHANNELS,), None)
    else:
        model = reversible_sequential(blocks, (CHANNELS,), None, c.contestant)
    model.compile("sgd", "mse", jit_compile=False)
    x = np.ones((BATCH, CHANNELS), "float32")
    with tempfile.TemporaryDirectory() as folder:
        return {
            "first step": seconds(model.train_on_batch, x, x),
            "export": seconds(model.export, folder, verbose=False),
            "load": seconds(tf.saved_model.load, folder),
        }


def seconds(function, *arguments, **options):
    start = time.process_time()
    function(*arguments, **options)
    return time.process_time() - start


def run(arguments):
    rows = []
    for depth in arguments.depths:
        plain = None
        for contestant, title in CONTESTANTS.items():
            found = fresh_process.measure(__file__, Configuration(contestant, depth), ENVIRONMENT)
            plain = plain or found
            cells = (f"{found[part]:.1f} ({found[part] / plain[part]:.2f})" for part in PARTS)
            rows.append([str(depth), title, *cells])
            print(" | ".join(rows[-1]), flush=True)
    header = ["blocks", "contestant", *(f"{part}, s (of plain's)" for part in PARTS)]
    print(table(header, rows, text_columns=2))


def argument_parser():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--depths", type=int, nargs="+", default=[150, 300, 600, 1200])
    return parser


if __name__ == "__main__":
    fresh_process.main(argument_parser(), Configuration, measure, run)
