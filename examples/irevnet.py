"""iRevNet: a reversible convolutional network that labels each pixel.

A convolution brings the image to two streams of `--channels` channels, a stack of
reversible blocks works on them, and a convolution reads the classes off. The script
prints the shapes and takes training steps on random images and labels.

    python examples/irevnet.py --batch 2 --size 32 --channels 16 --depth 4 --classes 10

Without arguments it is the full size, `(16, 224, 224, 3)` to `(16, 224, 224, 1000)`,
which takes tens of GB: the class scores alone are 3.2 GB, and their gradient again.
"""

import argparse

import keras
import numpy as np

import revkeras


def conv(channels):
    return keras.layers.Conv2D(channels, 3, padding="same")


def conv_norm(channels):
    return [
        conv(channels),
        keras.layers.Dropout(0.2),
        keras.layers.BatchNormalization(),
        keras.layers.ReLU(),
    ]


def block(channels, multiplier):
    return keras.Sequential(
        [*conv_norm(channels * multiplier), *conv_norm(channels), conv(channels)]
    )


def build_model(size, channels, multiplier, depth, classes, **coupling):
    """Further arguments go to `revkeras.ReversibleSequential`."""
    blocks = [block(channels, multiplier) for _ in range(depth)]
    return keras.Sequential(
        [
            keras.Input((size, size, 3)),
            conv(2 * channels),
            revkeras.ReversibleSequential(blocks, **coupling),
            conv(classes),
        ]
    )


def train(model, images, labels, steps):
    """Takes `steps` training steps; returns the loss before and after them."""
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(1e-3), loss)
    losses = [model.train_on_batch(images, labels) for _ in range(steps)]
    # The loss of a step is taken before its update.
    return float(losses[0]), float(model.train_on_batch(images, labels))


def parse_arguments(argv, description):
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--batch", type=int, default=16, help="images in a batch")
    parser.add_argument("--size", type=int, default=224, help="height and width of an image")
    parser.add_argument("--channels", type=int, default=64, help="channels of one stream")
    parser.add_argument("--multiplier", type=int, default=4, help="widening inside a block")
    parser.add_argument("--depth", type=int, default=16, help="reversible blocks")
    parser.add_argument("--classes", type=int, default=1000, help="classes of a pixel")
    parser.add_argument("--steps", type=int, default=1, help="training steps")
    return parser.parse_args(argv)


def run(arguments, **coupling):
    """Builds the model, trains it on random data and prints what came of it."""
    keras.utils.set_random_seed(0)
    a = arguments
    model = build_model(a.size, a.channels, a.multiplier, a.depth, a.classes, **coupling)
    rng = np.random.default_rng(0)
    images = rng.standard_normal((a.batch, a.size, a.size, 3), "float32")
    labels = rng.integers(a.classes, size=(a.batch, a.size, a.size))
    output_shape = tuple(keras.ops.shape(model(images)))
    print(f"input  {images.shape}")
    print(f"output {output_shape}")
    before, after = train(model, images, labels, a.steps)
    print(f"loss before {before:.4f}")
    print(f"loss after  {after:.4f}")
    return output_shape, before, after


def main(argv=None):
    return run(parse_arguments(argv, __doc__.splitlines()[0]))


if __name__ == "__main__":
    main()
