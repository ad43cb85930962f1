"""A normalizing flow that draws digits.

Affine couplings, invertible dense layers and activation normalizations in one reversible
stack, trained by likelihood on scikit-learn's 8 x 8 digits. It is compared on held-out digits
with a Gaussian of full covariance, both on the pixels and after the same logit transform,
and draws digits by running the stack backwards.

    python examples/normalizing_flow.py --out out

Pixels are whole numbers from 0 to 16; uniform noise on top of them makes densities
comparable. The picture is `digits.png`: a row of real digits, and drawn ones below.
"""

import argparse
import math
from pathlib import Path

import keras
import numpy as np
from sklearn.datasets import load_digits

import revkeras

ALPHA = 0.01  # keeps the logits of black and white finite
N_PIXELS = 64


def load(n_test=300):
    """Digits for training and held out, `(n, 64)`, whole numbers from 0 to 16."""
    digits = load_digits().data.astype("float32")
    digits = digits[np.random.default_rng(0).permutation(len(digits))]
    return digits[:-n_test], digits[-n_test:]


def to_logits(pixels):
    """Numbers from 0 to 17 as logits, and the log-determinant for each digit."""
    p = ALPHA + (1 - 2 * ALPHA) * pixels / 17
    logits = keras.ops.log(p) - keras.ops.log(1 - p)
    slopes = math.log((1 - 2 * ALPHA) / 17) - keras.ops.log(p) - keras.ops.log(1 - p)
    return logits, keras.ops.sum(slopes, axis=1)


def to_pixels(logits):
    """Undoes `to_logits`."""
    return (keras.ops.sigmoid(logits) - ALPHA) / (1 - 2 * ALPHA) * 17


def conditioner(width, dropout):
    """A block: from one half of the pixels to a shift and a scale of the other."""
    hidden = []
    for _ in range(2):
        hidden += [keras.layers.Dense(width, activation="relu"), keras.layers.Dropout(dropout)]
    # Zeros: the flow starts as a rotation of the standardized logits.
    return keras.Sequential([*hidden, keras.layers.Dense(N_PIXELS, kernel_initializer="zeros")])


def build_stack(depth, width, dropout):
    layers = []
    for _ in range(depth):
        layers += [revkeras.layers.ActNorm(), revkeras.layers.InvertibleDense()]
        layers += [conditioner(width, dropout), conditioner(width, dropout)]
    return revkeras.ReversibleSequential(layers, coupling="affine")


class Flow(keras.Model):
    """Log-likelihoods, in nats, of digits with noise on top of their pixels."""

    def __init__(self, stack):
        super().__init__()
        self.stack = stack
        self.noise = keras.random.SeedGenerator(1)

    def call(self, digits, training=None):
        noise = keras.random.uniform(keras.ops.shape(digits), seed=self.noise)
        logits, log_det = to_logits(digits + noise)
        z, more = self.stack(logits, training=training, return_log_det=True)
        normal = -0.5 * keras.ops.sum(z**2 + math.log(2 * math.pi), axis=1)
        return normal + log_det + more

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        return -keras.ops.mean(y_pred)

    def sample(self, n, temperature):
        z = temperature * np.random.default_rng(0).standard_normal((n, N_PIXELS), "float32")
        return keras.ops.convert_to_numpy(to_pixels(self.stack.inverse(z)))


def train(flow, digits, epochs, batch):
    steps = epochs * math.ceil(len(digits) / batch)
    warmup = max(1, steps // 20)
    schedule = keras.optimizers.schedules.CosineDecay(
        2e-4, steps - warmup, alpha=0.01, warmup_target=2e-3, warmup_steps=warmup
    )
    # The average of the weights generalizes better than the last ones.
    optimizer = keras.optimizers.Adam(
        schedule, global_clipnorm=50.0, use_ema=True, ema_momentum=0.99
    )
    flow.compile(optimizer)
    return flow.fit(digits, epochs=epochs, batch_size=batch, verbose=0).history["loss"]


def negative_log_likelihood(flow, digits, repeats=20):
    """Nats for each digit, a mean over noise."""
    return -float(np.mean(flow.predict(np.tile(digits, (repeats, 1)), verbose=0)))


def gaussian(train_digits, test_digits, logits, repeats=20):
    """The same for a Gaussian of full covariance, its ridge the best for the held-out digits."""

    def noisy(digits, seed):
        rng = np.random.default_rng(seed)
        digits = np.tile(digits, (repeats, 1))
        x = (digits + rng.random(digits.shape)).astype("float64")
        if not logits:
            return x, 0.0
        x, log_det = map(keras.ops.convert_to_numpy, to_logits(keras.ops.convert_to_tensor(x)))
        return x, log_det.mean()

    (x, _), (held_out, log_det) = noisy(train_digits, 1), noisy(test_digits, 2)
    mean, covariance = x.mean(0), np.cov(x.T)

    def nats(ridge):
        root = np.linalg.cholesky(covariance + ridge * np.diag(np.diag(covariance) + 1e-6))
        z = np.linalg.solve(root, (held_out - mean).T)
        normal = 0.5 * (z**2).sum(0).mean() + N_PIXELS / 2 * math.log(2 * math.pi)
        return normal + np.log(np.diag(root)).sum() - log_det

    return min(nats(ridge) for ridge in (0, 0.001, 0.003, 0.01, 0.03, 0.1))


def draw(real, drawn, path):
    """Writes the picture: a row of real digits, the drawn ones below."""
    from matplotlib.figure import Figure

    n = len(real)
    rows = [real, *np.reshape(drawn, (-1, n, N_PIXELS))]
    image = np.vstack([np.hstack(row.reshape(n, 8, 8)) for row in rows])
    figure = Figure(figsize=(n * 0.6, len(rows) * 0.6), layout="constrained")
    axes = figure.subplots()
    axes.imshow(image, cmap="gray_r", vmin=0, vmax=16)
    axes.axhline(7.5, color="tab:blue")
    axes.set_axis_off()
    figure.savefig(path, dpi=120)


def parse_arguments(argv):
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--epochs", type=int, default=120, help="times through the digits")
    parser.add_argument("--batch", type=int, default=128, help="digits in a batch")
    parser.add_argument("--depth", type=int, default=8, help="pairs of coupled blocks")
    parser.add_argument("--width", type=int, default=64, help="units of a block's hidden layers")
    parser.add_argument("--dropout", type=float, default=0.2, help="in those layers")
    parser.add_argument("--temperature", type=float, default=0.8, help="of the drawn digits")
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder for the picture")
    return parser.parse_args(argv)


def main(argv=None):
    """Returns the losses of training, the table's rows, and the flow."""
    a = parse_arguments(argv)
    keras.utils.set_random_seed(0)
    digits, held_out = load()
    flow = Flow(build_stack(a.depth, a.width, a.dropout))
    losses = train(flow, digits, a.epochs, a.batch)
    rows = {
        "Gaussian on pixels": gaussian(digits, held_out, logits=False),
        "Gaussian on logits": gaussian(digits, held_out, logits=True),
        "flow": negative_log_likelihood(flow, held_out),
    }
    print(f"{'held-out digits':20} {'nats a digit':>12} {'bits a pixel':>12}")
    for name, nats in rows.items():
        print(f"{name:20} {nats:12.2f} {nats / N_PIXELS / math.log(2):12.3f}")
    a.out.mkdir(parents=True, exist_ok=True)
    draw(held_out[:12], flow.sample(60, a.temperature), a.out / "digits.png")
    print(f"drawn digits: {a.out / 'digits.png'}")
    return losses, rows, flow


if __name__ == "__main__":
    main()
