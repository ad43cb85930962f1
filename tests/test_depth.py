"""A stack warns where its couplings lose too many digits for its depth, and only there."""

import re
import warnings

import keras
import numpy as np
import pytest

from revkeras import ReversibleSequential
from revkeras.couplings import Affine, Leapfrog, Pair
from tests.differentiation import COMPILED, gradients, in_graph

L = keras.layers


@pytest.fixture
def quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        yield


def shrinking(a, b):
    return Pair(lambda x, fx: a * x + b * fx, lambda y, fx: (y - b * fx) / a)


def glow(s):
    return keras.ops.sigmoid(s + 2)


class Normalized(L.Layer):
    """A block whose updates have the size `scale`, however small its stream is."""

    def __init__(self, scale, n_updates, seed):
        super().__init__()
        self.scale, self.n_updates, self.seed = scale, n_updates, seed

    def build(self, shape):
        draw = keras.initializers.Orthogonal(self.scale, self.seed)
        self.kernel = self.add_weight((shape[-1], self.n_updates * shape[-1]), draw)

    def call(self, x):
        size = keras.ops.mean(keras.ops.square(x), -1, keepdims=True)
        return keras.ops.matmul(x * keras.ops.rsqrt(size), self.kernel)


def blocks(n, scale=1.0, n_updates=1):
    """Ten blocks, again and again."""
    few = [Normalized(scale, n_updates, seed) for seed in range(10)]
    return [few[i % 10] for i in range(n)]


def stack_of(layers, coupling, **options):
    options.setdefault("split_axis", None if isinstance(coupling, Leapfrog) else -1)
    layer = ReversibleSequential(layers, coupling=coupling, **options)
    layer.build((None, 4 if options["split_axis"] is None else 8))
    return layer


def gradient_error(layers, coupling, seed=0):
    """The relative error of all gradients of mode "reversible" against mode "none"."""
    found = []
    for mode in "none", "reversible":
        layer = stack_of(layers, coupling, memory_mode=mode, check_inverse=False)
        x = np.random.default_rng(seed).standard_normal((8, 8 if layer.split_axis else 4))
        weights = layer.trainable_variables
        own = gradients(
            lambda x, layer=layer: (layer(x) - 1) ** 2,
            [x.astype("float32")],
            weights,
            graph=COMPILED,
        )
        found.append(np.concatenate([np.ravel(g) for g in own]))
    return np.linalg.norm(found[1] - found[0]) / np.linalg.norm(found[0])


@pytest.mark.parametrize(
    ("coupling", "arguments", "limits"),
    [
        (shrinking(0.9, 0.1), (200,), (80, 150)),
        (shrinking(0.5, 0.5), (40,), (10, 25)),
        (Affine(glow), (160, 0.1, 2), (60, 120)),
        (Leapfrog(), (300,), (200, 300)),
    ],
    ids=["0.9 + 0.1", "0.5 + 0.5", "affine", "leapfrog"],
)
def test_it_warns_where_gradients_are_wrong(coupling, arguments, limits):
    layers = blocks(*arguments)
    message = rf"loses digits.* in float32 .* up to about (\d+) blocks.* has {len(layers)}"
    with pytest.warns(UserWarning, match=message) as caught:
        stack_of(layers, coupling)
    assert limits[0] <= int(re.search(message, str(caught[0].message))[1]) <= limits[1]
    # How wrong depends on the input: affine scales grow and shrink.
    assert max(gradient_error(layers, coupling, seed) for seed in range(2)) > 1e-2


@pytest.mark.parametrize(
    ("coupling", "arguments"),
    [
        ("additive", (200,)),
        (shrinking(0.9, 0.1), (100,)),
        (shrinking(0.5, 0.5), (10,)),
        (shrinking(1.1, 1.0), (200,)),
        (Affine(), (120, 0.1, 2)),
        (Affine("exp"), (120, 0.1, 2)),
        (Affine(glow), (60, 0.1, 2)),
        (Leapfrog(), (100, 0.1)),
        (Leapfrog(0.1), (120,)),
    ],
    ids=[
        "additive",
        "0.9 + 0.1",
        "0.5 + 0.5",
        "1.1 + 1",
        "sigmoid",
        "exp",
        "affine",
        "leapfrog",
        "small step",
    ],
)
def test_it_is_silent_where_gradients_are_right(coupling, arguments, quiet):
    layers = blocks(*arguments)
    stack_of(layers, coupling)
    assert gradient_error(layers, coupling) < 1e-2


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_twelve_hundred_additive_blocks_are_silent(dtype, quiet):
    stack_of([L.ReLU()] * 1200, "additive", dtype=dtype)


def test_other_modes_warn_in_the_inverse(quiet):
    layer = stack_of([L.ReLU()] * 40, shrinking(0.5, 0.5), memory_mode="checkpoint")
    y = layer(np.ones((1, 8), "float32"))
    with pytest.warns(UserWarning, match="`coupling_forward` .* loses digits.* has 40"):
        layer.inverse(y)


def test_it_warns_while_a_graph_is_traced():
    @in_graph
    def first_call(x):
        layer = ReversibleSequential([L.ReLU()] * 40, coupling=shrinking(0.5, 0.5))
        return layer(x)

    with pytest.warns(UserWarning, match="loses digits.* has 40"):
        first_call(keras.ops.ones((2, 8)))


def test_couplings_that_alternate_are_tried_together(quiet):
    """Each stream is shrunk and stretched by turns, so neither loses its digits."""
    stretching, neutral = shrinking(1 / 0.7, 0.1), shrinking(1.0, 0.1)
    cycle = [shrinking(0.7, 0.1), neutral, stretching, neutral]
    layers = blocks(120)
    stack_of(layers, cycle)
    assert gradient_error(layers, cycle) < 1e-2
    with pytest.warns(UserWarning, match="loses digits"):
        stack_of(layers, [cycle[0], neutral])


def test_a_coupling_with_a_factor_for_each_channel_is_tried():
    factors = np.full(4, 0.5, "float32")
    with pytest.warns(UserWarning, match="loses digits.* has 60"):
        stack_of([L.ReLU()] * 60, shrinking(factors, 1.0))


def test_a_coupling_that_does_not_run_on_small_values_builds(quiet):
    factors = np.full((3, 4), 0.5, "float32")
    layer = ReversibleSequential([L.ReLU()] * 60, coupling=shrinking(factors, 1.0))
    layer.build((None, 3, 8))
    assert layer(np.ones((1, 3, 8), "float32")).shape == (1, 3, 8)


def test_without_a_check_nothing_is_tried(quiet):
    stack_of([L.ReLU()] * 40, shrinking(0.5, 0.5), check_inverse=False)
