"""A RevNet against the ordinary ResNet of the same size, on scikit-learn's digits.

Both have the same residual functions, of the same widths and in the same order: where
the ResNet adds each to one tensor, the RevNet adds them to two streams in turn. Both
are trained for the same number of steps with the same optimizer, on five splits of the
1797 images of 8 x 8 pixels; about six minutes on two cores:

    python examples/train_digits.py --out out

The folder then holds `train_digits.json` and `.md`.
"""

import argparse
import json
from pathlib import Path

import keras
import numpy as np
from sklearn import datasets, model_selection

from revkeras.models import revnet

L = keras.layers


def load(seed):
    """Images from -1 to 1 and labels, split into those to train on and a fifth to test on."""
    images, labels = datasets.load_digits(return_X_y=True)
    images = (images.reshape(-1, 8, 8, 1) / 8 - 1).astype("float32")
    return model_selection.train_test_split(
        images, labels, test_size=0.2, random_state=seed, stratify=labels
    )


def rev_net(units, width):
    """Two stages of `units` pairs of functions; a stream is as wide as the ResNet."""
    sizes = revnet.RevNetArchitecture(
        units=(units, units),
        channels=(2 * width, 2 * width, 4 * width),
        strides=(1, 2),
        bottleneck=False,
        input_shape=(8, 8, 1),
        classes=10,
    )
    return revnet.revnet(sizes, keras.Input(sizes.input_shape), top, "reversible", "revnet")


def res_net(units, width):
    """Two stages of `2 * units` blocks, pre-activation as in the RevNet."""
    images = keras.Input((8, 8, 1))
    x = L.ReLU()(L.BatchNormalization()(convolution(width)(images)))
    for stage, channels in enumerate([width, 2 * width]):
        for i in range(2 * units):
            stride = 2 if stage and not i else 1
            y = x
            if stage or i:
                y = L.ReLU()(L.BatchNormalization()(y))
            y = convolution(channels, stride)(y)
            y = convolution(channels)(L.ReLU()(L.BatchNormalization()(y)))
            if stride > 1:
                x = L.AveragePooling2D(2, padding="same")(x)
                more = channels - x.shape[-1]
                x = keras.ops.pad(x, [(0, 0), (0, 0), (0, 0), (more // 2, more - more // 2)])
            x = x + y
    return keras.Model(images, top(L.ReLU()(L.BatchNormalization()(x))), name="resnet")


def convolution(channels, stride=1):
    return L.Conv2D(
        channels, 3, stride, padding="same", use_bias=False, kernel_initializer="he_normal"
    )


def top(x):
    return L.Dense(10)(L.GlobalAveragePooling2D()(x))


BUILDERS = {"RevNet": rev_net, "ResNet": res_net}


def accuracy(build, seed, arguments):
    """The share of test images that a model trained with this seed tells apart."""
    a = arguments
    x, x_test, y, y_test = load(seed)
    keras.utils.set_random_seed(seed)
    model = build(a.units, a.width)
    steps = a.epochs * -(-len(x) // a.batch)
    rate = keras.optimizers.schedules.CosineDecay(a.rate, steps)
    model.compile(
        keras.optimizers.AdamW(rate, weight_decay=1e-2),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        jit_compile=False,
    )
    model.optimizer.build(model.trainable_variables)  # or the first step is traced twice
    model.fit(x, y, batch_size=a.batch, epochs=a.epochs, verbose=0)
    _, found = model.evaluate(x_test, y_test, batch_size=len(x_test), verbose=0)
    parameters = sum(int(np.prod(v.shape)) for v in model.trainable_variables)
    return 100 * found, parameters, steps


def table(rows):
    header = "| model | parameters | steps | test accuracy of each seed, % | mean, % |"
    lines = [header, "|:--|--:|--:|:--|--:|"]
    for name, row in rows.items():
        each = ", ".join(f"{x:.1f}" for x in row["accuracy"])
        mean = np.mean(row["accuracy"])
        lines.append(f"| {name} | {row['parameters']:,} | {row['steps']} | {each} | {mean:.2f} |")
    return "\n".join(lines)


def parse_arguments(argv):
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--units", type=int, default=2, help="pairs of functions in a stage")
    parser.add_argument("--width", type=int, default=16, help="channels of a stream at first")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rate", type=float, default=3e-3, help="learning rate at first")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder of the results")
    return parser.parse_args(argv)


def main(argv=None):
    a = parse_arguments(argv)
    rows = {name: {"accuracy": []} for name in BUILDERS}
    for seed in range(a.seeds):
        for name, build in BUILDERS.items():
            found, parameters, steps = accuracy(build, seed, a)
            rows[name]["accuracy"].append(found)
            rows[name].update(parameters=parameters, steps=steps)
            print(f"seed {seed}, {name}: {found:.2f} %", flush=True)
    means = {name: float(np.mean(row["accuracy"])) for name, row in rows.items()}
    difference = means["RevNet"] - means["ResNet"]
    print(f"\n{table(rows)}\n\nRevNet less ResNet: {difference:+.2f} points")
    a.out.mkdir(parents=True, exist_ok=True)
    (a.out / "train_digits.json").write_text(json.dumps(rows, indent=1) + "\n")
    (a.out / "train_digits.md").write_text(f"{table(rows)}\n")
    return rows


if __name__ == "__main__":
    main()
