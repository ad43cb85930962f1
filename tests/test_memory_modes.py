"""A memory mode that is assigned, and one that a check puts in its place for a while."""

import json
import threading
import warnings

import keras
import numpy as np
import pytest

import revkeras
from revkeras import ReversibleSequential
from tests import blocks
from tests.modes import assert_same, run_step

L = keras.layers
MODES = ["reversible", "checkpoint", "none"]


def stack(**options):
    return ReversibleSequential([blocks.dense(2) for _ in range(3)], **options)


def normal(*shape):
    return np.random.default_rng(0).standard_normal(shape).astype("float32")


@pytest.mark.parametrize("value", ["reversable", None, True, 1, print, ["none"], "", {}])
def test_assigning_refuses_what_constructing_refuses(value):
    layer, message = stack(memory_mode="checkpoint"), "expected one of .*'checkpoint'"
    with pytest.raises(ValueError, match=message) as constructed:
        stack(memory_mode=value)
    with pytest.raises(ValueError, match=message) as assigned:
        layer.memory_mode = value
    assert str(assigned.value) == str(constructed.value)
    assert layer.memory_mode == "checkpoint"


@pytest.mark.tensorflow("offload on JAX is tested elsewhere")
@pytest.mark.parametrize("mode", ["checkpoint", "none"])
def test_offload_refuses_other_modes_later_too(mode):
    layer, message = stack(offload="host"), "`offload`: expected None beside"
    with pytest.raises(ValueError, match=message) as constructed:
        stack(memory_mode=mode, offload="host")
    with pytest.raises(ValueError, match=message) as assigned:
        layer.memory_mode = mode
    assert str(assigned.value) == str(constructed.value)
    assert layer.memory_mode == "reversible"


@pytest.mark.parametrize("before", MODES)
@pytest.mark.parametrize("after", MODES)
def test_an_assigned_mode_is_as_good_as_a_constructed_one(before, after):
    x = normal(4, 4)
    layer = stack(memory_mode=before)
    expected = run_step(layer, x, training=True)
    layer.memory_mode = after
    assert layer.get_config()["memory_mode"] == after
    assert layer.supports_jit is stack(memory_mode=after).supports_jit
    assert_same(run_step(layer, x, training=True), expected)


@pytest.mark.tensorflow("models that XLA is not to compile")
def test_a_compiled_model_follows_the_assigned_mode():
    """A whole-model compile by XLA would make memory grow with depth."""
    layer = stack(memory_mode="none")
    model = keras.Sequential([keras.Input((4,)), layer])
    for mode, jit_compiles in ("reversible", False), ("none", True), ("checkpoint", False):
        layer.memory_mode = mode
        assert all(x.supports_jit for x in model._flatten_layers()) is jit_compiles


def test_a_depth_that_is_too_large_is_warned_of_when_it_matters():
    coupling = revkeras.couplings.Momentum(0.5)
    layers = [L.Dense(2) for _ in range(40)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        layer = ReversibleSequential(layers, coupling=coupling, memory_mode="checkpoint")
        layer.build((None, 4))
    with pytest.warns(UserWarning, match="Momentum loses digits"):
        layer.memory_mode = "reversible"


@pytest.mark.tensorflow("offload on JAX is tested elsewhere")
def test_an_offloaded_stack_made_plain():
    class Owner(keras.Model):
        def __init__(self):
            super().__init__()
            self.stack = stack(offload="host")

        def call(self, x):
            return self.stack(x)

    model = Owner()
    expected = model(normal(4, 4))
    plain = revkeras.to_plain(model)
    np.testing.assert_allclose(plain(normal(4, 4)), expected, rtol=1e-6)


class Watched(L.Layer):
    """A block that looks, whenever it runs, at what others would see of its stack."""

    def __init__(self):
        super().__init__()
        self.dense = L.Dense(2, activation="tanh")
        self.look = None

    def build(self, shape):
        self.dense.build(shape)

    def call(self, x):
        if self.look is not None:
            look, self.look = self.look, None  # the stack is run inside it
            look()
            self.look = look
        return self.dense(x)


def check_inverse(layer, x):
    return revkeras.check_inverse(layer, x.shape)


def monitor(layer, x):
    model = keras.Sequential([keras.Input((4,)), layer])
    callback = revkeras.ReconstructionMonitor(x, every=1)
    callback.set_model(model)
    callback.on_train_begin()
    return callback._measure()


CHECKS = {
    "check_inverse": check_inverse,
    "gradient_drift": lambda layer, x: str(revkeras.gradient_drift(layer, x)),
    "monitor": monitor,
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS)
def test_a_check_changes_nothing_that_others_see(check, mode):
    """Neither code inside of it, nor another thread that trains the same stack meanwhile."""
    x = normal(3, 4)
    block = Watched()
    layer = ReversibleSequential([L.Dense(2), block, L.Dense(2)], memory_mode=mode)
    expected_step, expected = run_step(layer, x, graph=False), check(layer, x)
    seen, steps = [], []

    def look():
        thread = threading.Thread(target=lambda: steps.append(run_step(layer, x, graph=False)))
        thread.start()
        thread.join()
        seen.append(layer.get_config()["memory_mode"])
        json.dumps(layer.get_config())
        assert layer.memory_mode == mode

    block.look = look
    assert check(layer, x) == expected
    assert len(steps) == len(seen) > 1
    assert set(seen) == {mode}
    for step in steps:
        assert_same(step, expected_step)


@pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS)
def test_a_check_that_fails_leaves_the_stack_alone(check):
    x = normal(3, 4)
    block = Watched()
    layer = ReversibleSequential([block, L.Dense(2)])
    expected = run_step(layer, x)

    def look():
        assert layer.memory_mode == "reversible"
        raise RuntimeError("stopped")

    block.look = look
    with pytest.raises((RuntimeError, ValueError), match="stopped"):
        check(layer, x)
    block.look = None
    assert_same(run_step(layer, x), expected)
