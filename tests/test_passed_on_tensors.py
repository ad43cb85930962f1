"""Blocks and couplings that pass on, repeat or drop what they are given.

One tensor may then appear in several places: as a block's input and its output, as two outputs,
as a stream and a call argument. Gradients are those of plain Keras all the same, and `None` where
plain Keras has `None`.
"""

import keras
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import revkeras
from tests.differentiation import GRAPHS, gradients
from tests.modes import in_mode

L = keras.layers
ops = keras.ops
CHANNELS = 3
MODES = ["reversible", "checkpoint"]


@pytest.fixture(scope="module", autouse=True)
def _double_precision():
    """Some stacks that are drawn amplify rounding by more than float32 has digits."""
    keras.config.set_floatx("float64")
    yield
    keras.config.set_floatx("float32")


@keras.saving.register_keras_serializable("tests")
class Chooser(L.Layer):
    """Returns chosen ones of its input, a call argument and what it computes, in order."""

    def __init__(self, choices, **kwargs):
        super().__init__(**kwargs)
        self.choices = choices
        self.dense = L.Dense(CHANNELS, activation="tanh")

    def build(self, shape):
        self.dense.build(shape)

    def call(self, x, context=None):
        known = {
            "input": x,
            "context": x if context is None else context,
            "computed": self.dense(x),
            "sum": x + (0 if context is None else context),
        }
        chosen = [known[choice] for choice in self.choices]
        return chosen[0] if len(chosen) == 1 else tuple(chosen)

    def get_config(self):
        return {**super().get_config(), "choices": self.choices}


@keras.saving.register_keras_serializable("tests")
class Arranges(revkeras.couplings.Coupling):
    """Passes streams on, in either order, with or without what the block made."""

    def __init__(self, swaps, adds):
        self.swaps, self.adds = swaps, adds

    def couple(self, streams, fx):
        x0, x1 = streams
        x0 = x0 + fx if self.adds else x0
        return [x1, x0] if self.swaps else [x0, x1]

    def source(self, outputs):
        return outputs[0] if self.swaps else outputs[1]

    def uncouple(self, outputs, fx):
        x1, x0 = outputs if self.swaps else reversed(outputs)
        return [x0 - fx if self.adds else x0, x1]

    def get_config(self):
        return {"swaps": self.swaps, "adds": self.adds}


@keras.saving.register_keras_serializable("tests")
class Same(L.Layer):
    """An invertible layer that returns its input."""

    def call(self, x):
        return x

    def inverse(self, y):
        return y


@keras.saving.register_keras_serializable("tests")
def passed_on(x):
    return x


def _functional():
    x = keras.Input((CHANNELS,))
    return keras.Model(x, L.Activation("linear")(L.Dropout(0.0)(x)))


@keras.saving.register_keras_serializable("tests")
def bounded(s):
    """A scale for whatever stream stands for `s`: the named ones leave even float64's range."""
    return keras.ops.exp(keras.ops.tanh(s))


PASSING = {
    "identity": L.Identity,
    "dropout": lambda: L.Dropout(0.0),
    "noise": lambda: L.GaussianNoise(0.3),  # passes its input on outside of training
    "linear": lambda: L.Activation("linear"),
    "lambda": lambda: L.Lambda(passed_on),
    "regularization": lambda: L.ActivityRegularization(l2=0.1),
    "sequential": lambda: keras.Sequential([L.Identity(), L.Dropout(0.0)]),
    "functional": _functional,
    "same": Same,
}
CHOICES = st.lists(st.sampled_from(["input", "context", "computed", "sum"]), min_size=1, max_size=4)
COUPLINGS = {
    "additive": lambda: "additive",
    "affine": lambda: revkeras.couplings.Affine(bounded),
    "leapfrog": lambda: "leapfrog",
    "momentum": lambda: revkeras.couplings.Momentum(0.9),
    **{
        f"arranges {swaps} {adds}": lambda swaps=swaps, adds=adds: Arranges(swaps, adds)
        for swaps in (True, False)
        for adds in (True, False)
    },
}


@st.composite
def descriptions(draw):
    """Of a stack: its coupling, its split axis, and its blocks."""
    coupling = draw(st.sampled_from(sorted(COUPLINGS)))
    kinds = draw(st.lists(st.sampled_from(sorted(PASSING)) | CHOICES, min_size=1, max_size=4))
    if coupling == "affine":  # takes two tensors of each block
        kinds = [[*kind, *kind] if isinstance(kind, list) else ["input"] * 2 for kind in kinds]
    return coupling, draw(st.sampled_from([-1, None])), kinds, draw(st.booleans())


def made(description):
    coupling, split_axis, kinds, repeats = description
    layers = [Chooser(kind) if isinstance(kind, list) else PASSING[kind]() for kind in kinds]
    layers += layers[: int(repeats)]
    return revkeras.ReversibleSequential(
        layers, coupling=COUPLINGS[coupling](), split_axis=split_axis
    )


def gradients_of(layer, inputs, context, used, graph, inverse, training=False):
    """Gradients of the used ones of all outputs, at inputs, context and weights."""
    n, takes_context = len(keras.tree.flatten(inputs)), context is not None

    def compute(*sources):
        arguments = {} if inverse else {"training": training}
        if takes_context and _takes_context(layer):
            arguments["context"] = sources[n]
        feed = list(sources[:n]) if n > 1 else sources[0]
        outputs = layer.inverse(feed, **arguments) if inverse else layer(feed, **arguments)
        outputs = keras.tree.flatten(outputs)
        chosen = [y for i, y in enumerate(outputs) if used[i % len(used)]] or outputs
        return [y * (i + 1.0) * y for i, y in enumerate(chosen)]

    sources = [*keras.tree.flatten(inputs), *([context] if takes_context else [])]
    return gradients(compute, sources, layer.trainable_weights, graph=graph)


def assert_gradients_agree(found, expected):
    for i, (a, b) in enumerate(zip(found, expected, strict=True)):
        assert (a is None) == (b is None), f"gradient {i}: {a} against {b}"
        if b is not None:
            scale = max(float(np.max(np.abs(b))), 1e-3)
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-6 * scale)


@settings(deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    description=descriptions(),
    mode=st.sampled_from(MODES),
    feed=st.sampled_from(["one", "two", "twice"]),
    context=st.sampled_from(["none", "own", "input"]),
    used=st.lists(st.booleans(), min_size=1, max_size=5),
    graph=st.sampled_from([GRAPHS[0], *GRAPHS]),
    inverse=st.booleans(),
    training=st.booleans(),
    seed=st.integers(0, 100),
)
def test_gradients_are_plain_ones(
    description, mode, feed, context, used, graph, inverse, training, seed
):
    keras.utils.set_random_seed(seed)
    stack = made(description)
    draw = np.random.default_rng(seed).standard_normal
    channels = CHANNELS if feed != "one" or stack.split_axis is None else 2 * CHANNELS
    tensors = [ops.convert_to_tensor(draw((2, channels))) for _ in range(2)]
    inputs = {"one": tensors[0], "two": tensors, "twice": [tensors[0]] * 2}[feed]
    own = ops.convert_to_tensor(draw((2, CHANNELS)))
    is_stream = tensors[0].shape[-1] == CHANNELS
    context = {"none": None, "own": own, "input": tensors[0] if is_stream else own}[context]
    stack(inputs, **({"context": context} if context is not None and _takes_context(stack) else {}))
    inverse = inverse and (stack.split_axis is not None or feed != "one")
    arguments = inputs, context, used, graph, inverse, training
    expected = gradients_of(in_mode(stack, "none"), *arguments)
    assert_gradients_agree(gradients_of(in_mode(stack, mode), *arguments), expected)


def _takes_context(stack):
    return any("context" in block._call_signature.parameters for block in stack.layers)


@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_identity_counts_once(mode, graph):
    stack = revkeras.ReversibleSequential([L.Identity()], memory_mode=mode)
    found = gradients_of(stack, ops.ones((1, 2), "float64"), None, [True], graph, False)
    np.testing.assert_allclose(found, [[[4.0, 6.0]]])
