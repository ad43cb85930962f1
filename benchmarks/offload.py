"""What a device holds with weights on it and on the host.

    python benchmarks/offload.py

The device is a TensorFlow server in a process of its own, on this machine, so its memory is
what the device holds, with the graphs that it runs. The rows of the small width show
those alone. Linux only.
"""

import argparse
import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import fresh_process
from step_cost import memory
from tables import table

MIB = 2**20
ENVIRONMENT = {**memory.ENVIRONMENT, "TF_CPP_MIN_LOG_LEVEL": "2"}
CASES = {  # offload, optimizer
    "on the device": (None, "Adam"),
    "on the host": ("host", "Adam"),
    "on the host, fused": ("host", "FusedUpdate(Adam)"),
}
DEVICE = "/job:worker/replica:0/task:0/device:CPU:0"
SERVER = """
import tensorflow as tf
server = tf.distribute.Server({"worker": ["127.0.0.1:0"]}, job_name="worker", task_index=0)
print(server.target, flush=True)
server.join()
"""


@dataclasses.dataclass(frozen=True)
class Configuration:
    case: str
    depth: int
    width: int
    batch: int
    steps: int


def status_bytes(process, field):
    for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"no {field} of the device's process")


def measure(c):
    command = [sys.executable, "-c", SERVER]
    environment = {**os.environ, **ENVIRONMENT}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as device:
        try:
            return measure_on(device, c)
        finally:
            device.kill()


def measure_on(device, c):
    import keras
    import tensorflow as tf

    import revkeras

    L = keras.layers
    address = device.stdout.readline().strip().removeprefix("grpc://")
    tf.config.experimental_connect_to_host(address)
    offload, optimizer = CASES[c.case]
    before = status_bytes(device, "VmRSS")
    with tf.device(DEVICE):
        blocks = [
            keras.Sequential([L.Dense(c.width, activation="gelu"), L.Dense(c.width)])
            for _ in range(c.depth)
        ]
        stack = revkeras.ReversibleSequential(blocks, offload=offload)
        model = keras.Sequential([keras.Input((2 * c.width,)), stack])
        adam = keras.optimizers.Adam()
        model.compile(revkeras.FusedUpdate(adam) if "Fused" in optimizer else adam, "mse")
        adam.build(model.trainable_variables)  # in a step, Keras would make all slots on the device
        x = tf.random.normal((c.batch, 2 * c.width))
        # Its steps are taken here, and its memory is another process's.
        for _ in range(2):
            model.train_on_batch(x, x)
        Path(f"/proc/{device.pid}/clear_refs").write_text("5")
        level = status_bytes(device, "VmRSS")
        seconds = memory.measure_steps(lambda: model.train_on_batch(x, x), c.steps).step_seconds
    return {
        "weight_bytes": sum(4 * w.value.shape.num_elements() for w in stack.trainable_weights),
        "level_bytes": level - before,
        "step_bytes": status_bytes(device, "VmHWM") - level,
        "step_seconds": seconds,
    }


def run(arguments):
    header = ["blocks", "width", "weights", "optimizer", "weights, MiB"]
    header += ["device between steps, MiB", "more in a step, MiB", "step, s"]
    rows = []
    for width in arguments.widths:
        for depth in arguments.depths:
            for case, (_, optimizer) in CASES.items():
                c = Configuration(case, depth, width, arguments.batch, arguments.steps)
                found = fresh_process.measure(__file__, c, ENVIRONMENT)
                megabytes = [
                    f"{found[f'{name}_bytes'] / MIB:.0f}" for name in ("weight", "level", "step")
                ]
                seconds = f"{found['step_seconds']:.2f}"
                rows.append([str(depth), str(width), case, f"`{optimizer}`", *megabytes, seconds])
                print(", ".join(rows[-1]), file=sys.stderr, flush=True)
    print(table(header, rows, text_columns=4))


def argument_parser():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--depths", type=int, nargs="+", default=[8, 32], help="in blocks")
    parser.add_argument("--widths", type=int, nargs="+", default=[16, 1024], help="of each matrix")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=5, help="measured steps")
    return parser


if __name__ == "__main__":
    fresh_process.main(argument_parser(), Configuration, measure, run)
