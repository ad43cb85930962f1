"""i-RevNet gives images back from features, at any layer that it was trained to.

An i-RevNet is trained to tell scikit-learn's digits apart, upscaled to 32 x 32 pixels.
Then the images are computed back from what it made of them, and so are the
images between two of them: those of features on the straight line from one's to the
other's, which the network takes for something between the two. About a minute on two
cores:

    python examples/reconstruct.py --out out

The folder then holds `reconstruct.png`: test images, what the features give back, the
error a thousand times enlarged, and five steps from the first image to the second.
"""

import argparse
from pathlib import Path

import keras
import numpy as np
from sklearn import datasets

import revkeras


def load():
    """Images of 32 x 32 pixels from -1 to 1, and labels: to train on, and to test on."""
    images, labels = datasets.load_digits(return_X_y=True)
    images = images.reshape(-1, 8, 8, 1) / 8 - 1
    images = keras.ops.image.resize(images.astype("float32"), (32, 32), "bicubic")
    images, labels = np.array(images), np.array(labels)
    return (images[:1500], labels[:1500]), (images[1500:], labels[1500:])


def build_model(blocks):
    return revkeras.models.IRevNet(
        blocks=(blocks, blocks, blocks),
        strides=(1, 2, 2),
        input_shape=(32, 32, 1),
        classes=10,
        classifier_activation=None,
        bottleneck=1,
    )


def features_of(model):
    return keras.Model(model.input, model.get_layer("reversible").output)


def in_between(model, features, steps):
    """Images whose features go from the first image's to the second's in even steps."""
    share = np.linspace(0, 1, steps).reshape(-1, 1, 1, 1)
    line = (1 - share) * features[:1] + share * features[1:2]
    return np.array(model.inverse(line.astype("float32")))


def draw(images, restored, between, path):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = {
        "image": images,
        "from its features": restored,
        "error x 1000": 1000 * np.abs(restored - images) - 1,
        "first to second": between,
    }
    columns = max(len(row) for row in rows.values())
    figure, axes = pyplot.subplots(len(rows), columns, figsize=(1.2 * columns, 1.3 * len(rows)))
    for line, (label, row) in zip(axes, rows.items()):
        for axis in line:
            axis.axis("off")
        for axis, image in zip(line, row):
            axis.imshow(image[..., 0], cmap="gray", vmin=-1, vmax=1)
        line[0].set_title(label, fontsize=8, loc="left")
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    pyplot.close(figure)


def parse_arguments(argv):
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--blocks", type=int, default=3, help="blocks in each of three stages")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch", type=int, default=50)
    parser.add_argument("--images", type=int, default=8, help="images in the picture")
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder of the picture")
    return parser.parse_args(argv)


def main(argv=None):
    a = parse_arguments(argv)
    keras.utils.set_random_seed(0)
    (x, y), (x_test, y_test) = load()
    model = build_model(a.blocks)
    model.compile(
        keras.optimizers.Adam(1e-3),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    model.optimizer.build(model.trainable_variables)  # or the first step is traced twice
    model.fit(x, y, batch_size=a.batch, epochs=a.epochs, verbose=2)
    _, accuracy = model.evaluate(x_test, y_test, batch_size=len(x_test), verbose=0)
    images = x_test[: a.images]
    features = features_of(model).predict(images, verbose=0)
    restored = np.array(model.inverse(features))
    error = float(np.abs(restored - images).max())
    print(f"image {images.shape[1:]}, features {features.shape[1:]}")
    print(f"test accuracy {accuracy:.3f}; largest error of a pixel {error:.1e}, of a range of 2")
    a.out.mkdir(parents=True, exist_ok=True)
    draw(images, restored, in_between(model, features, 5), a.out / "reconstruct.png")
    return accuracy, error


if __name__ == "__main__":
    main()
