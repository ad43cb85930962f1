"""What one program of a whole training step holds and takes on Keras's JAX backend.

    python benchmarks/whole_program.py

The step is compiled as `fit` compiles it: gradient and update in one program. XLA tells how many
bytes of temporaries the program has; what a step takes is the processor's time, the least of
several. Each configuration has a process of its own; contestants vary fastest.
"""

import argparse
import dataclasses
import time

import fresh_process
from measurement import KERAS_CONTESTANTS
from tables import table
from workloads import WORKLOADS

ENVIRONMENT = {"KERAS_BACKEND": "jax", "TF_CPP_MIN_LOG_LEVEL": "2"}
MODES = "none", "checkpoint", "reversible"
MIB = 2**20


@dataclasses.dataclass(frozen=True)
class Configuration:
    """What one process measures."""

    workload: str
    mode: str
    depth: int
    steps: int


def measure(c):
    """Bytes of temporaries, and the processor's seconds to compile and to run, in this process."""
    import jax
    import jax.numpy as jnp
    import keras
    from keras_contestants import build_block

    import revkeras

    workload = WORKLOADS[c.workload]
    keras.utils.set_random_seed(0)
    blocks = [build_block(workload, index) for index in range(c.depth)]
    layer = revkeras.ReversibleSequential(blocks, memory_mode=c.mode)
    layer.build(workload.input_shape)

    def step(trainable, rest, x):
        def loss(trainable):
            y, state = layer.stateless_call(trainable, rest, x, training=True)
            return jnp.mean(y**2), state

        (_, state), gradients = jax.value_and_grad(loss, has_aux=True)(trainable)
        return [w - 0.01 * d for w, d in zip(trainable, gradients, strict=True)], state

    variables = layer.trainable_variables, layer.non_trainable_variables
    values = [[v.value for v in group] for group in variables]
    start = time.process_time()
    x = keras.random.normal(workload.input_shape, seed=0)
    program = jax.jit(step).lower(*values, x).compile()
    compiled = time.process_time() - start
    jax.block_until_ready(program(*values, x))
    seconds = []
    for _ in range(c.steps):
        start = time.process_time()
        jax.block_until_ready(program(*values, x))
        seconds.append(time.process_time() - start)
    temporaries = program.memory_analysis().temp_size_in_bytes
    return {"temporaries": temporaries, "compile": compiled, "step": min(seconds)}


def run(arguments):
    rows = []
    for workload in arguments.workloads:
        for depth in arguments.depths:
            for mode in MODES:
                c = Configuration(workload, mode, depth, arguments.steps)
                found = fresh_process.measure(__file__, c, ENVIRONMENT)
                mib, title = f"{found['temporaries'] / MIB:.1f}", KERAS_CONTESTANTS[mode]
                seconds = f"{found['compile']:.1f}", f"{found['step']:.3f}"
                rows.append([workload, str(depth), title, mib, *seconds])
                print(" | ".join(rows[-1]), flush=True)
    header = ["workload", "blocks", "contestant", "temporaries, MiB", "compile, s", "step, s"]
    print(table(header, rows, text_columns=3))


def argument_parser():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workloads", nargs="+", choices=WORKLOADS, default=[*WORKLOADS])
    parser.add_argument("--depths", type=int, nargs="+", default=[4, 16])
    parser.add_argument("--steps", type=int, default=5, help="of each, the least counts")
    return parser


if __name__ == "__main__":
    fresh_process.main(argument_parser(), Configuration, measure, run)
