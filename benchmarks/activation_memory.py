"""Measures the activation memory and the time of a training step against depth.

    python benchmarks/activation_memory.py --out out

Contestants: the three memory modes of `ReversibleSequential`, and `keras.remat`,
which is mode `none` with each block under it.
Each trains dense and convolutional blocks with `model.train_on_batch`, at several
depths, with `jit_compile="auto"` and `jit_compile=False`. Every configuration runs
in a process of its own, one after another.

Activation bytes are the peak of a step over the level between steps
(`revkeras.memory.measure_steps`; Linux only). The first step's time runs from the
start of building the model to the end of that step.

Writes `activation_memory.md` and `activation_memory.json`, and where matplotlib
is installed `activation_memory.png`. `--quick` leaves out the largest depth.
"""

import argparse
import dataclasses
import itertools
import json
import sys
import time
from pathlib import Path

import fresh_process

KINDS = ("dense", "convolutional")
CONTESTANTS = ("reversible", "checkpoint", "keras.remat", "none")
JIT_COMPILE = ("auto", "false")
DEPTHS = (4, 16, 64)
GOAL = 0.02
MIB = 2**20
ENVIRONMENT = {"MALLOC_MMAP_THRESHOLD_": "65536", "TF_CPP_MIN_LOG_LEVEL": "2"}

# Large batches and narrow streams: weights and gradients are small beside activations.
INPUT_SHAPES = {"dense": (2048, 128), "convolutional": (16, 32, 32, 32)}


@dataclasses.dataclass(frozen=True)
class Configuration:
    """What one process measures."""

    kind: str
    jit_compile: str
    depth: int
    contestant: str
    steps: int


@dataclasses.dataclass(frozen=True)
class Measurement:
    """A configuration and what its training step costs."""

    configuration: Configuration
    jit_compiled: bool  # what Keras made of the setting
    activation_bytes: int
    step_seconds: float
    first_step_seconds: float


@dataclasses.dataclass(frozen=True)
class Growth:
    """The bytes that a contestant adds between the smallest and the largest depth."""

    kind: str
    jit_compile: str
    contestant: str
    depths: tuple[int, int]
    added_bytes: int
    share_of_none: float | None

    @property
    def bytes_per_block(self):
        return self.added_bytes / (self.depths[1] - self.depths[0])


def block_layers(kind, channels):
    """The layers of one block."""
    import keras

    if kind == "dense":
        return [
            keras.layers.LayerNormalization(),
            keras.layers.Dense(4 * channels),
            keras.layers.Activation("gelu"),
            keras.layers.Dropout(0.1),
            keras.layers.Dense(channels),
        ]
    return [
        keras.layers.Conv2D(channels, 3, padding="same", use_bias=False),
        keras.layers.BatchNormalization(),
        keras.layers.ReLU(),
        keras.layers.Dropout(0.1),
        keras.layers.Conv2D(channels, 3, padding="same", use_bias=False),
        keras.layers.BatchNormalization(),
        keras.layers.ReLU(),
    ]


def build_block(kind, channels, contestant):
    """One block; for `keras.remat`, under it as a whole."""
    import keras

    block = keras.Sequential(block_layers(kind, channels))
    if contestant != "keras.remat":
        return block

    class Remat(keras.layers.Wrapper):
        def call(self, x, training=None):
            return keras.remat(lambda x: self.layer(x, training=training))(x)

    return Remat(block)


def build_model(configuration):
    import keras

    import revkeras

    kind, contestant = configuration.kind, configuration.contestant
    batch, *shape = INPUT_SHAPES[kind]
    blocks = [build_block(kind, shape[-1] // 2, contestant) for _ in range(configuration.depth)]
    memory_mode = "none" if contestant == "keras.remat" else contestant
    stack = revkeras.ReversibleSequential(blocks, memory_mode=memory_mode)
    model = keras.Sequential([keras.Input(shape, batch_size=batch), stack])
    jit_compile = {"auto": "auto", "false": False}[configuration.jit_compile]
    model.compile(keras.optimizers.SGD(1e-3), "mse", jit_compile=jit_compile)
    return model


def measure(configuration):
    """Measures a configuration in this process."""
    import keras

    from revkeras.memory import measure_steps

    keras.utils.set_random_seed(0)
    x, y = (keras.random.normal(INPUT_SHAPES[configuration.kind], seed=seed) for seed in (0, 1))
    start = time.perf_counter()
    model = build_model(configuration)
    model.train_on_batch(x, y)
    first_step_seconds = time.perf_counter() - start
    cost = measure_steps(lambda: model.train_on_batch(x, y), steps=configuration.steps)
    return Measurement(
        configuration,
        bool(model.jit_compile),
        cost.activation_bytes,
        cost.step_seconds,
        first_step_seconds,
    )


def measure_in_fresh_process(configuration):
    values = fresh_process.measure(__file__, configuration, ENVIRONMENT)
    return Measurement(**{**values, "configuration": Configuration(**values["configuration"])})


def growths(measurements):
    """What each contestant adds with depth, and how much that is of what `none` adds."""
    levels = {}
    for m in measurements:
        c = m.configuration
        key = c.kind, c.jit_compile, c.contestant
        levels.setdefault(key, {})[c.depth] = m.activation_bytes
    result = []
    for (kind, jit_compile, contestant), by_depth in levels.items():
        first, last = min(by_depth), max(by_depth)
        if first == last:
            continue
        added = by_depth[last] - by_depth[first]
        plain = levels.get((kind, jit_compile, "none"))
        share = added / (plain[last] - plain[first]) if plain else None
        result.append(Growth(kind, jit_compile, contestant, (first, last), added, share))
    return result


def summaries(all_growths):
    """One line for each block kind and jit setting."""
    return [
        f"{g.kind}, jit_compile={g.jit_compile}: from {g.depths[0]} to {g.depths[1]} blocks, "
        f"reversible adds {g.added_bytes / MIB:.2f} MiB = {g.share_of_none:.2%} of what mode "
        f"none adds (goal: below {GOAL:.0%})"
        for g in all_growths
        if g.contestant == "reversible" and g.share_of_none is not None
    ]


def markdown(measurements, all_growths):
    added = {(g.kind, g.jit_compile, g.contestant): g for g in all_growths}
    depths = sorted({m.configuration.depth for m in measurements})
    header = ["blocks", "jit_compile", "contestant"]
    header += [f"MiB at {d}" for d in depths] + ["MiB added per block", "of none's"]
    header += [f"step at {d} (s)" for d in depths] + [f"first step at {depths[-1]} (s)"]
    rows = [header, ["---"] * 3 + ["---:"] * (len(header) - 3)]
    by_depth = {}
    for m in measurements:
        c = m.configuration
        by_depth.setdefault((c.kind, c.jit_compile, c.contestant), {})[c.depth] = m
    for key in sorted(by_depth, key=_order):
        at, growth = by_depth[key], added.get(key)
        share = growth.share_of_none if growth else None
        rows.append(
            [
                *key,
                *(f"{at[d].activation_bytes / MIB:.1f}" for d in depths),
                f"{growth.bytes_per_block / MIB:.3f}" if growth else "",
                f"{share:.2%}" if share is not None else "",
                *(f"{at[d].step_seconds:.3f}" for d in depths),
                f"{at[depths[-1]].first_step_seconds:.1f}",
            ]
        )
    table = "\n".join("| " + " | ".join(row) + " |" for row in rows)
    notes = summaries(all_growths)
    if not any(m.jit_compiled for m in measurements):
        notes.append("jit_compile=auto came out as false here: both settings are one program.")
    lines = "\n".join(f"- {note}" for note in notes)
    return f"""\
Activation memory and time of a training step, by number of blocks.

{table}

{lines}
"""


def _order(key):
    kind, jit_compile, contestant = key
    return KINDS.index(kind), JIT_COMPILE.index(jit_compile), CONTESTANTS.index(contestant)


def plot(measurements, path):
    """Memory against depth, one panel for each block kind and jit setting."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import NullLocator, StrMethodFormatter

    styles = {
        "reversible": ("#0072b2", "o"),
        "checkpoint": ("#009e73", "s"),
        "keras.remat": ("#e69f00", "^"),
        "none": ("#555555", "D"),
    }
    kinds = [k for k in KINDS if any(m.configuration.kind == k for m in measurements)]
    settings = [
        j for j in JIT_COMPILE if any(m.configuration.jit_compile == j for m in measurements)
    ]
    figure, axes = pyplot.subplots(
        len(settings),
        len(kinds),
        figsize=(4.5 * len(kinds), 3.6 * len(settings)),
        sharex=True,
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for (row, jit_compile), (column, kind) in itertools.product(
        enumerate(settings), enumerate(kinds)
    ):
        panel = axes[row][column]
        for contestant, (color, marker) in styles.items():
            points = sorted(
                (m.configuration.depth, m.activation_bytes / MIB)
                for m in measurements
                if (m.configuration.kind, m.configuration.jit_compile, m.configuration.contestant)
                == (kind, jit_compile, contestant)
            )
            if points:
                depths = [d for d, _ in points]
                panel.plot(*zip(*points), color=color, marker=marker, label=contestant)
                panel.set_xscale("log", base=2)
                panel.set_xticks(depths, [str(d) for d in depths])
        panel.set_yscale("log", base=2)
        panel.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        panel.xaxis.set_minor_locator(NullLocator())
        panel.grid(True, which="major", alpha=0.3)
        panel.set_title(f"{kind} blocks, jit_compile={jit_compile}", fontsize=10)
        if column == 0:
            panel.set_ylabel("activation memory (MiB)")
        if row == len(settings) - 1:
            panel.set_xlabel("blocks")
    axes[0][0].legend(frameon=False, fontsize=9)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def write(measurements, out):
    """Writes the table, the numbers and, if it can, the plot."""
    out.mkdir(parents=True, exist_ok=True)
    all_growths = growths(measurements)
    text = markdown(measurements, all_growths)
    (out / "activation_memory.md").write_text(text)
    values = {
        "input_shapes": INPUT_SHAPES,
        "measurements": [dataclasses.asdict(m) for m in measurements],
        "growths": [dataclasses.asdict(g) for g in all_growths],
    }
    (out / "activation_memory.json").write_text(json.dumps(values, indent=2) + "\n")
    try:
        plot(measurements, out / "activation_memory.png")
    except ImportError:
        print("No plot: matplotlib is not installed.", file=sys.stderr)
    return text


def run(arguments):
    depths = arguments.depths or (DEPTHS[:-1] if arguments.quick else DEPTHS)
    # Contestants vary fastest: what slows the machine for a while slows them all.
    configurations = [
        Configuration(kind, jit_compile, depth, contestant, arguments.steps)
        for depth, kind, jit_compile, contestant in itertools.product(
            depths, arguments.kinds, arguments.jit_compile, arguments.contestants
        )
    ]
    measurements = []
    for number, configuration in enumerate(configurations, 1):
        m = measure_in_fresh_process(configuration)
        measurements.append(m)
        c = m.configuration
        print(
            f"[{number}/{len(configurations)}] {c.kind}, jit_compile={c.jit_compile}, "
            f"{c.depth} blocks, {c.contestant}: {m.activation_bytes / MIB:.1f} MiB, "
            f"{m.step_seconds:.3f} s a step",
            flush=True,
        )
    print("\n" + write(measurements, arguments.out))


def parse_arguments():
    parser = argparse.ArgumentParser(
        description="Activation memory and time of a training step against depth."
    )
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder for the results")
    parser.add_argument("--quick", action="store_true", help="leave out the largest depth")
    parser.add_argument("--depths", type=int, nargs="+", help=f"default: {DEPTHS}")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--contestants", nargs="+", choices=CONTESTANTS, default=CONTESTANTS)
    parser.add_argument("--jit-compile", nargs="+", choices=JIT_COMPILE, default=JIT_COMPILE)
    parser.add_argument("--steps", type=int, default=3, help="measured steps a configuration")
    parser.add_argument("--measure", metavar="JSON", help="measure one configuration, here")
    return parser.parse_args()


if __name__ == "__main__":
    parsed = parse_arguments()
    if parsed.measure:
        result = measure(Configuration(**json.loads(parsed.measure)))
        print(json.dumps(dataclasses.asdict(result)))
    else:
        run(parsed)
