"""Bad input meets a clear error at the earliest moment."""

import collections
import re

import keras
import numpy as np
import pytest
import tensorflow as tf

import revkeras
from revkeras import ReversibleSequential
from tests.differentiation import gradients

L = keras.layers


def ones(*shape):
    return np.ones(shape, "float32")


def dense(n=2):
    return [L.Dense(n)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"layers": []}, "`layers`: expected at least one Keras layer, received an empty list"),
        ({"layers": L.Dense(2)}, "`layers`: expected a list of Keras layers.*type Dense"),
        ({"layers": [L.Dense(2), abs]}, r"layers\[1\]=<built-in function abs>.*Lambda"),
        ({"layers": [L.Dense]}, r"layers\[0\].*expected Keras layers|expected Keras layers"),
        ({"memory_mode": "reversable"}, "expected one of .*'reversible'.*memory_mode='reversable'"),
        ({"split_axis": 0}, "split_axis=0"),
        ({"split_axis": 1.0}, "split_axis=1.0 .of type float"),
        ({"split_axis": True}, "split_axis=True"),
        ({"coupling_forward": abs}, "coupling_inverse=None.*Pass both"),
        ({"coupling_inverse": abs}, "coupling_forward=None.*Pass both"),
        (
            {"coupling_forward": [abs, abs], "coupling_inverse": [abs]},
            "2 forward and 1 inverse",
        ),
        ({"coupling_forward": [], "coupling_inverse": []}, "received an empty list"),
        ({"coupling_forward": "add", "coupling_inverse": "sub"}, "received 'add' .of type str"),
        ({"dtype": "int32"}, "expected a floating-point dtype.*dtype='int32'"),
        ({"colour": 1}, "colour"),
    ],
)
def test_arguments(arguments, message):
    with pytest.raises((ValueError, TypeError), match=message):
        ReversibleSequential(**{"layers": dense(), **arguments})


@pytest.mark.parametrize(
    ("axis", "shape", "message"),
    [
        (-1, (2, 5), "known, even size there, received 5 in an input of shape .2, 5."),
        (1, (2, None, 4), "known, even size there, received None.*Fix the size.*no inverse"),
        (-1, (2,), "of shape .batch, ..., channels., .* received the shape .2,."),
        (3, (2, 4, 4), "has rank 3, so an axis from 1 to 2 .*received split_axis=3"),
        (-3, (2, 4, 4), "received split_axis=-3"),
    ],
)
def test_split_axis_and_input_shape(axis, shape, message):
    with pytest.raises(ValueError, match=message):
        ReversibleSequential(dense(), split_axis=axis).build(shape)


@pytest.mark.parametrize("mode", ["reversible", "none"])
@pytest.mark.parametrize(("axis", "shape"), [(-1, (2, 5)), (-1, (2, 4, 3)), (1, (2, 3, 4))])
def test_the_advice_on_odd_sizes_leads_to_a_stack_with_an_inverse(axis, shape, mode):
    inputs = keras.random.normal(shape, seed=0)
    with pytest.raises(ValueError, match="known, even size") as caught:
        ReversibleSequential(dense(), split_axis=axis)(inputs)
    advice = [code for code in re.findall("`(.*?)`", str(caught.value)) if "keras." in code]
    assert len(advice) == 1 + (axis == -1)
    for code in advice:
        found = eval(code, {"keras": keras, "inputs": inputs})  # noqa: S307 - of our own message
        whole = found(inputs) if callable(found) else found
        blocks = [L.Dense(whole.shape[-1] // (2 if axis == -1 else 1)) for _ in range(3)]
        stack = ReversibleSequential(blocks, split_axis=axis, memory_mode=mode)
        back = stack.inverse(stack(whole))
        np.testing.assert_allclose(back, whole, atol=1e-5)
        if not callable(found):  # nothing but a zero was appended
            cut = keras.ops.take(back, range(shape[axis]), axis=axis)
            np.testing.assert_allclose(cut, inputs, atol=1e-5)


def test_the_padding_for_odd_sizes_stands_in_a_model_that_trains():
    inputs = keras.Input((5,))
    stack = ReversibleSequential([L.Dense(3), L.Dense(3)])
    outputs = stack(keras.ops.pad(inputs, [[0, 0], [0, 1]]))
    model = keras.Model(inputs, [outputs, stack.as_inverse()(outputs)[:, :5]])
    model.compile("sgd", "mse")
    x = np.random.default_rng(0).standard_normal((4, 5)).astype("float32")
    model.fit(x, [ones(4, 6), x], verbose=0)
    np.testing.assert_allclose(model(x)[1], x, atol=1e-5)


def test_block_that_changes_the_shape():
    layer = ReversibleSequential([L.Dense(2), L.Dense(3, name="wide")])
    message = r"Block 1 \('wide', of type Dense\).*expected \(None, 2\), received \(None, 3\)"
    with pytest.raises(ValueError, match=message):
        keras.Sequential([keras.Input((4,)), layer])
    with pytest.raises(ValueError, match="Block 0"):
        ReversibleSequential([L.Dense(1)])(ones(2, 4))  # would broadcast
    with pytest.raises(ValueError, match="Block 0"):
        ReversibleSequential([L.Dense(3)], lambda x, f: x + f, lambda y, f: y - f)(ones(2, 4))


@pytest.mark.parametrize(
    ("forward", "message"),
    [
        (lambda x, fx: keras.ops.sum(x + fx, -1), r"expected \(2, 2\) float32, received \(2,\)"),
        (lambda x, fx: keras.ops.cast(x + fx, "float16"), r"received \(2, 2\) float16"),
    ],
)
def test_coupling_that_changes_shape_or_dtype(forward, message):
    with pytest.raises(ValueError, match=f"`coupling_forward`.*{message}"):
        ReversibleSequential(dense(), forward, lambda y, fx: y - fx)(ones(2, 4))
    with pytest.raises(ValueError, match=f"`coupling_inverse`.*{message}"):
        ReversibleSequential(dense(), lambda x, fx: x + fx, forward)(ones(2, 4))


@pytest.mark.parametrize("beta", [0.5, 0.9, 0.99, 0.999])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_wrong_momentum_inverse_is_caught_and_the_right_one_is_not(beta, dtype):
    def forward(x, fx):
        return x * beta + fx * (1 - beta)

    def wrong(y, fx):
        return y / beta - fx * (1 - beta)

    def right(y, fx):
        return (y - fx * (1 - beta)) / beta

    message = r"inverse\(coupling_forward\(x, f\), f\) differs from `x` by \d"
    with pytest.raises(ValueError, match=message):
        ReversibleSequential(dense(), forward, wrong, dtype=dtype).build((None, 4))
    ReversibleSequential(dense(), forward, wrong, check_inverse=False).build((None, 4))
    ReversibleSequential(dense(), forward, right, dtype=dtype).build((None, 4))
    with pytest.raises(ValueError, match="differs from `x`"):
        ReversibleSequential(dense() * 2, [forward, forward], [right, wrong]).build((None, 4))


def test_every_pair_of_a_cycle_is_checked_when_it_is_used():
    good = (lambda x, fx: x + fx), (lambda y, fx: y - fx)
    with pytest.raises(ValueError, match="differs from `x`"):
        ReversibleSequential(dense() * 3, [good[0]] * 2, [good[1], good[0]]).build((None, 4))


def test_pair_is_checked_when_blocks_need_further_arguments():
    class Needs(L.Layer):
        def call(self, x, context):
            return x * context

    with pytest.raises(ValueError, match="differs from `x`"):
        ReversibleSequential(
            [Needs()], lambda x, f: 0.9 * x + 0.1 * f, lambda y, f: y / 0.9 - 0.1 * f
        )(ones(2, 4), context=ones(2, 2))


def test_pair_is_tried_on_small_values():
    seen = []

    def forward(x, fx):
        seen.append(np.prod(x.shape))
        return x + fx

    ReversibleSequential([L.ReLU()], forward, lambda y, fx: y - fx).build((16, 512, 512, 8))
    assert max(seen) <= 2 * 2 * 2 * 4


def test_pair_that_is_written_for_one_size_is_tried_on_it():
    scale = np.linspace(1, 2, 6, dtype="float32").reshape(3, 1, 2)
    ReversibleSequential(
        [L.ReLU()], lambda x, fx: x * scale + fx, lambda y, fx: (y - fx) / scale
    ).build((None, 3, 5, 4))


def test_coupling_with_float32_constants_is_checked_too():
    half = keras.ops.convert_to_tensor(0.5, "float32")
    ReversibleSequential(dense(), lambda x, f: x + half * f, lambda y, f: y - half * f).build(
        (1, 4)
    )
    with pytest.raises(ValueError, match="differs from `x`"):
        ReversibleSequential(dense(), lambda x, f: x + half * f, lambda y, f: y - f).build((1, 4))


@pytest.mark.parametrize("dtype", ["int32", "complex64"])
def test_input_dtype(dtype):
    with pytest.raises(ValueError, match=f"expected floating-point tensors, received .'{dtype}'"):
        ReversibleSequential(dense())(keras.ops.ones((2, 4), dtype))
    with pytest.raises(ValueError, match=dtype):
        ReversibleSequential(dense())(keras.Input((4,), dtype=dtype))


def test_rank_and_size_after_build():
    layer = ReversibleSequential(dense())
    layer.build((None, 4))
    with pytest.raises(ValueError, match="expected ndim=2, found ndim=3"):
        layer(ones(2, 3, 4))
    with pytest.raises(ValueError, match="expected axis -1 of input shape to have value 4"):
        layer(ones(2, 6))


def test_streams():
    with pytest.raises(ValueError, match=r"two tensors of equal shape, received shapes.*3"):
        ReversibleSequential(dense())([ones(2, 2), ones(2, 3)])
    with pytest.raises(ValueError, match="expected two tensors of equal shape"):
        ReversibleSequential(dense())([ones(2, 2)] * 3)


@pytest.mark.parametrize(
    "inputs",
    [
        {"a": ones(2, 4)},
        [ones(2, 2), None],
        [[ones(2, 2)] * 2] * 2,
        [ones(2, 2), ones(3, 2)],
    ],
    ids=["dict", "none", "nested", "batches"],
)
def test_what_holds_no_two_streams(inputs):
    with pytest.raises(ValueError, match=r"expected.*(two|a list)"):
        ReversibleSequential(dense())(inputs)


@pytest.mark.tensorflow("ragged tensors")
def test_a_ragged_tensor_is_refused():
    ragged = tf.RaggedTensor.from_row_lengths(ones(3, 4), [2, 1])
    with pytest.raises(ValueError, match=r"expected.*(two|a list)"):
        ReversibleSequential(dense())(ragged)


def test_streams_of_other_sizes_after_build():
    layer = ReversibleSequential(dense())
    layer([ones(3, 2), ones(3, 2)])
    with pytest.raises(ValueError, match="expected axis -1 of input shape to have value 2"):
        layer([ones(3, 4), ones(3, 4)])


def test_namedtuple_of_streams_gives_a_tuple():
    pair = collections.namedtuple("pair", "a b")
    assert isinstance(ReversibleSequential(dense())(pair(ones(3, 2), ones(3, 2))), tuple)


def test_numpy_integer_as_axis():
    assert ReversibleSequential(dense(), split_axis=np.int64(-1)).split_axis == -1


@pytest.mark.parametrize("mode", ["reversible", "checkpoint", "none"])
def test_argument_that_no_block_takes(mode):
    class Biased(L.Layer):
        def call(self, x, bias=None):
            return x if bias is None else x + bias

    layer = ReversibleSequential([Biased()], memory_mode=mode)
    with pytest.raises(TypeError, match=r"\['baas'\].*take: \['bias'\]"):
        layer(ones(2, 4), baas=ones(2))


def differentiate(layer, x):
    gradients(lambda x: layer(x, training=True), [x])


@pytest.mark.parametrize("wrap", [lambda b: ReversibleSequential([b]), revkeras.Checkpoint])
class TestWhatCannotBeReplayed:
    def test_block_that_creates_variables_in_call(self, wrap):
        class Lazy(L.Layer):
            def build(self, shape):
                self.first = self.add_weight(shape=(shape[-1],))

            def call(self, x):
                if not keras.backend.is_keras_tensor(x) and len(self.weights) == 1:
                    self._tracker.unlock()
                    self.late = keras.Variable(np.ones(x.shape[-1], "float32"))
                return x * self.first

        with pytest.raises(ValueError, match="(?s)'lazy'.*variable.*implement a .def build"):
            wrap(Lazy())(ones(2, 4))

    @pytest.mark.tensorflow("tf.Variable")
    def test_block_with_variables_that_keras_does_not_track(self, wrap):
        hidden = tf.Variable(2.0, name="hidden")
        block = L.Lambda(lambda x: x * hidden)
        with pytest.raises(ValueError, match="does not track.*hidden.*add_weight"):
            differentiate(wrap(block), ones(2, 4))

    def test_block_that_assigns_trainable_weights(self, wrap):
        with pytest.raises(ValueError, match="assigns its trainable weights.*kernel"):
            differentiate(wrap(L.SpectralNormalization(L.Dense(4))), ones(2, 8))

    @pytest.mark.tensorflow("its random numbers")
    def test_block_with_random_numbers_of_no_generator(self, wrap):
        class Noisy(L.Layer):
            def call(self, x):
                return x + keras.random.normal(keras.ops.shape(x))

        with pytest.raises(ValueError, match="'noisy'.*SeedGenerator"):
            differentiate(wrap(Noisy()), ones(2, 4))


def test_checkpoint_of_no_layer():
    with pytest.raises(TypeError, match="`layer`: expected a Keras layer, received layer=3"):
        revkeras.Checkpoint(3)


def test_block_that_misses_an_argument():
    layer = ReversibleSequential([L.MultiHeadAttention(2, 4)])
    with pytest.raises(TypeError, match="Block 0 .*MultiHeadAttention.*takes .'value'.*keyword"):
        layer(np.ones((2, 6, 8), "float32"))


class Broken(L.Layer):
    """Has an error in `build()` or in `call()`, whatever it is given."""

    def __init__(self, place):
        super().__init__()
        self.place = place

    def build(self, shape):
        if self.place == "build":
            raise KeyError("a misspelled name")

    def call(self, x, context=None):
        if self.place == "call":
            raise KeyError("a misspelled name")
        return x if context is None else x * context


class Contextual(L.Layer):
    """Needs an argument that has a default."""

    def build(self, shape):
        self.kernel = self.add_weight((shape[-1],))

    def call(self, x, context=None):
        if context is None:
            raise LookupError("no context came")
        return x * self.kernel * context


class ContextualShape(Contextual):
    """Needs its shape too."""

    def build(self, x_shape, context_shape):
        self.kernel = self.add_weight((context_shape[-1],))


@pytest.mark.parametrize("place", ["build", "call"])
@pytest.mark.parametrize("arguments", [{}, {"context": 2.0}])
@pytest.mark.parametrize("mode", ["reversible", "checkpoint", "none"])
def test_the_error_of_a_block_with_an_optional_argument_is_seen(place, arguments, mode):
    layer = ReversibleSequential([L.Dense(2), Broken(place)], memory_mode=mode)
    with pytest.raises(KeyError, match="a misspelled name"):
        layer(ones(2, 4), **arguments)
    with pytest.raises(KeyError, match="a misspelled name"):
        layer(keras.Input((4,)), **arguments)


def test_the_error_of_a_block_that_misses_nothing_is_seen_when_the_stack_is_built():
    class Plain(Broken):
        def call(self, x):
            return super().call(x)

    for block in Broken("build"), Plain("build"), Plain("call"):
        with pytest.raises(KeyError, match="a misspelled name") as caught:
            ReversibleSequential([L.Dense(2), block], name="stack").build((None, 4))
        *_, note = caught.value.__notes__
        assert f"Block 1 ('{block.name}', of type {type(block).__name__}) of Rev" in note


@pytest.mark.parametrize("mode", ["reversible", "checkpoint", "none"])
@pytest.mark.parametrize("block", [Contextual, ContextualShape])
def test_a_block_that_asks_for_its_optional_argument_gets_it_from_the_call(block, mode):
    layer = ReversibleSequential([L.Dense(2), block()], memory_mode=mode)
    layer.build((None, 4))
    with pytest.raises((LookupError, TypeError), match="no context came|context_shape"):
        layer(ones(2, 4))
    assert layer(ones(2, 4), context=ones(2, 2)).shape == (2, 4)
    assert len(layer.trainable_weights) == 3
