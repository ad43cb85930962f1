"""What each model of the library costs: parameters, memory plain and reversible, batch, time.

    python benchmarks/models.py --docs docs/models.md

Each model is measured at two batch sizes, plain and reversible, in a process of its own each;
`--models revnet38 irevnet` measures some. The largest batch is reckoned from the two: what a
step holds grows in proportion to the batch, beside weights, gradients and Adam's state. Linux
only. Times are those of an idle machine only if it is idle.
"""

import argparse
import dataclasses
from pathlib import Path

import fresh_process
from step_cost import memory
from tables import table

MIB = 2**20
GIB = 2**30
ENVIRONMENT = {**memory.ENVIRONMENT, "TF_CPP_MIN_LOG_LEVEL": "2"}
BATCHES = {
    "revnet38": (32, 96),
    "revnet110": (16, 48),
    "revnet56": (1, 3),
    "revnet104": (1, 3),
    "irevnet": (256, 1024),
    "momentum_net": (16, 48),
    "transformer_encoder": (1, 3),
    "transformer_decoder": (1, 3),
    "transformer_both": (1, 3),
    "rev_vit_small": (1, 3),
    "rev_vit_base": (1, 3),
}
NAMES = {
    "revnet38": "RevNet-38, 32 x 32",
    "revnet110": "RevNet-110, 32 x 32",
    "revnet56": "RevNet-56, 224 x 224",
    "revnet104": "RevNet-104, 224 x 224",
    "irevnet": "i-RevNet of 54 blocks, 32 x 32",
    "momentum_net": "MomentumNet of 16 blocks, beta 0.9, 32 x 32",
    "transformer_encoder": "reversible transformer, 6 encoder layers, 512 tokens",
    "transformer_decoder": "reversible transformer, 6 decoder layers, 512 tokens",
    "transformer_both": "reversible transformer, 3 encoder and 3 decoder layers, 512 tokens",
    "rev_vit_small": "Rev-ViT small, 224 x 224",
    "rev_vit_base": "Rev-ViT base, 224 x 224",
}


@dataclasses.dataclass(frozen=True)
class Configuration:
    """What one process measures."""

    model: str
    memory_mode: str
    batch: int
    steps: int


def build(name, mode):
    import keras

    from revkeras import models

    options = {"memory_mode": mode, "classifier_activation": None}
    if name.startswith("revnet"):
        return models.RevNet(int(name.removeprefix("revnet")), **options)
    if name == "irevnet":
        sizes = {"input_shape": (32, 32, 3), "classes": 10}
        return models.IRevNet((18, 18, 18), (1, 2, 2), **sizes, **options)
    if name == "momentum_net":
        functions = [
            keras.Sequential(
                [
                    keras.layers.BatchNormalization(),
                    keras.layers.ReLU(),
                    keras.layers.Conv2D(32, 3, padding="same"),
                ]
            )
            for _ in range(16)
        ]
        return models.MomentumNet(functions, input_shape=(32, 32, 32), classes=10, **options)
    if name.startswith("rev_vit"):
        return models.RevViT(name.removeprefix("rev_vit_"), **options)
    layers = {
        "transformer_encoder": {"encoder_layers": 6},
        "transformer_decoder": {"decoder_layers": 6},
        "transformer_both": {"encoder_layers": 3, "decoder_layers": 3},
    }
    return models.ReversibleTransformer(8192, **layers[name], input_shape=(512,), memory_mode=mode)


def data(model, batch):
    """Random inputs and labels of a model."""
    import keras

    def like(x):
        shape = (batch, *x.shape[1:])
        if "int" in x.dtype:
            return keras.ops.ones(shape, dtype=x.dtype)
        return keras.random.normal(shape, seed=0)

    labels = keras.ops.zeros((batch, *model.output_shape[1:-1]), dtype="int32")
    return keras.tree.map_structure(like, model.input), labels


def measure(c):
    """Parameters, activation bytes and seconds of a step, in this process."""
    import keras

    model = build(c.model, c.memory_mode)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(1e-5), loss, jit_compile=False)
    x, y = data(model, c.batch)
    cost = memory.measure_steps(lambda: model.train_on_batch(x, y), c.steps)
    parameters = sum(int(v.value.shape.num_elements()) for v in model.trainable_variables)
    return {
        "parameters": parameters,
        "bytes": cost.activation_bytes,
        "seconds": cost.step_seconds,
    }


def largest_batch(costs, batches):
    """How many examples fit in 4 GiB with weights and the two slots of Adam, or `None`."""
    small, large = (cost["bytes"] for cost in costs)
    each = (large - small) / (batches[1] - batches[0])
    if each <= 0:
        return None
    fixed = 3 * 4 * costs[0]["parameters"] + small - each * batches[0]
    return max(0, int((4 * GIB - fixed) // each))


def row(name, steps):
    found = {}
    for mode in "none", "reversible":
        found[mode] = [
            fresh_process.measure(__file__, Configuration(name, mode, batch, steps), ENVIRONMENT)
            for batch in BATCHES[name]
        ]
    plain, reversible = found["none"], found["reversible"]
    fit = [largest_batch(costs, BATCHES[name]) for costs in (plain, reversible)]
    return [
        NAMES[name],
        f"{plain[0]['parameters'] / 1e6:.2f} M",
        str(BATCHES[name][1]),
        f"{plain[1]['bytes'] / MIB:.0f} MiB",
        f"{reversible[1]['bytes'] / MIB:.0f} MiB",
        *("?" if n is None else str(n) for n in fit),
        f"{reversible[1]['seconds'] / plain[1]['seconds']:.2f}",
    ]


HEADER = [
    "model",
    "parameters",
    "batch",
    "peak, plain",
    "peak, reversible",
    "largest batch in 4 GiB, plain",
    "reversible",
    "step time, reversible / plain",
]
MARK = "<!-- measured -->"


def run(arguments):
    rows = []
    for name in arguments.models:
        rows.append(row(name, arguments.steps))
        print(" | ".join(rows[-1]), flush=True)
        if arguments.docs:
            before, _, after = arguments.docs.read_text().split(MARK)
            measured = f"{MARK}\n{table(HEADER, rows, text_columns=1)}\n{MARK}"
            arguments.docs.write_text(f"{before}{measured}{after}")


def argument_parser():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=BATCHES, default=list(BATCHES))
    parser.add_argument("--steps", type=int, default=3, help="measured steps a process")
    parser.add_argument("--docs", type=Path, help="a page whose table is written anew")
    return parser


if __name__ == "__main__":
    fresh_process.main(argument_parser(), Configuration, measure, run)
