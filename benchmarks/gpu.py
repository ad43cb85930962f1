"""What training costs and how much fits on one GPU, on Keras's JAX backend.

    python benchmarks/gpu.py --out out            # under five minutes
    python benchmarks/gpu.py --toy                # the same on a CPU, small

Needs `pip install "jax[cuda12]" keras numpy` and this repository; no TensorFlow. Stacks are in
mixed bfloat16, attention is the fused one where the GPU has it. A step is the gradient and an
update by SGD, in one program. Each configuration has a process of its own. The largest size is
foretold from what two sizes hold; the one that is printed has run.
"""

import argparse
import dataclasses
import json
import math
import time
from pathlib import Path

import fresh_process
from tables import table

ENVIRONMENT = {
    "KERAS_BACKEND": "jax",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.95",
}
MODES = {"none": "stored", "checkpoint": "checkpointed", "reversible": "reversible"}
MIB = 2**20


@dataclasses.dataclass(frozen=True)
class Workload:
    """A kind of stack; `grows` is the axis of its input that is made as large as fits."""

    shape: tuple[int, ...]
    depth: int
    grows: int
    unit: str
    toy: tuple[int, ...]


WORKLOADS = {
    "transformer, batch": Workload((4, 1024, 2048), 24, 0, "tokens", (2, 16, 32)),
    "transformer, context": Workload((1, 4096, 2048), 24, 1, "tokens", (1, 32, 32)),
    "convolutional, batch": Workload((32, 56, 56, 256), 24, 0, "images", (2, 8, 8, 16)),
}


@dataclasses.dataclass(frozen=True)
class Configuration:
    """What one process measures."""

    workload: str
    mode: str
    shape: tuple[int, ...]
    depth: int
    steps: int


def blocks_of(workload, channels, depth):
    import keras

    layers = keras.layers

    class Attention(layers.Layer):
        def __init__(self):
            super().__init__()
            self.norm = layers.LayerNormalization()
            self.attention = layers.MultiHeadAttention(
                max(1, channels // 64), min(64, channels), flash_attention=None
            )

        def build(self, shape):
            self.norm.build(shape)
            self.attention.build(shape, shape)

        def call(self, x):
            x = self.norm(x)
            return self.attention(x, x, use_causal_mask=True)

    def feed_forward():
        return keras.Sequential(
            [
                layers.LayerNormalization(),
                layers.Dense(4 * channels, activation="gelu"),
                layers.Dense(channels),
            ]
        )

    def convolution():
        parts = []
        for _ in range(2):
            parts += [
                layers.Conv2D(channels, 3, padding="same", use_bias=False),
                layers.BatchNormalization(),
                layers.ReLU(),
            ]
        return keras.Sequential(parts)

    if workload.startswith("convolutional"):
        return [convolution() for _ in range(depth)]
    return [feed_forward() if i % 2 else Attention() for i in range(depth)]


def measure(c):
    """Seconds a step, and the most bytes that were held."""
    import jax
    import jax.numpy as jnp
    import keras

    import revkeras

    keras.config.set_dtype_policy("mixed_bfloat16")
    blocks = blocks_of(c.workload, c.shape[-1] // 2, c.depth)
    layer = revkeras.ReversibleSequential(blocks, memory_mode=c.mode, check_inverse=False)
    layer.build(tuple(c.shape))

    def step(trainable, rest, x):
        def loss(trainable):
            y, state = layer.stateless_call(trainable, rest, x, training=True)
            return jnp.mean(y.astype("float32") ** 2), state

        (_, state), gradients = jax.value_and_grad(loss, has_aux=True)(trainable)
        return [w - 0.01 * d for w, d in zip(trainable, gradients, strict=True)], state

    values = [v.value for v in layer.trainable_variables]
    rest = [v.value for v in layer.non_trainable_variables]
    x = jnp.ones(c.shape, "bfloat16")
    program = jax.jit(step, donate_argnums=(0, 1)).lower(values, rest, x).compile()
    seconds = []
    for _ in range(c.steps + 1):
        start = time.perf_counter()
        values, rest = jax.block_until_ready(program(values, rest, x))
        seconds.append(time.perf_counter() - start)
    device = jax.devices()[0]
    stats = device.memory_stats() or {}
    analysis = program.memory_analysis()
    estimate = analysis.temp_size_in_bytes + analysis.argument_size_in_bytes  # on a CPU
    return {
        "seconds": min(seconds[1:]),
        "peak": stats.get("peak_bytes_in_use", estimate),
        "limit": stats.get("bytes_limit", 2**30),
        "device": device.device_kind,
        "jax": jax.__version__,
        "keras": keras.__version__,
    }


def resized(shape, axis, size):
    return (*shape[:axis], size, *shape[axis + 1 :])


def largest(workload, configuration, first):
    """The largest size that has run, by what it holds at two sizes, and that run's result."""
    size = first_size = configuration.shape[workload.grows]

    def run(size):
        shape = resized(configuration.shape, workload.grows, size)
        return attempt(dataclasses.replace(configuration, shape=shape, steps=1))

    second = run(2 * size)
    if second is None:
        return size, first
    slope = max(second["peak"] - first["peak"], 1) / first_size
    fits = int(first_size + 0.97 * (first["limit"] - first["peak"]) / slope)
    if workload.grows == 1:  # a context's blocks of 128
        fits = max(fits // 128 * 128, 1)
    for size in (fits, int(0.9 * fits), int(0.8 * fits)):
        if size > 2 * first_size and (found := run(size)):
            return size, found
    return 2 * first_size, second


def attempt(configuration):
    """What a process measured, or `None` if it ran out of memory."""
    try:
        return fresh_process.measure(__file__, configuration, ENVIRONMENT)
    except RuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error) and "Out of memory" not in str(error):
            raise
        return None


def run(a):
    rows, results = [], []
    for name, workload in WORKLOADS.items():
        shape = workload.toy if a.toy else workload.shape
        depth = 2 if a.toy else workload.depth
        for mode, title in MODES.items():
            c = Configuration(name, mode, shape, depth, 1 if a.toy else a.steps)
            found = attempt(c)
            if found is None:
                rows.append([name, title, "-", "does not fit", "-"])
                continue
            size, most = (shape[workload.grows], found) if a.toy else largest(workload, c, found)
            units = math.prod(shape[: 2 if workload.unit == "tokens" else 1])
            pace = f"{units / found['seconds']:,.0f} {workload.unit}"
            rows.append([name, title, pace, f"{found['peak'] / MIB:,.1f}", f"{size:,}"])
            results.append({"configuration": dataclasses.asdict(c), **found, "largest": size})
            print(" | ".join(rows[-1]), flush=True)
    print(f"{found['device']}, JAX {found['jax']}, Keras {found['keras']}\n" if found else "")
    print(table(["workload", "contestant", "a second", "peak, MiB", "largest"], rows, 2))
    if a.out:
        a.out.mkdir(parents=True, exist_ok=True)
        (a.out / "gpu.json").write_text(json.dumps(results, indent=1))


def argument_parser():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=5, help="of each, the least counts")
    parser.add_argument("--toy", action="store_true", help="small, and no search for the largest")
    parser.add_argument("--out", type=Path, help="folder for gpu.json")
    return parser


if __name__ == "__main__":
    fresh_process.main(argument_parser(), Configuration, measure, run)
