"""A reversible language model of bytes, trained on the source of Python's standard library.

Blocks of causal self-attention and feed-forward layers, in turn, form one reversible
stack. The script trains it with `model.fit`, writes a sample, and then measures what a
training step holds and takes when the same stack is reversible, plain, or rematerialized
with `keras.remat`. About four minutes on two cores:

    python examples/language_model.py --out out

The folder then holds `language_model.json`, `.md` and `.png`.
"""

import argparse
import json
import os
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import keras
import numpy as np

import revkeras
from revkeras.memory import ENVIRONMENT, measure_steps

MODES = {
    "reversible": "revkeras, reversible",
    "remat": "plain, keras.remat on each block",
    "plain": "plain",
}
DROPOUT = 0.1


class Remat(keras.layers.Layer):
    """`keras.remat` around a layer, here to compare costs.

    Its recomputation draws other dropout masks than the forward pass did, so gradients
    are not quite those of the loss. The reversible stack and `revkeras.Checkpoint` draw
    the same ones.

    A layer, because `keras.RematScope` hands keyword arguments such as `training` to
    `tf.recompute_grad`, which takes none inside a graph.
    """

    def __init__(self, layer, **kwargs):
        super().__init__(**kwargs)
        self.layer = layer

    def build(self, input_shape):
        self.layer.build(input_shape)

    def call(self, inputs, training=None):
        return keras.remat(lambda x: self.layer(x, training=training))(inputs)


def attention_block(sequence, width, heads):
    x = keras.Input((sequence, width))
    h = keras.layers.LayerNormalization()(x)
    attention = keras.layers.MultiHeadAttention(heads, width // heads, use_bias=False)
    h = attention(h, h, use_causal_mask=True)
    return keras.Model(x, keras.layers.Dropout(DROPOUT)(h))


def feed_forward_block(sequence, width):
    return keras.Sequential(
        [
            keras.Input((sequence, width)),
            keras.layers.LayerNormalization(),
            keras.layers.Dense(4 * width, activation="gelu"),
            keras.layers.Dense(width),
            keras.layers.Dropout(DROPOUT),
        ]
    )


def build_model(blocks, width, heads, sequence, mode="reversible"):
    """`width` is that of one stream; the model between is twice as wide."""
    stack = [
        feed_forward_block(sequence, width) if i % 2 else attention_block(sequence, width, heads)
        for i in range(blocks)
    ]
    if mode == "remat":
        stack = [Remat(block) for block in stack]
    memory_mode = "reversible" if mode == "reversible" else "none"

    tokens = keras.Input((sequence,), dtype="int32")
    positions = keras.ops.cumsum(keras.ops.ones_like(tokens), axis=1) - 1
    # Keras's default for embeddings is small: the first blocks' sums would drown the bytes.
    x = keras.layers.Embedding(256, 2 * width, keras.initializers.RandomNormal(stddev=1))(tokens)
    x = x + keras.layers.Embedding(sequence, 2 * width)(positions)
    x = revkeras.ReversibleSequential(stack, memory_mode=memory_mode)(x)
    x = keras.layers.LayerNormalization()(x)
    return keras.Model(tokens, keras.layers.Dense(256)(x))


def compile_model(model, steps):
    warmup = max(1, steps // 10)
    rate = keras.optimizers.schedules.CosineDecay(
        1e-4, max(1, steps - warmup), alpha=0.05, warmup_target=3e-3, warmup_steps=warmup
    )
    # XLA off for all, so that modes differ in what they keep and in nothing else.
    model.compile(
        keras.optimizers.Adam(rate, beta_2=0.98),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile=False,
    )
    # Built by the first step, its variables would make Keras trace the deep graph twice.
    model.optimizer.build(model.trainable_variables)


def read_corpus(megabytes):
    """The bytes of the standard library's sources; every tenth file is held out."""
    limit = int(megabytes * 1e6)
    train, held_out, size = [], [], 0
    for index, path in enumerate(sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))):
        text = path.read_bytes()[: limit - size]
        (held_out if index % 10 == 9 else train).append(text)
        size += len(text)
    return tuple(np.frombuffer(b"".join(texts), "uint8") for texts in (train, held_out))


def windows(corpus, sequence, count, rng):
    """`count` windows at random places: the bytes, and for each the one that follows."""
    starts = rng.integers(len(corpus) - sequence, size=count)
    taken = corpus[starts[:, None] + np.arange(sequence + 1)].astype("int32")
    return taken[:, :-1], taken[:, 1:]


def batches(corpus, sequence, batch, rng):
    while True:
        yield windows(corpus, sequence, batch, rng)


def generate(model, prompt, length, temperature=0.7, seed=0):
    """`length` bytes after `prompt`, each drawn from the model's prediction."""
    rng = np.random.default_rng(seed)
    sequence = model.input_shape[1]
    text = list(prompt.encode())
    for _ in range(length):
        # One fixed shape, so one compiled graph; what stands after the end is not seen.
        context = text[-sequence:]
        padded = np.zeros((1, sequence), "int32")
        padded[0, : len(context)] = context
        logits = model.predict_on_batch(padded)[0, len(context) - 1].astype("float64")
        p = np.exp((logits - logits.max()) / temperature)
        text.append(int(rng.choice(256, p=p / p.sum())))
    return bytes(text).decode("utf-8", "replace")


def train(model, arguments):
    a = arguments
    train_bytes, held_out = read_corpus(a.megabytes)
    print(f"{len(train_bytes):,} bytes to train on, {len(held_out):,} held out")
    epochs = min(a.epochs, a.steps)
    fitted = model.fit(
        batches(train_bytes, a.sequence, a.batch, np.random.default_rng(0)),
        steps_per_epoch=a.steps // epochs,
        epochs=epochs,
        shuffle=False,  # the windows are drawn at random already
        validation_data=windows(held_out, a.sequence, 8 * a.batch, np.random.default_rng(1)),
        validation_batch_size=a.batch,
    )
    return {name: [float(v) for v in values] for name, values in fitted.history.items()}


def measure(arguments):
    """Prints the cost of a step of the model in this process, as JSON."""
    a = arguments
    model = build_model(a.blocks, a.width, a.heads, a.sequence, a.measure)
    compile_model(model, a.steps)
    x, y = np.random.default_rng(0).integers(256, size=(2, a.batch, a.sequence), dtype="int32")
    cost = measure_steps(lambda: model.train_on_batch(x, y), steps=a.measure_steps)
    print(json.dumps({"bytes": cost.activation_bytes, "seconds": cost.step_seconds}))
    return cost


def measure_in_fresh_process(mode, arguments):
    """One process per mode, for memory that an earlier model freed would hide the next's."""
    a = arguments
    sizes = {
        name: getattr(a, name)
        for name in ("blocks", "width", "heads", "sequence", "batch", "steps")
    }
    command = [sys.executable, __file__, "--measure", mode]
    for name, value in {**sizes, "measure-steps": a.measure_steps}.items():
        command += [f"--{name}", str(value)]
    env = {**os.environ, **ENVIRONMENT}
    done = subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def table(costs):
    rows = [
        "| training step | activation memory | step time |",
        "|:--|--:|--:|",
    ]
    for mode, cost in costs.items():
        rows.append(f"| {MODES[mode]} | {cost['bytes'] / 1e6:.0f} MB | {cost['seconds']:.2f} s |")
    return "\n".join(rows)


def plot(costs, title, path):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = ["reversible", "keras.remat", "plain"]
    colors = ["tab:green", "tab:orange", "tab:gray"]
    panels = [
        ("activation memory in MB", [c["bytes"] / 1e6 for c in costs.values()], "{:.0f}"),
        ("step time in seconds", [c["seconds"] for c in costs.values()], "{:.2f}"),
    ]
    figure, axes = pyplot.subplots(1, 2, figsize=(9, 4), layout="constrained")
    for axis, (label, values, form) in zip(axes, panels):
        bars = axis.bar(names, values, color=colors)
        axis.bar_label(bars, [form.format(v) for v in values], padding=2)
        axis.set_title(label)
        axis.margins(y=0.12)
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def parse_arguments(argv):
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--blocks", type=int, default=24, help="blocks of the reversible stack")
    parser.add_argument("--width", type=int, default=64, help="width of one of the two streams")
    parser.add_argument("--heads", type=int, default=2, help="attention heads of a block")
    parser.add_argument("--sequence", type=int, default=128, help="bytes in a window")
    parser.add_argument("--batch", type=int, default=16, help="windows in a batch")
    parser.add_argument("--steps", type=int, default=160, help="training steps")
    parser.add_argument("--epochs", type=int, default=4, help="parts the steps are taken in")
    parser.add_argument("--megabytes", type=float, default=5, help="size of the corpus, at most")
    parser.add_argument("--prompt", default="def ", help="what the sample goes on from")
    parser.add_argument("--sample", type=int, default=300, help="bytes of the sample")
    parser.add_argument("--measure-steps", type=int, default=3, help="steps measured in each mode")
    parser.add_argument("--skip-measure", action="store_true", help="train only")
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder of the results")
    parser.add_argument("--measure", choices=MODES, help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def main(argv=None):
    a = parse_arguments(argv)
    keras.utils.set_random_seed(0)
    if a.measure:
        return measure(a)

    start = time.perf_counter()
    model = build_model(a.blocks, a.width, a.heads, a.sequence)
    compile_model(model, a.steps)
    print(f"{a.blocks} reversible blocks, {model.count_params():,} parameters")
    history = train(model, a)
    print(f"trained in {time.perf_counter() - start:.0f} s\n")

    sample = generate(model, a.prompt, a.sample)
    print(f"--- sample ---\n{sample}\n--- end of sample ---\n")

    costs = {}
    if not a.skip_measure:
        for mode in MODES:
            print(f"measuring a training step: {MODES[mode]}", flush=True)
            costs[mode] = measure_in_fresh_process(mode, a)
        print(f"\n{table(costs)}\n")
    a.out.mkdir(parents=True, exist_ok=True)
    write_results(a, history, sample, costs)
    print(f"{time.perf_counter() - start:.0f} s in all; results in {a.out}")
    return {"history": history, "sample": sample, "costs": costs}


def write_results(arguments, history, sample, costs):
    a = arguments
    sizes = (
        f"{a.blocks} blocks, width 2 x {a.width}, batch {a.batch}, sequence {a.sequence}, float32"
    )
    results = {"sizes": sizes, "history": history, "sample": sample, "costs": costs}
    (a.out / "language_model.json").write_text(json.dumps(results, indent=1) + "\n")
    if costs:
        plot(costs, f"A training step: {sizes}", a.out / "language_model.png")
    (a.out / "language_model.md").write_text(
        f"{sizes}\n\n"
        + (f"{table(costs)}\n\n" if costs else "")
        + f"Loss {history['loss'][-1]:.3f} in the last epoch, "
        f"{history['val_loss'][-1]:.3f} on held-out files. A sample:\n\n```\n{sample}\n```\n"
    )


if __name__ == "__main__":
    main()
