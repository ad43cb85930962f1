"""How often a training step multiplies, convolves and draws: the work without the noise of time.

    python benchmarks/operations.py

Counted by TensorFlow's profiler while a step runs, so after all its optimizations. Each count
comes from a process of its own.
"""

import argparse
import collections
import dataclasses
import tempfile
from pathlib import Path

import fresh_process
import measurement
from tables import table
from training_step import ENVIRONMENT
from workloads import WORKLOADS

KINDS = {
    "matrix products": ("MatMul", "Einsum"),
    "convolutions": ("Conv2D",),
    "random draws": ("StatelessRandomUniform",),
}
CONTESTANTS = "none", "keras.remat", "reversible"
STEPS = 4


@dataclasses.dataclass(frozen=True)
class Configuration:
    """What one process counts."""

    workload: str
    contestant: str
    depth: int


def measure(c):
    """Operations of each kind in a step, in this process."""
    import tensorflow as tf
    from keras_contestants import build

    batch = WORKLOADS[c.workload].input_shape[0]
    step = build(
        measurement.Configuration("time", c.workload, c.depth, 0, c.contestant, batch, STEPS)
    ).step
    step()
    with tempfile.TemporaryDirectory() as folder:
        with tf.profiler.experimental.Profile(folder):
            for _ in range(STEPS):
                step()
        events = operation_counts(Path(folder))
    return {
        kind: sum(n for name, n in events.items() if any(part in name for part in parts)) / STEPS
        for kind, parts in KINDS.items()
    }


def operation_counts(folder):
    """How often each type of operation ran, from the profile in a folder."""
    from tensorflow.tsl.profiler.protobuf import xplane_pb2

    (path,) = folder.glob("**/*.xplane.pb")
    space = xplane_pb2.XSpace.FromString(path.read_bytes())
    counts = collections.Counter()
    for plane in space.planes:
        for event in (event for line in plane.lines for event in line.events):
            _, colon, operation_type = plane.event_metadata[event.metadata_id].name.partition(":")
            if colon:
                counts[operation_type.partition("#")[0]] += 1
    return counts


def run(arguments):
    rows = []
    for workload in arguments.workloads:
        for contestant in CONTESTANTS:
            c = Configuration(workload, contestant, arguments.depth)
            found = fresh_process.measure(__file__, c, ENVIRONMENT)
            rows.append([workload, contestant, *(f"{found[kind]:.0f}" for kind in KINDS)])
    print(table(["blocks", "contestant", *KINDS], rows, text_columns=2))


def argument_parser():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = [name for name, workload in WORKLOADS.items() if name != "dense-without-dropout"]
    parser.add_argument("--workloads", nargs="+", choices=WORKLOADS, default=names)
    parser.add_argument("--depth", type=int, default=32, help="in blocks")
    return parser


if __name__ == "__main__":
    fresh_process.main(argument_parser(), Configuration, measure, run)
