"""JAX's transformations of functions that call a stack."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest

import revkeras
from tests import blocks

L = keras.layers


def stack(mode="reversible", **options):
    keras.utils.set_random_seed(0)
    layers = [blocks.dense(4), blocks.dropout(4), L.Dense(4, activation="tanh")]
    layer = revkeras.ReversibleSequential(layers, memory_mode=mode, **options)
    layer.build((None, 8))
    return layer


def function(layer, training=False):
    """A scalar function of the trainable weights and the input."""
    rest = [v.value for v in layer.non_trainable_variables]

    def total(trainable, x):
        y, _ = layer.stateless_call(trainable, rest, x, training=training)
        return jnp.sum(jnp.sin(y) * jnp.arange(y.shape[-1]))

    return total, [v.value for v in layer.trainable_variables]


def x(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), "float32")


def in_both(compute):
    """What `compute` makes of the reversible stack is what it makes of the plain one."""
    found, expected = (compute(*function(stack(mode))) for mode in ("reversible", "none"))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3)


def test_vmap_over_gradients():
    in_both(lambda f, w: jax.vmap(jax.grad(f, argnums=(0, 1)), in_axes=(None, 0))(w, x(3, 2, 8)))


def test_vmap_over_models():
    def compute(f, w):
        models = jax.tree.map(lambda v: jnp.stack([v, 2 * v]), w)
        return jax.jit(jax.vmap(jax.grad(f), in_axes=(0, None)))(models, x(2, 8))

    in_both(compute)


@pytest.mark.parametrize("compiled", [False, True])
def test_gradient_of_gradient(compiled):
    def compute(f, w):
        def norm(w, x):
            return sum(jnp.sum(d**2) for d in jax.tree.leaves(jax.grad(f, argnums=(0, 1))(w, x)))

        second = jax.grad(norm, argnums=(0, 1))
        return (jax.jit(second) if compiled else second)(w, x(2, 8))

    in_both(compute)


def test_vjp():
    in_both(lambda f, w: jax.vjp(f, w, x(2, 8))[1](jnp.float32(2.0)))


def test_scan_over_steps():
    def compute(f, w):
        def step(w, x):
            loss, d = jax.value_and_grad(f)(w, x)
            return jax.tree.map(lambda v, e: v - 0.01 * e, w, d), loss

        return jax.lax.scan(step, w, x(3, 2, 8))

    in_both(compute)


def temporaries(mode, depth):
    keras.utils.set_random_seed(0)
    layers = [
        keras.Sequential([L.Dense(256, activation="relu"), L.Dropout(0.2), L.Dense(64)])
        for _ in range(depth)
    ]
    layer = revkeras.ReversibleSequential(layers, memory_mode=mode)
    layer.build((None, 128))
    total, weights = function(layer, training=True)
    step = jax.jit(jax.grad(total))
    compiled = step.lower(weights, x(256, 128)).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def test_memory_of_a_program_does_not_grow_with_depth():
    few, many = (temporaries("reversible", depth) for depth in (4, 12))
    assert many - few < 0.02 * (temporaries("none", 12) - temporaries("none", 4))


def test_exact_couplings_need_64_bits():
    layers = [L.Dense(4) for _ in range(2)]
    coupling = revkeras.couplings.Additive(exact=True)
    message = "64 bits for Additive.*jax_enable_x64"
    with jax.enable_x64(False), pytest.raises(ValueError, match=message):
        revkeras.ReversibleSequential(layers, coupling=coupling)
    with jax.enable_x64(True):
        coupling = revkeras.couplings.Momentum(0.9, exact=True)
        layer = stack(coupling=coupling)
        y = layer(x(2, 8))
        assert y.dtype == "float32"
        total, weights = function(layer, training=True)
        found = jax.jit(jax.grad(total))(weights, x(2, 8))
        assert all(jnp.isfinite(d).all() for d in found)


def test_keras_compiles_steps():
    """It would run them operation by operation for a layer that does not join its compile."""
    inputs = x_in = keras.Input((8,))
    for _ in range(3):
        x_in = x_in + L.Dense(8, activation="tanh")(x_in)
    for layers in [stack()], [revkeras.Checkpoint(L.Dense(8))], [stack(), stack("checkpoint")]:
        model = keras.Sequential([keras.Input((8,)), *layers])
        model.compile("sgd", "mse")
        assert model.jit_compile
    model = revkeras.to_momentum_net(keras.Model(inputs, x_in), beta=0.5)
    model.compile("sgd", "mse")
    assert model.jit_compile


def test_exported_to_a_saved_model(tmp_path):
    model = keras.Sequential([keras.Input((8,)), stack(), L.Dense(3)])
    expected = model(x(4, 8))
    model.export(tmp_path / "saved", verbose=False)
    code = "import sys, numpy as np, tensorflow as tf; m = tf.saved_model.load(sys.argv[1]); "
    code += "np.save(sys.argv[3], m.serve(np.load(sys.argv[2])))"
    np.save(tmp_path / "x.npy", x(4, 8))
    arguments = [tmp_path / "saved", tmp_path / "x.npy", tmp_path / "y.npy"]
    subprocess.run([sys.executable, "-c", code, *map(str, arguments)], check=True, timeout=300)
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), expected, rtol=1e-4, atol=1e-5)


def test_weights_and_slots_are_in_the_hosts_memory():
    layer = revkeras.ReversibleSequential([blocks.dense(4) for _ in range(2)], offload="host")
    model = keras.Sequential([keras.Input((8,)), layer, L.Dense(1)])
    model.compile(revkeras.FusedUpdate(keras.optimizers.Adam()), "mse")
    model.fit(np.ones((4, 8)), np.ones((4, 1)), verbose=0)

    def kinds(variables):
        return {v.value.sharding.memory_kind for v in variables}

    slots = [v for v in model.optimizer.variables if "reversible" in v.path]
    assert len(slots) == 2 * len(layer.trainable_variables)
    assert kinds([*layer.trainable_variables, *slots]) == {"pinned_host"}
    assert kinds(model.layers[-1].trainable_variables) == {"device"}
    total, weights = function(layer, training=True)
    found = jax.jit(jax.grad(total))(weights, x(2, 8))
    assert {d.sharding.memory_kind for d in found} == {"pinned_host"}


@pytest.mark.parametrize("eagerly", [False, True])
def test_saturated_elements_are_counted_in_fit(eagerly):
    """Keras's trainer gives a layer's call none of its metrics' variables."""
    with jax.enable_x64(True):
        coupling = revkeras.couplings.Additive(exact=True)
        layer = revkeras.ReversibleSequential([L.Dense(4) for _ in range(2)], coupling=coupling)
        model = keras.Sequential([keras.Input((8,)), layer])
        model.compile(keras.optimizers.SGD(0.0), "mse", run_eagerly=eagerly)
        large = np.full((4, 8), 1e7, "float32")
        history = model.fit(large, large, epochs=2, verbose=0).history
        per_epoch = history[f"{layer.name}_saturated"]
        assert per_epoch[0] == per_epoch[1] == layer.saturated.result() > 0
        assert len(model.weights) == 4
