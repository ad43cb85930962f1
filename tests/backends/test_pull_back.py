"""A coupling's own gradient is that of what it computes."""

import keras
import numpy as np
import pytest

from revkeras import ReversibleSequential, couplings
from revkeras._engine import verbs
from tests.modes import assert_modes_agree

BUILT_IN = [couplings.Additive(), couplings.Affine(), couplings.Leapfrog(), couplings.Momentum(0.9)]
WITH_RULE = [c for c in BUILT_IN if couplings.rule_of(c)]


def tensors(n, seed):
    values = np.random.default_rng(seed).standard_normal((n, 3, 4)).astype("float32")
    return [keras.ops.convert_to_tensor(x) for x in values]


@pytest.mark.parametrize("coupling", WITH_RULE, ids=lambda c: type(c).__name__)
def test_rule_is_the_gradient(coupling):
    streams, fx, dstreams = tensors(2, 0), tensors(coupling.n_updates, 1), tensors(2, 2)
    coupling = coupling.at(0, 1)
    update = fx[0] if len(fx) == 1 else tuple(fx)
    _, pull_back = verbs.vjp(
        lambda streams, fx: list(coupling.couple(streams, fx)), streams, update
    )
    expected = keras.tree.flatten(pull_back(dstreams))
    found = keras.tree.flatten(coupling.pull_back(tuple(streams), update, tuple(dstreams)))
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


def test_additive_has_a_rule():
    assert [type(c) for c in WITH_RULE] == [couplings.Additive]


@keras.saving.register_keras_serializable("tests.backends")
class Halving(couplings.Additive):
    """Inherits a rule that is not its own."""

    def forward(self, x, fx):
        return x / 2 + fx

    def inverse(self, y, fx):
        return (y - fx) * 2


def test_rule_of_another_formula_is_not_used():
    assert couplings.rule_of(Halving()) is None
    assert couplings.rule_of(couplings.Additive(exact=True)) is None
    layers = [keras.layers.Dense(4, activation="tanh") for _ in range(3)]
    layer = ReversibleSequential(layers, coupling=Halving())
    assert_modes_agree(layer, np.random.default_rng(0).standard_normal((3, 8)).astype("float32"))
