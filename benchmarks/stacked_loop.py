"""What a loop over the stacked weights of all blocks costs, in one XLA program with the model.

    python benchmarks/stacked_loop.py

The alternative to what `ReversibleSequential` does under Keras's whole-model compile: it stays
out, and calls one function for each block. A loop's body is traced and compiled once, whatever
the depth. Blocks are dense, without dropout. Each figure comes from a process of its own.
Linux only.
"""

import argparse
import dataclasses
import time

import fresh_process
from step_cost import memory
from tables import table
from workloads import WORKLOADS

MIB = 2**20
ENVIRONMENT = {"TF_CPP_MIN_LOG_LEVEL": "2"}
WORKLOAD = WORKLOADS["dense-without-dropout"]
CONTESTANTS = {
    "plain": "plain Keras model",
    "plain, compiled": "the same, `jit_compile=True`",
    "loop, compiled": "loop over stacked weights, `jit_compile=True`",
    "reversible": "`ReversibleSequential`",
    "reversible, compiled": "`ReversibleSequential(jit_compile=True)`",
}


@dataclasses.dataclass(frozen=True)
class Configuration:
    """What one process measures: "first step", "time" or "memory"."""

    case: str
    contestant: str
    depth: int
    batch: int
    steps: int


def reversible_loop(block, x, stacked):
    """`x0, x1 = x1, x0 + block(x1, weights)` for each row of the stacked weights."""
    import tensorflow as tf

    depth = stacked[0].shape[0]

    def loop(body, *values):
        def is_within(i, *values):
            return i < depth

        def numbered(i, *values):
            return i + 1, *body(i, *values)

        return tf.while_loop(is_within, numbered, (0, *values), maximum_iterations=depth)[1:]

    @tf.custom_gradient
    def run(x, *stacked):
        def forward(i, x0, x1):
            return x1, x0 + block(x1, [w[i] for w in stacked])

        y = tf.concat(loop(forward, *tf.split(x, 2, -1)), -1)

        def gradient(dy):
            def backward(i, y0, y1, dy0, dy1, *dstacked):
                row = depth - 1 - i
                weights = [w[row] for w in stacked]
                with tf.GradientTape() as tape:
                    tape.watch([y0, weights])
                    fx = block(y0, weights)
                dx1, *dweights = tape.gradient(fx, [y0, *weights], dy1)
                dstacked = [rows.write(row, d) for rows, d in zip(dstacked, dweights, strict=True)]
                return y1 - fx, y0, dy1, dy0 + dx1, *dstacked

            rows = [tf.TensorArray(w.dtype, depth, element_shape=w.shape[1:]) for w in stacked]
            streams = *tf.split(y, 2, -1), *tf.split(dy, 2, -1)
            _, _, dx0, dx1, *dstacked = loop(backward, *streams, *rows)
            return tf.concat([dx0, dx1], -1), *(rows.stack() for rows in dstacked)

        return y, gradient

    return run(x, *stacked)


def loop_model(blocks, shape, batch):
    import keras
    import tensorflow as tf
    from keras_contestants import build_on_half

    class Loop(keras.layers.Layer):
        def __init__(self):
            super().__init__()
            self.blocks = blocks

        def build(self, input_shape):
            build_on_half(blocks, input_shape)

        def call(self, x):
            def block(stream, weights):
                return blocks[0].stateless_call(weights, [], stream)[0]

            weights = zip(*(block.trainable_weights for block in blocks), strict=True)
            stacked = [tf.stack([w.value for w in same]) for same in weights]
            return reversible_loop(block, x, stacked)

    return keras.Sequential([keras.Input(shape, batch_size=batch), Loop()])


def build_model(configuration):
    import keras
    from keras_contestants import build_block, plain_model

    import revkeras

    stack, *compiled = configuration.contestant.split(", ")
    blocks = [build_block(WORKLOAD, index) for index in range(configuration.depth)]
    shape, batch = WORKLOAD.input_shape[1:], configuration.batch
    if stack == "reversible":
        layer = revkeras.ReversibleSequential(blocks, jit_compile=bool(compiled))
        model = keras.Sequential([keras.Input(shape, batch_size=batch), layer])
    else:
        model = {"loop": loop_model, "plain": plain_model}[stack](blocks, shape, batch)
    model.compile(keras.optimizers.SGD(1e-3), "mse", jit_compile=bool(compiled))
    return model


def measure(configuration):
    """Seconds, or bytes, in this process."""
    import keras

    keras.utils.set_random_seed(0)
    model = build_model(configuration)
    shape = configuration.batch, *WORKLOAD.input_shape[1:]
    x, y = (keras.random.normal(shape, seed=seed) for seed in (0, 1))
    start = time.perf_counter()
    model.train_on_batch(x, y)
    figure = time.perf_counter() - start
    loss = float(model.train_on_batch(x, y))
    if configuration.case != "first step":
        cost = memory.measure_steps(lambda: model.train_on_batch(x, y), configuration.steps)
        figure = cost.step_seconds if configuration.case == "time" else cost.activation_bytes / MIB
    return {"figure": figure, "loss_after_a_step": loss}


def run(arguments):
    columns = [
        *(("first step", depth, 8, "first step, s") for depth in arguments.first_step_depths),
        *(("time", depth, WORKLOAD.input_shape[0], "step, s") for depth in arguments.depths[1:]),
        *(("memory", depth, WORKLOAD.input_shape[0], "MiB") for depth in arguments.depths),
    ]
    header = ["stack", *(f"{name} at {depth}" for _, depth, _, name in columns)]
    rows = []
    for contestant, name in CONTESTANTS.items():
        cells = []
        for case, depth, batch, _ in columns:
            c = Configuration(case, contestant, depth, batch, arguments.steps)
            environment = {**ENVIRONMENT, **(memory.ENVIRONMENT if case == "memory" else {})}
            found = fresh_process.measure(__file__, c, environment)
            cells.append(f"{found['figure']:.{1 if case == 'memory' else 2}f}")
        rows.append([name, *cells])
    print(table(header, rows, text_columns=1))


def argument_parser():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--depths", type=int, nargs="+", default=[8, 64], help="in blocks")
    parser.add_argument("--first-step-depths", type=int, nargs="+", default=[8, 64])
    parser.add_argument("--steps", type=int, default=5, help="measured steps a process")
    return parser


if __name__ == "__main__":
    fresh_process.main(argument_parser(), Configuration, measure, run)
