"""Exact couplings undo themselves bit by bit, and learn as the real recurrence does."""

import fractions
import math

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from revkeras.couplings import Additive, Momentum, fixed_point
from revkeras.couplings.fixed_point import RANGE, UNIT, blocks_per_buffer, divide, rescale
from tests.differentiation import cases, gradients, in_graph, jacobian

ops = keras.ops
BETAS = st.floats(0.05, 0.999)
VALUES = st.one_of(
    st.floats(-10, 10, width=32),
    st.sampled_from([0.0, -0.0, 1e-12, -1e-12, 1e30, -1e30, RANGE, -RANGE]),
)
STREAMS = st.lists(VALUES, min_size=6, max_size=6)
quick = settings(max_examples=cases(7), deadline=None)


def tanh(source):
    return np.tanh(ops.convert_to_numpy(source).astype("float32")) * np.float32(1.7)


def wild(source):
    """Beyond every range."""
    x = ops.convert_to_numpy(source).astype("float32")
    return np.where(np.sin(x) > 0.5, -1e30, np.exp(60 * np.sin(3 * x)))


def spring(source):
    return source * -0.37


def start(values, coupling, depth):
    streams = np.reshape(values, (2, -1)).astype("float32")
    return coupling.at(0, depth).to_carry(list(map(ops.convert_to_tensor, streams)))


def run(coupling, carry, depth, f=tanh):
    for index in range(depth):
        carry = coupling.at(index, depth).couple(carry, f(carry[1]))
    return carry


def run_back(coupling, carry, depth, f=tanh):
    for index in reversed(range(depth)):
        step = coupling.at(index, depth)
        carry = step.uncouple(carry, f(step.source(carry)))
    return carry


def bits(carry):
    return [ops.convert_to_numpy(t).tobytes() for t in carry]


def assert_undone(coupling, values, depth, f=tanh):
    carry = start(values, coupling, depth)
    after = run(coupling, carry, depth, f)
    assert bits(run_back(coupling, after, depth, f)) == bits(carry)
    return after


@quick
@given(BETAS, st.integers(1, 200), STREAMS)
def test_momentum_undoes_itself(beta, depth, values):
    coupling = Momentum(beta, exact=True)
    after = assert_undone(coupling, values, depth)
    per_buffer = blocks_per_buffer(*coupling._fraction)
    assert len(after) == 3 + math.ceil(depth / per_buffer)
    for buffer in after[3:]:
        assert 0 <= np.min(buffer) <= np.max(buffer) < fixed_point.CAPACITY


@quick
@given(st.integers(1, 100), STREAMS)
def test_additive_undoes_itself(depth, values):
    assert len(assert_undone(Additive(exact=True), values, depth)) == 3


@pytest.mark.parametrize("coupling", [Additive(exact=True), Momentum(0.7, exact=True)])
def test_saturation_is_undone(coupling):
    values = np.linspace(-3, 3, 12)
    carry = start(values, coupling, 100)
    after = run(coupling, carry, 100, wild)
    assert carry[2] == 0 < after[2]
    assert np.all(np.abs(after[:2]) <= 2 * RANGE)
    assert bits(run_back(coupling, after, 100, wild)) == bits(carry)


@pytest.mark.parametrize("coupling", [Additive(exact=True), Momentum(0.5, exact=True)])
def test_saturated_elements_are_counted(coupling):
    step = coupling.at(0, 3)
    limit = RANGE / 4
    carry = step.to_carry([ops.zeros((1, 5)), ops.zeros((1, 5))])
    fx = ops.convert_to_tensor([[limit, -2 * limit, 2 * limit, limit / 2, 1e30]])
    after = step.couple(carry, fx)
    assert after[2] == 3
    np.testing.assert_array_equal(
        after[1] if coupling.swaps else 2 * after[0], [[limit, -limit, limit, limit / 2, limit]]
    )
    assert bits(step.uncouple(after, fx)) == bits(carry)


@pytest.mark.parametrize("coupling", [Additive(exact=True), Momentum(0.5, exact=True)])
def test_what_is_not_finite_stays_seen(coupling):
    """On the way back too; other elements are not touched."""
    step = coupling.at(0, 3)
    carry = step.to_carry([ops.zeros((1, 4)), ops.zeros((1, 4))])
    fx = ops.convert_to_tensor([[1.0, np.nan, np.inf, -np.inf]])
    after = step.couple(carry, fx)
    assert after[2] == 3
    for tensor in after[1], step.uncouple(after, fx)[0]:
        np.testing.assert_array_equal(np.isfinite(tensor), [[True, False, False, False]])


@pytest.mark.parametrize(("coupling", "beyond"), [(Additive(True), 2), (Momentum(0.9, True), 3)])
def test_input_beyond_the_range(coupling, beyond):
    """A velocity has the range of an update."""
    first = ops.convert_to_tensor([[RANGE / 2, 1.0, 1e30]])
    second = ops.convert_to_tensor([[RANGE, -1e9, 1.0]])
    v, x, saturated = coupling.at(0, 9).to_carry([first, second])
    assert saturated == beyond
    largest = RANGE / (2 if coupling.swaps else 10)
    end = RANGE * (2 if coupling.swaps else 1)
    end_of_first = RANGE * 2 if coupling.swaps else largest
    np.testing.assert_allclose(v, [[largest, 1.0, end_of_first]], rtol=1e-14)
    np.testing.assert_array_equal(x, [[RANGE, -end, 1.0]])


@pytest.mark.parametrize("coupling", [Additive(True), Momentum(0.9, True)])
def test_lower_undoes_lift(coupling):
    x = [ops.convert_to_tensor(np.random.default_rng(i).normal(size=(3, 4))) for i in range(2)]
    carry = coupling.at(0, 9).to_carry(x)
    streams, saturated = coupling.at(0, 9).from_carry(carry, "float32")
    np.testing.assert_allclose(streams, x, rtol=1e-6, atol=UNIT)
    assert saturated == 0
    assert saturated.dtype == "float32"
    assert [t.dtype for t in streams] == ["float32"] * 2
    assert [t.dtype for t in carry] == ["float64", "float64", "float32"]


@quick
@given(st.integers(1, 1000), st.data())
def test_divide_is_floor_division(d, data):
    """In a graph, where a division becomes a product with the reciprocal, as well."""
    largest = fixed_point.CAPACITY - 1
    multiples = st.integers(-(largest // d), largest // d).map(lambda q: q * d)
    numbers = st.one_of(multiples, multiples.map(lambda x: max(x - 1, -largest)))
    xs = data.draw(st.lists(numbers, min_size=20, max_size=20))
    expected = np.transpose([divmod(x, d) for x in xs])
    tensor = ops.convert_to_tensor(xs, "float64")

    def divided(tensor):
        return divide(tensor, d)

    for function in divided, in_graph(divided), in_graph(divided, jit_compile=True):
        np.testing.assert_array_equal(function(tensor), expected)


@quick
@given(BETAS, st.lists(st.integers(-(2**50), 2**50), min_size=4, max_size=4), st.data())
def test_rescale(beta, v, data):
    ratio = fractions.Fraction(beta).limit_denominator(1000)
    n, d = ratio.numerator, ratio.denominator
    largest = fixed_point.CAPACITY // d * n - d
    buffer = data.draw(st.lists(st.integers(0, largest), min_size=4, max_size=4))
    before = ops.convert_to_tensor(v, "float64"), ops.convert_to_tensor(buffer, "float64")
    after = in_graph(lambda *before: rescale(*before, n, d), jit_compile=True)(*before)
    assert all(abs(int(y) - x * ratio) < 1 for x, y in zip(v, after[0]))
    assert bits(rescale(*after, d, n)) == bits(before)


@pytest.mark.parametrize(("beta", "blocks"), [(0.5, 51), (0.9, 298), (0.99, 2659)])
def test_blocks_per_buffer(beta, blocks):
    """The table in the docstring; no worse than log2(1 / beta) bits and the first digits."""
    fraction = fractions.Fraction(beta).limit_denominator(1000)
    assert blocks_per_buffer(fraction.numerator, fraction.denominator) == blocks
    assert f"| {beta} | {blocks} | {64 / blocks:.2g} |" in Momentum.__doc__
    first_digits = math.log2(fraction.numerator / (1 - beta))
    assert blocks * math.log2(1 / beta) > 50 - first_digits


def test_full_buffers_are_followed_by_new_ones():
    coupling = Momentum(0.3, exact=True)
    depth = 3 * blocks_per_buffer(3, 10) + 1
    after = assert_undone(coupling, [0.1, -7.0, 3.0, 1e-3, 0.0, 5.0], depth)
    assert len(after) == 3 + 4
    assert np.max(after[3]) > 2**47


def test_graphs_agree_with_eager_execution():
    """Whatever compilers join and fuse."""
    coupling, depth = Momentum(0.3, exact=True), 4
    carry = start(np.linspace(-3, 3, 12), coupling, depth)

    def there_and_back(carry):
        after = run(coupling, carry, depth, spring)
        return after, run_back(coupling, after, depth, spring)

    expected = there_and_back(carry)
    assert bits(expected[1]) == bits(carry)
    for compiled in False, True:
        found = in_graph(there_and_back, jit_compile=compiled)(carry)
        assert list(map(bits, found)) == list(map(bits, expected))


def real_recurrence(coupling, v, x, fs):
    beta = float(fractions.Fraction(coupling.beta).limit_denominator(1000))
    for f in fs:
        v = beta * v + (1 - beta) * f
        x = x + v
    return v, x


@pytest.mark.parametrize("beta", [0.5, 0.9, 0.99, 0.123456, 0.998765])
def test_values_are_those_of_the_recurrence(beta):
    coupling = Momentum(beta, exact=True)
    carry = start(np.linspace(-3, 3, 200), coupling, 50)
    fs = list(np.random.default_rng(0).normal(size=(50, 100)))
    expected = real_recurrence(coupling, *map(np.array, carry[:2]), fs)
    for index, f in enumerate(fs):
        carry = coupling.at(index, 50).couple(carry, ops.convert_to_tensor(f))
    np.testing.assert_allclose(carry[0], expected[0], rtol=0, atol=1e-6)
    np.testing.assert_allclose(carry[1], expected[1], rtol=0, atol=1e-6)


def gradients_of(function, inputs):
    def sines(*inputs):
        return [ops.sin(y + i) for i, y in enumerate(function(*inputs))]

    return gradients(sines, list(inputs))


@pytest.mark.parametrize("direction", ["couple", "uncouple"])
@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize(
    ("exact", "plain"),
    [(Additive(exact=True), Additive()), (Momentum(0.9, exact=True), Momentum(0.9))],
)
def test_gradients_are_those_of_the_recurrence(exact, plain, index, direction):
    values = np.random.default_rng(0).normal(size=(3, 2, 3))
    step = exact.at(index, 2)
    buffers = [ops.full((2, 3), 5.0, "float64")] if not exact.swaps else []
    if direction == "couple" and index == 0:
        buffers = []

    def exactly(a, b, fx):
        carry = [*step.to_carry([a, b]), *buffers]
        return step.from_carry(getattr(step, direction)(carry, fx), "float64")[0]

    expected = gradients_of(lambda a, b, fx: getattr(plain, direction)([a, b], fx), values)
    found = gradients_of(exactly, values)
    for a, b in zip(found, expected):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("coupling", [Additive(exact=True), Momentum(0.9, exact=True)])
def test_saturated_elements_have_no_gradient(coupling):
    def function(a, b, fx):
        return coupling.couple(coupling.to_carry([a, b]), fx)[:2]

    found = gradients_of(function, np.array([[1.0] * 3, [1.0] * 3, [-1e30, 1e12, 1.0]]))
    found = np.array(found)
    assert np.all(np.isfinite(found))
    assert np.all((found[2] != 0) == [False, False, True])


def test_at_leaves_the_coupling_alone():
    for plain in Additive(), Momentum(0.9):
        assert plain.at(3, 9) is plain
    coupling = Momentum(0.9, exact=True)
    located = coupling.at(3, 9)
    assert (located.index, located.depth) == (3, 9)
    assert (coupling.index, coupling.depth) == (0, 1)
    assert coupling.depth_limit("float32") is None
    assert Momentum(0.9).depth_limit("float32") == 70


@pytest.mark.parametrize(
    "coupling",
    [
        Additive(exact=True),
        Additive(),
        Momentum(0.3, exact=True, initial_velocity="learned"),
        Momentum(0.7),
    ],
)
def test_saved_and_loaded(coupling):
    config = keras.saving.serialize_keras_object(coupling)
    loaded = keras.saving.deserialize_keras_object(config)
    assert type(loaded) is type(coupling)
    assert loaded.get_config() == coupling.get_config()
    assert loaded.exact == coupling.exact


def test_initial_velocity():
    x = ops.ones((2, 5, 3))
    coupling = Momentum(0.9, initial_velocity="learned")
    assert coupling.start_shape((None, 5, 3)) == (3,)
    assert Momentum(0.9).start_shape((None, 5, 3)) is None
    np.testing.assert_array_equal(coupling.enter(x)[0], np.zeros((2, 5, 3)))
    v, same = coupling.enter(x, ops.convert_to_tensor([1.0, 2.0, 3.0]))
    np.testing.assert_array_equal(v, np.broadcast_to([1.0, 2.0, 3.0], (2, 5, 3)))
    assert same is x


@pytest.mark.parametrize("coupling", [Additive(), Additive(True), Momentum(0.9), Momentum(0.9, 1)])
def test_log_determinant(coupling):
    """That of the Jacobian of both streams, whatever the block is."""
    x = np.random.default_rng(0).normal(size=(2, 2, 3))

    def both(streams):
        plain = Momentum(0.9) if isinstance(coupling, Momentum) else Additive()
        v, x = streams[:, 0], streams[:, 1]
        return plain.couple([v, x], ops.sin(3 * x))

    determinants = np.linalg.det(jacobian(both, x))
    found = in_graph(lambda stream: coupling.log_det(None, stream))(x[:, 1])
    assert found.shape == (2,)
    np.testing.assert_allclose(found, np.log(abs(determinants)), atol=1e-9)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Momentum(1.5, exact=True), "between 0 and 1.*beta=1.5"),
        (lambda: Momentum(0.9999, exact=True), "between 0.001 and 0.999.*beta=0.9999"),
        (lambda: Momentum(1e-5, exact=True), "between 0.001 and 0.999.*beta=1e-05"),
        (lambda: Momentum(0.9, initial_velocity="ones"), "'zeros', 'learned'.*'ones'"),
    ],
)
def test_bad_values(make, message):
    with pytest.raises(ValueError, match=message):
        make()
