"""What a training step's program holds on accelerators that are not there, as XLA estimates it.

    make ahead-of-time

JAX compiles for the description of a device; no device is needed. Stacks have real sizes, in mixed
bfloat16: the step's program is compiled as `fit` compiles it, gradient and update in one, and the
compiler tells the bytes of its temporaries. `jax.checkpoint` is around each block of the stack that
keeps inputs. Each configuration has a process of its own, which is given up after `--seconds`.
"""

import argparse
import dataclasses
import os
from pathlib import Path

import fresh_process
from measurement import KERAS_CONTESTANTS
from tables import table
from workloads import WORKLOADS

ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "KERAS_BACKEND": "jax",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "TPU_SKIP_MDS_QUERY": "1",  # asks no server for a TPU's address
}
SHAPES = {
    "dense": (16384, 2048),
    "convolutional": (64, 56, 56, 256),
    "transformer": (1, 4096, 2048),
}
DEVICES = {"h100": "cuda", "v5e": "tpu", "cpu": "cpu"}
# XLA of JAX 0.10 makes code that it then refuses of plain stacks: "'scf.if' op along control flow".
OPTIONS = {"cuda": {"xla_disable_hlo_passes": "triton-softmax-rewriter"}}
MODES = "none", "checkpoint", "reversible"
MIB = 2**20


@dataclasses.dataclass(frozen=True)
class Configuration:
    """What one process measures."""

    workload: str
    shape: tuple
    device: str
    mode: str
    depth: int


def device_of(name):
    """A device that programs can be compiled for, and nothing else."""
    import jax
    from jax.experimental import topologies

    if name == "cpu":
        return jax.devices("cpu")[0]
    if name == "v5e":
        import libtpu

        os.environ.setdefault("TPU_LIBRARY_PATH", libtpu.get_library_path())
        return topologies.get_topology_desc("v5e:2x2", "tpu").devices[0]
    config = Path(__file__).with_name(f"{name}.textproto").read_text()
    options = {"topology": "1x1x1", "target_config": config}
    return topologies.get_topology_desc("", "cuda", **options).devices[0]


def measure(c):
    """Bytes of temporaries of the step's program."""
    import jax
    import jax.numpy as jnp
    import keras
    from keras_contestants import build_block

    import revkeras

    device = device_of(c.device)
    keras.config.set_dtype_policy("mixed_bfloat16")
    workload = dataclasses.replace(WORKLOADS[c.workload], input_shape=tuple(c.shape))
    blocks = [build_block(workload, index) for index in range(c.depth)]
    layer = revkeras.ReversibleSequential(blocks, memory_mode=c.mode)
    layer.build(workload.input_shape)

    def step(trainable, rest, x):
        def loss(trainable):
            y, state = layer.stateless_call(trainable, rest, x, training=True)
            return jnp.mean(y.astype("float32") ** 2), state

        (_, state), gradients = jax.value_and_grad(loss, has_aux=True)(trainable)
        return [w - 0.01 * d for w, d in zip(trainable, gradients, strict=True)], state

    variables = layer.trainable_variables, layer.non_trainable_variables
    values = [[jax.ShapeDtypeStruct(v.shape, v.dtype) for v in group] for group in variables]
    x = jax.ShapeDtypeStruct(workload.input_shape, "bfloat16")
    there = jax.sharding.SingleDeviceSharding(device)
    with jax.default_device(device):
        traced = jax.jit(step, in_shardings=there, out_shardings=there, donate_argnums=0).trace(
            *values, x
        )
        platform = DEVICES[c.device]
        lowered = traced.lower(lowering_platforms=(platform,))
        program = lowered.compile(OPTIONS.get(platform))
    return {"temporaries": program.memory_analysis().temp_size_in_bytes}


def run(a):
    rows = []
    for device in a.devices:
        for name in a.workloads:
            for depth in a.depths:
                found = []
                for mode in a.modes:
                    shape = tuple(a.shape or SHAPES[name])
                    c = Configuration(name, shape, device, mode, depth)
                    command = ["timeout", str(a.seconds)]
                    try:
                        result = fresh_process.measure(
                            __file__, c, ENVIRONMENT, (*command, *fresh_process.PYTHON)
                        )
                        found.append(f"{result['temporaries'] / MIB:,.1f}")
                    except RuntimeError as error:
                        print(str(error).strip().splitlines()[-1], flush=True)
                        found.append("-")
                rows.append([device, name, str(depth), *found])
                print(" | ".join(rows[-1]), flush=True)
    titles = (f"{KERAS_CONTESTANTS[mode]}, MiB" for mode in a.modes)
    print(table(["device", "workload", "blocks", *titles], rows, text_columns=2))


def argument_parser():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--devices", nargs="+", choices=DEVICES, default=["h100", "v5e"])
    parser.add_argument("--workloads", nargs="+", choices=SHAPES, default=[*SHAPES])
    parser.add_argument("--modes", nargs="+", choices=MODES, default=[*MODES])
    parser.add_argument("--depths", type=int, nargs="+", default=[4, 16, 64])
    parser.add_argument("--shape", type=int, nargs="+", help="of the input, instead of a real one")
    parser.add_argument("--seconds", type=int, default=900, help="for one program")
    return parser


if __name__ == "__main__":
    fresh_process.main(argument_parser(), Configuration, measure, run)
