"""Shows how exact the rebuilt values and the gradients of a reversible stack are.

    python benchmarks/exactness.py --out out

The gradient error of a stack is that of mode "reversible" against mode "none" with the
same weights and inputs, `norm(g - reference) / norm(reference)`, over the gradients of all
weights and of the input, as one vector in float64. The worst block's is the largest of the
same for the weights of one block.

Exact couplings are watched at work: a coupling that also writes down what it is given and
what it rebuilds tells whether each block's carry comes back bit for bit, and in what part of
its elements a block's output differs when it is computed again from the same input.

Blocks are LayerNormalization, Dense, GELU, Dense on streams of 32 channels in batches of 32,
or convolutional. Their weights are Keras's own initial ones; "scaled" ones have the last
kernel divided by the root of the number of blocks. Every row is measured in a process of its
own, one after another. Deep stacks run eagerly, because tracing them would take minutes; the
rows marked "graph" are one `tf.function`. "oneDNN" is `TF_ENABLE_ONEDNN_OPTS=1`, TensorFlow's
default on newer processors, which fuses more operations into one than plain TensorFlow does.

Writes `exactness.md` and `exactness.json`. A missed goal is shown, and is no failure.
`--quick` takes small depths.
"""

import argparse
import contextlib
import copy
import dataclasses
import time
import warnings
from pathlib import Path
from unittest import mock

import fresh_process
import keras
import numpy as np
import tensorflow as tf
from exactness_report import Configuration, Figure, Measurement, measurement_from, shown, write

import revkeras
from revkeras._engine.tensorflow import passes
from revkeras._round_trip import relative_error
from revkeras.couplings import Additive, Affine, Momentum
from revkeras.layers import SpaceToDepth

L = keras.layers
BATCH, CHANNELS = 32, 32  # of dense blocks, and of each of their streams
COUPLINGS = {
    "additive": lambda: Additive(),
    "additive, exact": lambda: Additive(exact=True),
    "momentum 0.5": lambda: Momentum(0.5),
    "momentum 0.9": lambda: Momentum(0.9),
    "momentum 0.5, exact": lambda: Momentum(0.5, exact=True),
    "momentum 0.9, exact": lambda: Momentum(0.9, exact=True),
    "momentum 0.99, exact": lambda: Momentum(0.99, exact=True),
    "affine, sigmoid": lambda: Affine("sigmoid"),
    "affine, exp": lambda: Affine("exp"),
}
STAGES, QUICK_STAGES = (6, 16, 72, 6), (1, 2, 3, 1)  # blocks between an i-RevNet's downsamplings
GRADIENT_GOALS = {  # by case
    "additive": 1e-4,
    "mixed_bfloat16": 1e-2,
    "momentum-exact": 1e-5,
    "affine": 1e-3,
    "additive-exact": 1e-5,
}


@dataclasses.dataclass(frozen=True)
class Note:
    """What a coupling saw.

    Attributes:
        direction: "couple" or "uncouple".
        index: The block's, counted from 0.
        carry: What the streams were before the block, and what there was beside them.
        item_bytes: For each tensor of the carry after the block, the bytes of an element.
        fx: The block's output.
    """

    direction: str
    index: int
    carry: list
    item_bytes: list
    fx: np.ndarray


@dataclasses.dataclass(frozen=True)
class Gradients:
    """Of the input, and of all weights of each block, as flat vectors in float64."""

    input: np.ndarray
    blocks: list


# Blocks and stacks.


def dense(channels, outputs, initializer):
    return keras.Sequential(
        [
            L.LayerNormalization(),
            L.Dense(2 * channels, activation="gelu"),
            L.Dense(outputs, kernel_initializer=initializer),
        ]
    )


def convolutional(channels, outputs, initializer):
    return keras.Sequential(
        [
            L.Conv2D(channels, 3, padding="same", use_bias=False),
            L.BatchNormalization(),
            L.ReLU(),
            L.Dropout(0.1),
            L.Conv2D(outputs, 3, padding="same", kernel_initializer=initializer),
            L.BatchNormalization(),
            L.ReLU(),
        ]
    )


def convolution_mish(channels, outputs, initializer):
    return keras.Sequential(
        [
            L.Conv2D(channels, 3, padding="same", activation="mish"),
            L.Conv2D(outputs, 3, padding="same", kernel_initializer=initializer),
        ]
    )


KINDS = {
    "dense": (dense, (BATCH, 2 * CHANNELS)),
    "convolutional": (convolutional, (8, 12, 12, 16)),
    "convolution-mish": (convolution_mish, (8, 12, 12, 16)),
}


def make_blocks(configuration):
    make, shape = KINDS[configuration.kind]
    coupling, channels = COUPLINGS[configuration.coupling](), shape[-1] // 2
    scale = 1 / configuration.blocks if configuration.scaled else 1.0

    def initializer():  # one for each block: it would draw the same values again
        return keras.initializers.VarianceScaling(scale, "fan_avg", "uniform")

    outputs = coupling.n_updates * channels
    return [make(channels, outputs, initializer()) for _ in range(configuration.blocks)]


def make_stack(configuration, blocks, coupling=None, memory_mode="reversible"):
    """Stacks of the same blocks share their weights."""
    stack = revkeras.ReversibleSequential(
        blocks,
        coupling=coupling or COUPLINGS[configuration.coupling](),
        memory_mode=memory_mode,
        dtype=configuration.streams,
    )
    stack.build((None, *KINDS[configuration.kind][1][1:]))
    return stack


def data(configuration):
    """Inputs and targets."""
    rng = np.random.default_rng(0)
    shape = KINDS[configuration.kind][1]
    return [rng.standard_normal(shape, "float32") for _ in range(2)]


def start(configuration):
    """Sets the process up; returns new blocks."""
    keras.utils.set_random_seed(0)
    keras.config.set_dtype_policy(configuration.policy)
    return make_blocks(configuration)


def in_policy(configuration, blocks, policy):
    """A stack in mode "none" in another policy, with the weights of `blocks`."""
    streams = "float64" if policy == "float64" else configuration.streams
    configuration = dataclasses.replace(configuration, policy=policy, streams=streams)
    copies = start(configuration)
    stack = make_stack(configuration, copies, memory_mode="none")
    for source, target in zip(blocks, copies, strict=True):
        target.set_weights(source.get_weights())
    return stack


# Gradients.


def differentiate(stack, configuration):
    """The gradients of a step; the stack's state is put back."""
    inputs, targets = (tf.constant(a, stack.compute_dtype) for a in data(configuration))
    blocks = [[w.value for w in block.trainable_variables] for block in stack.layers]

    def step():
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            outputs = stack(inputs, training=True)
            loss = tf.reduce_mean(tf.cast(outputs - targets, "float64") ** 2)
        return tape.gradient(loss, [inputs, blocks])

    state = [(v, v.numpy()) for v in stack.non_trainable_variables]
    dinputs, dblocks = (tf.function(step) if configuration.graph else step)()
    for variable, value in state:
        variable.assign(value)
    return Gradients(_flat([dinputs]), [_flat(block) for block in dblocks])


def gradient_errors(found, reference):
    """Of all gradients as one vector, and the largest of one block's."""
    pairs = list(zip(found.blocks, reference.blocks, strict=True))
    whole = relative_error([found.input, *found.blocks], [reference.input, *reference.blocks])
    return whole, max(relative_error([a], [b]) for a, b in pairs)


def _flat(tensors):
    return np.concatenate([np.ravel(np.asarray(t, "float64")) for t in tensors])


# What couplings see.


def watched(coupling, notes):
    """A coupling that does the same and appends a `Note` each time it acts."""

    class Watched(type(coupling)):
        def at(self, index, depth):
            located = copy.copy(super().at(index, depth))
            located.index = index
            return located

        def couple(self, streams, fx):
            outputs = super().couple(streams, fx)
            self._note("couple", streams, outputs, fx)
            return outputs

        def uncouple(self, outputs, fx):
            streams = super().uncouple(outputs, fx)
            self._note("uncouple", streams, outputs, fx)
            return streams

        def _note(self, direction, carry, outputs, fx):
            item_bytes = [t.dtype.size for t in outputs]

            def note(fx, *carry):
                fx, *carry = [np.array(a) for a in (fx, *carry)]
                notes.append(Note(direction, self.index, carry, item_bytes, fx))

            tf.numpy_function(note, [fx, *carry], [])

    coupling = copy.copy(coupling)
    coupling.__class__ = Watched
    return coupling


@contextlib.contextmanager
def watching():
    """Inside, stacks may call Python, as watched couplings do, which a replay must not repeat."""
    refusals = dict.fromkeys(("refuse_unreplayable", "refuse_changing"), lambda *_: None)
    with mock.patch.multiple(passes, **refusals):
        yield


def by_block(notes):
    """For each block: its notes of the forward pass, of the rebuild, and under the tape."""
    passes = {"forward": {}, "rebuild": {}, "tape": {}}
    for note in notes:
        if note.direction == "uncouple":
            name = "rebuild"
        else:
            name = "tape" if note.index in passes["forward"] else "forward"
        assert note.index not in passes[name]
        passes[name][note.index] = note
    return [tuple(passes[name][i] for name in passes) for i in range(len(passes["forward"]))]


def same_bits(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def same_carry(a, b):
    return len(a.carry) == len(b.carry) and all(map(same_bits, a.carry, b.carry))


def share_differing(pairs):
    """In what part of all elements the outputs of two evaluations differ."""
    return float(np.mean([np.mean(a.fx != b.fx) for a, b in pairs]))


def bit_figures(notes):
    blocks = by_block(notes)
    forward, rebuilt, taped = zip(*blocks, strict=True)
    carries = [same_carry(a, b) for a, b in zip(forward, rebuilt, strict=True)]
    differing = share_differing(zip(forward, rebuilt, strict=True))
    return [
        Figure("input rebuilt bit for bit", carries[0], equals=True),
        Figure("blocks whose input is rebuilt bit for bit", sum(carries), equals=len(carries)),
        Figure("elements of f that differ in the rebuild", differing, equals=0.0),
        Figure(
            "elements of f that differ under the tape",
            share_differing(zip(forward, taped, strict=True)),
        ),
    ]


def buffer_figures(notes):
    """What a momentum stack carries at its end beside the streams and a count."""
    blocks = by_block(notes)
    buffers = blocks[-1][0].item_bytes[3:]
    bits = 8 * sum(buffers) / len(blocks)
    return [
        Figure("remainder buffers", len(buffers)),
        Figure("bits of buffers for each block and element", round(bits, 4)),
    ]


# Measurements: each takes a configuration and returns figures.


def measure_gradients(configuration):
    blocks, notes = start(configuration), []
    coupling = COUPLINGS[configuration.coupling]()
    exact = coupling.exact
    stack = make_stack(configuration, blocks, watched(coupling, notes) if exact else coupling)
    plain = make_stack(configuration, blocks, memory_mode="none")
    notes.clear()  # of the check at build
    with watching() if exact else contextlib.nullcontext():
        found = differentiate(stack, configuration)
    expected = differentiate(plain, configuration)
    error, worst = gradient_errors(found, expected)
    figures = [
        Figure("gradient error", error, below=GRADIENT_GOALS[configuration.case]),
        Figure("gradient error of the worst block", worst),
    ]
    if exact:
        figures += bit_figures(notes)
    if configuration.case == "momentum-exact":
        figures += buffer_figures(notes)
    if configuration.reference:
        reference = in_policy(configuration, blocks, configuration.reference)
        reference = differentiate(reference, configuration)
        name = f'gradient error of mode "{{}}" against "none" in {configuration.reference}'
        figures += [
            Figure(name.format(mode), gradient_errors(gradients, reference)[0])
            for mode, gradients in (("none", expected), ("reversible", found))
        ]
    return figures


def measure_depth_limit(configuration):
    """Momentum that is not exact says at build that it has too many blocks."""
    blocks = start(configuration)
    limit = COUPLINGS[configuration.coupling]().depth_limit(configuration.streams)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        stack = make_stack(configuration, blocks)
    texts = [str(w.message) for w in caught if "loses digits" in str(w.message)]
    plain = make_stack(configuration, blocks, memory_mode="none")
    gradients = [differentiate(s, configuration) for s in (stack, plain)]
    within = configuration.blocks <= limit
    error, worst = gradient_errors(*gradients)
    return [
        Figure("holds up to (blocks)", limit),
        Figure("warned of at build", bool(texts), equals=not within),
        *(Figure("warning", text) for text in texts),
        Figure("gradient error", error, below=1e-2 if within else None),
        Figure("gradient error of the worst block", worst),
    ]


def measure_block_bits(configuration):
    """Stacks of one block each, one after another: each block's input comes back unrounded.

    In a deeper stack with an ordinary coupling blocks would be given other inputs in the
    backward pass, and their outputs would differ for that alone.
    """
    figures = []
    for name in "additive", "additive, exact":
        single = dataclasses.replace(configuration, coupling=name, blocks=1)
        blocks = start(dataclasses.replace(configuration, coupling=name))
        notes = [[] for _ in blocks]
        stacks = [
            make_stack(single, [block], watched(COUPLINGS[name](), own))
            for block, own in zip(blocks, notes, strict=True)
        ]
        for own in notes:
            own.clear()
        inputs, targets = map(tf.constant, data(configuration))

        def step(stacks=stacks, inputs=inputs, targets=targets):
            with tf.GradientTape() as tape:
                tape.watch(inputs)
                outputs = inputs
                for stack in stacks:
                    outputs = stack(outputs, training=True)
                loss = tf.reduce_mean((outputs - targets) ** 2)
            weights = [w.value for stack in stacks for w in stack.trainable_variables]
            return tape.gradient(loss, [inputs, weights])

        with watching():
            (tf.function(step) if configuration.graph else step)()
        seen = [by_block(own)[0] for own in notes]
        assert all(same_bits(a.carry[1], b.carry[1]) for a, b, _ in seen), "other inputs"
        differing = share_differing((a, b) for a, b, _ in seen)
        goal = 0.0 if name == "additive, exact" else None
        figures.append(Figure(f"{name}: elements of f that differ", differing, equals=goal))
        if differing:
            sizes = [(np.max(np.abs(a.fx - b.fx)), np.max(np.abs(a.fx))) for a, b, _ in seen]
            largest = float(max(difference / size for difference, size in sizes))
            figures.append(Figure(f"{name}: largest difference, of the largest f", largest))
    return figures


def bottleneck(channels, scale):
    last = keras.initializers.VarianceScaling(scale, "fan_avg", "uniform")
    layers = []
    for size, kernel in (
        (channels // 4, "glorot_uniform"),
        (channels // 4, "glorot_uniform"),
        (channels, last),
    ):
        layers += [L.BatchNormalization(momentum=0.5), L.ReLU()]
        layers.append(L.Conv2D(size, 3, padding="same", use_bias=False, kernel_initializer=kernel))
    return keras.Sequential(layers)


def make_irevnet(stages, configuration, channels=3):
    """The bijective i-RevNet, as two layers: the first downsampling, and the stack.

    An image has an odd number of channels, so it is rearranged before it is two streams.
    """
    layers, channels = [], 4 * channels
    scale = 1 / configuration.blocks if configuration.scaled else 1.0
    for blocks in stages:
        channels *= 4
        layers.append(SpaceToDepth(dtype=configuration.streams))
        layers += [bottleneck(channels // 2, scale) for _ in range(blocks)]
    return SpaceToDepth(), revkeras.ReversibleSequential(layers, dtype=configuration.streams)


def pixel_error(found, images):
    return float(np.max(np.abs(found - images)) / (np.max(images) - np.min(images)))


def measure_irevnet(configuration, size=64, batch=4):
    keras.utils.set_random_seed(0)
    stages = STAGES if configuration.blocks == sum(STAGES) else QUICK_STAGES
    first, stack = make_irevnet(stages, configuration)
    images = np.random.default_rng(0).random((batch, size, size, 3), "float32")
    figures = []
    for training in True, False:
        for _ in range(1 if training else 8):  # until the statistics are those of the batch
            features = stack(first(images), training=True)
        features = stack(first(images), training=training)
        when = "batch statistics" if training else "moving statistics"
        name = f"largest pixel error of the range, {when}"
        rebuilt = first.inverse(stack.inverse(features, training=training))
        figures.append(Figure(name, pixel_error(rebuilt, images), below=1e-3))
        if configuration.streams == "float64":  # how much of it is the network's own condition
            features = tf.cast(tf.cast(features, "float32"), "float64")
            rebuilt = first.inverse(stack.inverse(features, training=training))
            name = f"{name}, from features rounded to float32"
            figures.append(Figure(name, pixel_error(rebuilt, images)))
    shapes = " to ".join(str(tuple(x.shape[1:])) for x in (images, features))
    sizes = f"{shapes}, {stack.count_params() / 1e6:.0f} million weights"
    return [*figures, Figure("network", sizes)]


MEASURES = {
    "additive": measure_gradients,
    "mixed_bfloat16": measure_gradients,
    "momentum-exact": measure_gradients,
    "momentum": measure_depth_limit,
    "affine": measure_gradients,
    "irevnet": measure_irevnet,
    "additive-exact": measure_gradients,
    "block-bits": measure_block_bits,
}


def configurations(cases, quick):
    """The rows, in order."""

    def depth(blocks, small):
        return small if quick else blocks

    c = Configuration
    both = (True, False)
    rows = [
        *(c("additive", "additive", depth(1000, 50), scaled=s, reference="float64") for s in both),
        c("additive", "additive", depth(48, 8), graph=True, onednn=True),
        *(
            c(
                "mixed_bfloat16",
                coupling,
                depth(200, 20),
                policy="mixed_bfloat16",
                scaled=scaled,
                reference="float32",
            )
            for coupling in ("additive", "additive, exact")
            for scaled in both
        ),
        *(
            c("momentum-exact", f"momentum {beta}, exact", depth(512, 60))
            for beta in (0.9, 0.5, 0.99)
        ),
        c("momentum-exact", "momentum 0.9, exact", depth(48, 8), graph=True, onednn=True),
        *(
            c("momentum", "momentum 0.5" if quick else "momentum 0.9", blocks)
            for blocks in ((13, 24) if quick else (70, 512))
        ),
        *(
            c("affine", f"affine, {scale}", depth(200, 20), scaled=s, reference="float64")
            for s in both
            for scale in ("sigmoid", "exp")
        ),
        *(
            c("affine", f"affine, {scale}", depth(200, 20), streams="float64", reference="float64")
            for scale in ("sigmoid", "exp")
        ),
        *(
            c("affine", "affine, exp", depth(48, 8), streams=streams, graph=True, onednn=True)
            for streams in ("float32", "float64")
        ),
        *(
            c("irevnet", "additive", stages, kind="i-RevNet", scaled=scaled, streams=streams)
            for stages in (sum(QUICK_STAGES if quick else STAGES),)
            for scaled, streams in ((True, "float32"), (False, "float32"), (False, "float64"))
        ),
        c("additive-exact", "additive, exact", depth(300, 30)),
        c("additive-exact", "additive, exact", depth(100, 10), kind="convolutional"),
        *(
            c("additive-exact", "additive, exact", depth(48, 8), kind, graph=True, onednn=True)
            for kind in KINDS
        ),
        *(
            c("block-bits", "additive", depth(16, 4), kind, graph=graph, onednn=onednn)
            for kind in KINDS
            for graph, onednn in ((False, False), (False, True), (True, False), (True, True))
        ),
    ]
    return [row for row in rows if row.case in cases]


def measure(configuration):
    """Measures a configuration in this process."""
    figures = MEASURES[configuration.case](configuration)
    return Measurement(configuration, figures)


def measure_as_values(configuration):
    return dataclasses.asdict(measure(configuration))


def measure_in_fresh_process(configuration):
    environment = {
        "TF_CPP_MIN_LOG_LEVEL": "2",
        "TF_ENABLE_ONEDNN_OPTS": str(int(configuration.onednn)),
    }
    begin = time.perf_counter()
    m = measurement_from(fresh_process.measure(__file__, configuration, environment))
    return dataclasses.replace(m, seconds=time.perf_counter() - begin)


def run(arguments):
    rows = configurations(arguments.cases, arguments.quick)
    measurements = []
    for number, configuration in enumerate(rows, 1):
        m = measure_in_fresh_process(configuration)
        measurements.append(m)
        figure = m.figures[0]
        print(
            f"[{number}/{len(rows)}] {configuration.case}: {configuration.title}, "
            f"{configuration.blocks} blocks, {configuration.execution}: {figure.name} "
            f"{shown(figure.value)} ({m.seconds:.0f} s)",
            flush=True,
        )
        text = write(measurements, arguments.out)
    print("\n" + text)


def argument_parser():
    parser = argparse.ArgumentParser(
        description="How exact rebuilt values and gradients are, by coupling, depth and dtype."
    )
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder for the results")
    parser.add_argument("--quick", action="store_true", help="small depths")
    parser.add_argument("--cases", nargs="+", choices=list(MEASURES), default=list(MEASURES))
    return parser


if __name__ == "__main__":
    fresh_process.main(argument_parser(), Configuration, measure_as_values, run)
