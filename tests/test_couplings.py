"""Couplings by name, by class and of one's own."""

import keras
import numpy as np
import pytest

from revkeras import ReversibleSequential
from revkeras.couplings import Additive, Affine, Coupling, Leapfrog, Momentum
from tests.differentiation import COMPILED, cases, gradients
from tests.modes import assert_modes_agree

L = keras.layers


def normal(*shape):
    return np.random.default_rng(0).standard_normal(shape).astype("float32")


def tanh(channels, n=4):
    return [L.Dense(channels, activation="tanh") for _ in range(n)]


@keras.saving.register_keras_serializable("tests")
class Halving(Coupling):
    def forward(self, x, fx):
        return x / 2 + fx

    def inverse(self, y, fx):
        return (y - fx) * 2


@keras.saving.register_keras_serializable("tests")
class ShiftAndScale(L.Layer):
    """Returns its two parts one by one, and something else."""

    def __init__(self, channels, **kwargs):
        super().__init__(**kwargs)
        self.channels = channels
        self.shift, self.scale = L.Dense(channels), L.Dense(channels, activation="tanh")

    def build(self, shape):
        self.shift.build(shape)
        self.scale.build(shape)

    def call(self, x):
        return self.shift(x), self.scale(x), keras.ops.mean(x, -1)

    def get_config(self):
        return {**super().get_config(), "channels": self.channels}


@pytest.mark.parametrize("split_axis", [-1, None])
@pytest.mark.parametrize(
    "coupling",
    ["additive", "leapfrog", "momentum", Leapfrog(0.3), Momentum(0.5), Halving()],
    ids=lambda c: c if isinstance(c, str) else type(c).__name__,
)
def test_modes_agree(coupling, split_axis):
    channels = 4 if split_axis else 8
    layer = ReversibleSequential(tanh(channels), coupling=coupling, split_axis=split_axis)
    assert_modes_agree(layer, normal(3, 8))
    assert_modes_agree(layer, normal(3, 8), graph=False)


@pytest.mark.parametrize("scale", ["sigmoid", "exp"])
@pytest.mark.parametrize("block", [lambda: L.Dense(8, activation="tanh"), lambda: ShiftAndScale(4)])
def test_affine_modes_agree(scale, block):
    layer = ReversibleSequential([block() for _ in range(4)], coupling=Affine(scale))
    assert_modes_agree(layer, normal(3, 8))


def test_affine_is_the_formula():
    block = L.Dense(4)
    layer = ReversibleSequential([block], coupling="affine")
    x = normal(3, 4)
    y = layer(x)
    shift, s = np.split(block(x[:, 2:]), 2, -1)
    np.testing.assert_allclose(y[:, 2:], x[:, :2] * 2 / (1 + np.exp(-s)) + shift, rtol=1e-5)


def test_momentum_is_the_recurrence():
    blocks = tanh(4, 3)
    layer = ReversibleSequential(blocks, coupling=Momentum(0.7), split_axis=None)
    x = normal(2, 4)
    y = layer(x)
    v = np.zeros_like(x)
    for f in blocks:
        v = 0.7 * v + 0.3 * np.array(f(x))
        x = x + v
    np.testing.assert_allclose(y, x, rtol=1e-5, atol=1e-6)


def test_leapfrog_is_the_recurrence():
    blocks = tanh(4, 3)
    layer = ReversibleSequential(blocks, coupling=Leapfrog(0.5), split_axis=None)
    x = normal(2, 4)
    y = layer(x)
    before = now = x
    for f in blocks:
        before, now = now, 2 * now - before + 0.25 * np.array(f(now))
    np.testing.assert_allclose(y, now, rtol=1e-5, atol=1e-6)


def test_list_cycles():
    layer = ReversibleSequential(
        [L.Dense(4), L.Dense(8, activation="tanh")] * 2, coupling=["additive", "affine"]
    )
    assert_modes_agree(layer, normal(2, 8))


def test_saved_with_the_model(tmp_path):
    stack = ReversibleSequential(
        [L.Dense(8), L.Dense(4), L.Dense(4)], coupling=[Affine("exp"), Halving(), Leapfrog(0.2)]
    )
    model = keras.Sequential([keras.Input((8,)), stack])
    model.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    np.testing.assert_allclose(loaded(normal(2, 8)), model(normal(2, 8)), rtol=1e-6)
    assert [type(c) for c in loaded.layers[0].couplings] == [Affine, Halving, Leapfrog]
    assert loaded.layers[0].couplings[2].step == 0.2


def test_momentum_warns_beyond_its_depth():
    coupling = Momentum(0.9)
    limit = coupling.depth_limit("float32")
    assert 60 < limit < 80
    assert coupling.depth_limit("float64") > 2 * limit
    with pytest.warns(UserWarning, match=f"holds up to about {limit} blocks.*has {limit + 1}"):
        ReversibleSequential([L.ReLU()] * (limit + 1), coupling=coupling).build((1, 4))


@pytest.mark.parametrize("beta", [0.6, 0.9])
def test_the_depth_limit_is_where_gradients_turn_wrong(beta):
    """Within the limit the error stays below one percent; at twice it, above."""
    coupling = Momentum(beta)

    def errors(depth, seeds):
        blocks = tanh(4, depth)
        stacks = [
            ReversibleSequential(blocks, coupling=coupling, split_axis=None, memory_mode=mode)
            for mode in ("none", "reversible")
        ]
        for stack in stacks:
            stack.build((2, 4))
        for seed in seeds:
            keras.utils.set_random_seed(seed)
            for block in blocks:  # for them to be built anew takes longest
                block.kernel.assign(keras.initializers.GlorotUniform()((4, 4)))
            x = np.random.default_rng(seed).standard_normal((2, 4)).astype("float32")
            found = [
                np.array(gradients(lambda x, stack=stack: stack(x) ** 2, [x], graph=COMPILED)[0])
                for stack in stacks
            ]
            yield np.linalg.norm(found[1] - found[0]) / np.linalg.norm(found[0])

    limit = coupling.depth_limit("float32")
    assert max(errors(limit, range(cases(4)))) < 1e-2
    with pytest.warns(UserWarning, match="loses digits"):
        assert not max(errors(2 * limit, [0])) < 1e-2


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Momentum(0), "`beta`.*between 0 and 1.*beta=0"),
        (lambda: Momentum(1.0), "beta=1.0"),
        (lambda: Momentum("0.9"), "`beta`.*'0.9'"),
        (lambda: Leapfrog(None), "`step`.*None"),
        (lambda: Affine(axis="x"), "`axis`.*integer.*'x'"),
        (lambda: Affine(keras.ops.cos), "changes its sign between"),
        (lambda: Affine(lambda s: s - 0.03), "changes its sign between s=0 and s=0.1"),
        (
            lambda: ReversibleSequential(tanh(4), coupling=Affine(axis=5)).build((1, 4)),
            "Block 0 .*no axis 5",
        ),
        (lambda: Affine("tanh"), "`scale`.*'exp', 'sigmoid'.*scale='tanh'"),
        (lambda: Affine(keras.ops.relu), "multiplied by zero.*stays away from zero"),
        (lambda: Leapfrog(0), "`step`.*positive.*step=0"),
        (lambda: ReversibleSequential(tanh(2), coupling="additiv"), "'additive'.*'additiv'"),
        (lambda: ReversibleSequential(tanh(2), coupling=[]), "empty list"),
        (
            lambda: ReversibleSequential(tanh(2), coupling=Additive),
            "instance.*received <class.*Did you mean `Additive",
        ),
        (
            lambda: ReversibleSequential(tanh(2), abs, abs, coupling="additive"),
            "exclude each other",
        ),
        (
            lambda: ReversibleSequential([L.Dense(3)], coupling="affine").build((1, 4)),
            r"Block 0 .*shift and a scale.*\(1, 4\), or two of shape \(1, 2\); received \[\(1, 3\)",
        ),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@keras.saving.register_keras_serializable("tests")
def softplus(s):
    return keras.ops.softplus(s) + 0.1


def test_scale_function_is_saved(tmp_path):
    model = keras.Sequential(
        [keras.Input((8,)), ReversibleSequential([L.Dense(8)], coupling=Affine(softplus))]
    )
    model.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    np.testing.assert_allclose(loaded(normal(2, 8)), model(normal(2, 8)), rtol=1e-6)
    with pytest.raises(ValueError, match="`scale`.*cannot be saved"):
        Affine(lambda s: s**2 + 1).get_config()


@pytest.mark.parametrize("scale", ["sigmoid", "exp"])
def test_log_det_far_from_one(scale):
    fx = keras.ops.zeros((1, 2)), keras.ops.full((1, 2), -120.0)
    expected = 2 * (-120 + (np.log(2) if scale == "sigmoid" else 0))
    np.testing.assert_allclose(Affine(scale).log_det(fx, fx[0]), [expected], rtol=1e-6)


def test_depth_warning_counts_all_couplings():
    couplings = [Momentum(0.9), "additive", Momentum(0.9)]
    with pytest.warns(UserWarning, match="Momentum loses digits.*up to about 105 .*has 180"):
        ReversibleSequential([L.ReLU()] * 180, coupling=couplings).build((1, 4))


def test_inverse_beyond_the_depth_warns():
    layer = ReversibleSequential([L.ReLU()] * 120, coupling="momentum", memory_mode="checkpoint")
    y = layer(normal(1, 4))
    with pytest.warns(UserWarning, match="loses digits"):
        layer.inverse(y)


def test_one_tensor_comes_from_the_coupling_that_acted_last():
    x, blocks = normal(2, 4), tanh(4, 1)
    alone = ReversibleSequential(blocks, coupling="momentum", split_axis=None)
    listed = ReversibleSequential(blocks, coupling=["momentum", "additive"], split_axis=None)
    np.testing.assert_array_equal(listed(x), alone(x))


def test_coupling_class_that_changes_the_shape():
    class Growing(Coupling):
        def forward(self, x, fx):
            return keras.ops.concatenate([x, fx], -1)

        def inverse(self, y, fx):
            return y[..., : fx.shape[-1]]

    with pytest.raises(ValueError, match="`forward` of Growing must keep the stream's shape"):
        ReversibleSequential(tanh(2), coupling=Growing()).build((1, 4))


def test_coupling_class_that_is_no_inverse():
    class Wrong(Halving):
        def inverse(self, y, fx):
            return y * 2 - fx

    with pytest.raises(ValueError, match="`inverse` of Wrong does not undo `forward` of Wrong"):
        ReversibleSequential(tanh(2), coupling=Wrong()).build((1, 4))
