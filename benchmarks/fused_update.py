"""How many gradients a training step holds, and what `FusedUpdate` makes of it.

    python benchmarks/fused_update.py

Trains 64 reversible blocks of two 2048 x 2048 matrices each with SGD on a small batch, each
case in a process of its own: an optimizer that needs all gradients before it applies the
first (by `global_clipnorm`), one that does not, and `FusedUpdate`. Held bytes are those of
the weights and of the peak of a step over the level between steps. Linux only.
"""

import argparse
import dataclasses

import fresh_process
from step_cost import memory
from tables import table

MIB = 2**20
ENVIRONMENT = {**memory.ENVIRONMENT, "TF_CPP_MIN_LOG_LEVEL": "2"}
CASES = {
    "all at once": "SGD(global_clipnorm=1)",
    "as they arrive": "SGD()",
    "fused": "FusedUpdate(SGD())",
}


@dataclasses.dataclass(frozen=True)
class Configuration:
    """What one process measures."""

    case: str
    depth: int
    width: int
    batch: int
    steps: int


def measure(configuration):
    """Bytes of the weights, bytes held, and seconds of a step, in this process."""
    import keras

    import revkeras

    width, case = configuration.width, configuration.case
    blocks = [
        keras.Sequential(
            [
                keras.layers.Dense(width, "relu", use_bias=False),
                keras.layers.Dense(width, use_bias=False),
            ]
        )
        for _ in range(configuration.depth)
    ]
    stack = revkeras.ReversibleSequential(blocks)
    model = keras.Sequential([keras.Input((2 * width,), batch_size=configuration.batch), stack])
    optimizer = keras.optimizers.SGD(1e-5, global_clipnorm=1.0 if case == "all at once" else None)
    model.compile(revkeras.FusedUpdate(optimizer) if case == "fused" else optimizer, "mse")
    x = keras.random.normal((configuration.batch, 2 * width), seed=0)
    cost = memory.measure_steps(lambda: model.train_on_batch(x, x), configuration.steps)
    weights = 4 * model.count_params()
    return {
        "weight_bytes": weights,
        "held_bytes": weights + cost.activation_bytes,
        "step_seconds": cost.step_seconds,
    }


def run(arguments):
    header = ["gradients", "optimizer", "weights, MiB", "held, MiB", "of the first", "step, s"]
    rows, first = [], None
    for case, optimizer in CASES.items():
        c = Configuration(case, arguments.depth, arguments.width, arguments.batch, arguments.steps)
        found = fresh_process.measure(__file__, c, ENVIRONMENT)
        first = first or found["held_bytes"]
        rows.append(
            [
                case,
                f"`{optimizer}`",
                f"{found['weight_bytes'] / MIB:.0f}",
                f"{found['held_bytes'] / MIB:.0f}",
                f"{found['held_bytes'] / first:.2f}",
                f"{found['step_seconds']:.2f}",
            ]
        )
    print(table(header, rows, text_columns=2))


def argument_parser():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--depth", type=int, default=64, help="blocks")
    parser.add_argument("--width", type=int, default=2048, help="of a stream")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=5, help="measured steps a process")
    return parser


if __name__ == "__main__":
    fresh_process.main(argument_parser(), Configuration, measure, run)
