"""Updating inside the backward pass leaves the weights that updating at the end leaves."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import optimizers

import revkeras
from revkeras import FusedUpdate
from tests import blocks
from tests.compiling import compiled

pytestmark = pytest.mark.tensorflow("updates inside of the backward pass")


def dense_blocks():
    return [keras.layers.Dense(4, activation="gelu") for _ in range(3)]


def model_of(layers=dense_blocks, head=True, **options):
    keras.utils.set_random_seed(3)
    stack = revkeras.ReversibleSequential(layers(), **options)
    head = [keras.layers.Dense(3)] if head else []
    return keras.Sequential([keras.Input((8,)), keras.layers.Dense(8), stack, *head])


def model_and_built_optimizer():
    model, optimizer = model_of(), FusedUpdate(optimizers.SGD(0.1))
    optimizer.build(model.trainable_variables)
    return model, optimizer


def data(n=32, outputs=3):
    x = np.random.default_rng(0).standard_normal((n, 8)).astype("float32")
    return x, np.tile(np.sin(x[:, :1]), (1, outputs))


def weights_after(model, optimizer, built=True, **options):
    """Builds the optimizer, so that a step is traced once, or leaves that to `fit`."""
    if built:
        compiled(model, optimizer, **options)
    else:
        model.compile(optimizer, "mse", **options)
    x, y = data(outputs=model.output_shape[-1])
    model.fit(x, y, batch_size=8, shuffle=False, verbose=0)
    return model.get_weights()


@functools.cache
def plain_weights(name):
    """What updating at the end leaves of `model_of()`."""
    return weights_after(model_of(), OPTIMIZERS[name]())


def assert_same_weights(found, expected):
    assert len(found) == len(expected)
    for a, b in zip(found, expected):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def updated_in_backward(model):
    """The variables that the traced step updates inside the backward pass."""
    found = []
    update = model.optimizer._update
    model.optimizer._update = lambda g, v: (found.extend(v), update(g, v))
    x, y = data(outputs=model.output_shape[-1])
    model.make_train_function(force=True)
    model.train_on_batch(x, y)
    del model.optimizer._update
    return found


OPTIMIZERS = {
    "sgd": lambda: optimizers.SGD(0.1),
    "momentum": lambda: optimizers.SGD(0.1, momentum=0.9, nesterov=True),
    "adam": lambda: optimizers.Adam(0.01),
    "adamw": lambda: optimizers.AdamW(0.01, weight_decay=0.1),
    "lion": lambda: optimizers.Lion(0.01),
    "rmsprop": lambda: optimizers.RMSprop(0.01, centered=True),
    "adagrad": lambda: optimizers.Adagrad(0.1),
    "adafactor": lambda: optimizers.Adafactor(0.01),
    "clipnorm": lambda: optimizers.SGD(0.1, clipnorm=0.01),
    "clipvalue": lambda: optimizers.SGD(0.1, clipvalue=0.001),
    "averages": lambda: optimizers.SGD(
        0.1, use_ema=True, ema_momentum=0.5, ema_overwrite_frequency=2
    ),
    "schedule": lambda: optimizers.Adam(optimizers.schedules.ExponentialDecay(0.05, 1, 0.5)),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_same_weights(name):
    found = weights_after(model_of(), FusedUpdate(OPTIMIZERS[name]()))
    assert_same_weights(found, plain_weights(name))


def test_blocks_of_several_layers():
    def layers():
        return [blocks.dense(4) for _ in range(2)]

    found, expected = (
        weights_after(model_of(layers), wrapped(optimizers.Adam(0.01)))
        for wrapped in (FusedUpdate, lambda optimizer: optimizer)
    )
    assert_same_weights(found, expected)


class Nested(optimizers.SGD):
    """Updates inside a condition, a loop or a function, where a plain optimizer does not."""

    def __init__(self, kind, learning_rate=0.1, **options):
        super().__init__(learning_rate, **options)
        self.kind = kind

    def update_step(self, gradient, variable, learning_rate):
        def update():
            super(Nested, self).update_step(gradient, variable, learning_rate)

        def update_and_count(i=0):
            update()
            return i + 1

        small = tf.reduce_sum(gradient**2) < 1e-3
        if self.kind == "condition":
            keras.ops.cond(small, lambda: None, update)
        elif self.kind == "switch":
            tf.switch_case(tf.cast(small, tf.int32), [update_and_count, lambda: 0])
        elif self.kind == "loop":
            tf.while_loop(lambda i: i < 2, update_and_count, [0])
        elif self.kind == "function":
            tf.function(update, autograph=False)()
        else:
            update()


def operations_before(tensor):
    """The operations of its graph that have ended when a tensor is there."""
    found, left = set(), [tensor.op]
    while left:
        operation = left.pop()
        if operation not in found:
            found.add(operation)
            left += [*operation.control_inputs, *(x.op for x in operation.inputs)]
    return found


@pytest.mark.parametrize(
    ("kind", "type_of_update"),
    [
        ("plain", "AssignSubVariableOp"),
        ("condition", "If"),
        ("switch", "Case"),
        ("loop", "While"),
        ("function", "StatefulPartitionedCall"),
    ],
)
def test_backward_pass_waits_for_updates_wherever_they_are(kind, type_of_update):
    expected = weights_after(model_of(), Nested(kind))
    model, optimizer = model_of(), FusedUpdate(Nested(kind))
    assert_same_weights(weights_after(model, optimizer), expected)
    stack = model.layers[1]

    @tf.function
    def gradient_at_the_input(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            loss = optimizer.scale_loss(tf.reduce_sum(stack(x) ** 2))
        return tape.gradient(loss, x)

    graph = gradient_at_the_input.get_concrete_function(tf.ones((2, 8))).graph
    updates = {x for x in graph.get_operations() if x.type == type_of_update}
    assert len(updates) == len(stack.trainable_variables)
    (gradient,) = graph.outputs[0].op.inputs  # what a function returns waits for all in it
    assert updates <= operations_before(gradient)


def test_weight_decay_exclusions():
    found = []
    for wrapped in FusedUpdate, lambda optimizer: optimizer:
        optimizer = wrapped(optimizers.AdamW(0.01, weight_decay=0.5))
        optimizer.exclude_from_weight_decay(var_names=["bias"])
        found.append(weights_after(model_of(), optimizer))
    assert_same_weights(*found)


@pytest.mark.parametrize("averages", [{}, {"use_ema": True, "ema_overwrite_frequency": 2}])
def test_constraints(averages):
    def layers():
        return [keras.layers.Dense(4, kernel_constraint="unit_norm") for _ in range(3)]

    found, expected = (
        weights_after(model_of(layers), wrapped(optimizers.SGD(0.5, **averages)))
        for wrapped in (FusedUpdate, lambda optimizer: optimizer)
    )
    assert_same_weights(found, expected)


def test_the_name_of_an_optimizer():
    assert isinstance(FusedUpdate("adam").inner_optimizer, optimizers.Adam)


@pytest.mark.parametrize("options", [{"steps_per_execution": 2}, {"run_eagerly": True}])
def test_compile_options(options):
    fused = FusedUpdate(optimizers.Adam(0.01))
    assert_same_weights(
        weights_after(model_of(), fused, built=False, **options), plain_weights("adam")
    )


def test_a_stack_alone():
    expected = weights_after(model_of(head=False), optimizers.SGD(0.1, use_ema=True))
    model = model_of(head=False)
    found = weights_after(model, FusedUpdate(optimizers.SGD(0.1, use_ema=True)), built=False)
    assert_same_weights(found, expected)
    assert int(model.optimizer.iterations) == 4


@pytest.mark.parametrize("make", [lambda: optimizers.SGD(0.1), lambda: optimizers.Adam(0.01)])
def test_blocks_are_updated_in_the_backward_pass_and_no_others(make):
    model = model_of()
    compiled(model, FusedUpdate(make()))
    found = {v.path for v in updated_in_backward(model)}
    assert found == {v.path for v in model.layers[1].trainable_variables}


def test_shared_and_frozen_weights():
    def layers():
        shared, frozen = keras.layers.Dense(4, activation="tanh"), keras.layers.Dense(4)
        frozen.trainable = False
        return [shared, keras.layers.Dense(4), frozen, shared]

    expected = weights_after(model_of(layers), optimizers.Adam(0.01))
    model = model_of(layers)
    assert_same_weights(weights_after(model, FusedUpdate(optimizers.Adam(0.01))), expected)
    found = {v.path for v in updated_in_backward(model)}
    assert found == {v.path for v in model.layers[1].layers[1].trainable_variables}


def test_a_stack_that_is_called_twice():
    def model():
        keras.utils.set_random_seed(3)
        stack = revkeras.ReversibleSequential(dense_blocks())
        x = keras.Input((8,))
        return keras.Model(x, stack(keras.layers.Dense(8)(stack(x))))

    expected = weights_after(model(), optimizers.Adam(0.01))
    assert_same_weights(weights_after(model(), FusedUpdate(optimizers.Adam(0.01))), expected)


def test_other_memory_modes_are_updated_at_the_end():
    model = model_of(memory_mode="checkpoint")
    found = weights_after(model, FusedUpdate(optimizers.Adam(0.01)))
    assert_same_weights(found, plain_weights("adam"))
    assert not updated_in_backward(model)


def test_a_training_loop_of_ones_own():
    x, y = map(tf.constant, data(8))
    results = []
    for optimizer in optimizers.Adam(0.01), FusedUpdate(optimizers.Adam(0.01)):
        model = model_of()
        optimizer.build(model.trainable_variables)

        @tf.function
        def step(model=model, optimizer=optimizer):
            with tf.GradientTape() as tape:
                loss = optimizer.scale_loss(tf.reduce_mean((model(x, training=True) - y) ** 2))
            gradients = tape.gradient(loss, model.trainable_variables)
            optimizer.apply(gradients, model.trainable_variables)
            return loss

        for _ in range(3):
            step()
        results.append(model.get_weights())
    assert_same_weights(*results)


def test_a_loop_that_does_not_scale_the_loss_is_told():
    model, optimizer = model_and_built_optimizer()

    @tf.function
    def step():
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(model(tf.ones((2, 8))))
        optimizer.apply(tape.gradient(loss, model.trainable_variables), model.trainable_variables)

    with pytest.raises(ValueError, match=r"optimizer.scale_loss\(loss\)"):
        step()


def test_regularized_weights_are_refused():
    def layers():
        return [keras.layers.Dense(4, kernel_regularizer="l2") for _ in range(3)]

    with pytest.raises(ValueError, match="Use `weight_decay` instead of regularizers"):
        weights_after(model_of(layers), FusedUpdate(optimizers.SGD(0.1)))


def test_two_differentiations_are_refused():
    model, optimizer = model_and_built_optimizer()

    @tf.function
    def step():
        with tf.GradientTape(persistent=True) as tape:
            loss = optimizer.scale_loss(tf.reduce_sum(model(tf.ones((2, 8)))))
        tape.gradient(loss, model.trainable_variables)
        tape.gradient(loss, model.trainable_variables)

    with pytest.raises(ValueError, match="differentiates them twice"):
        step()


def test_gradients_that_were_not_to_be_applied_are_refused():
    model, optimizer = model_and_built_optimizer()

    @tf.function
    def step():
        head = model.layers[-1].trainable_variables
        with tf.GradientTape() as tape:
            loss = optimizer.scale_loss(tf.reduce_sum(model(tf.ones((2, 8)))))
        optimizer.apply(tape.gradient(loss, head), head)

    with pytest.raises(ValueError, match="not to be applied. Build the optimizer with"):
        step()


def test_gradients_applied_outside_of_their_function_are_refused():
    model, optimizer = model_and_built_optimizer()

    @tf.function
    def gradients():
        with tf.GradientTape() as tape:
            loss = optimizer.scale_loss(tf.reduce_sum(model(tf.ones((2, 8)))))
        return tape.gradient(loss, model.trainable_variables)

    with pytest.raises(ValueError, match="in one `tf.function`"):
        optimizer.apply(gradients(), model.trainable_variables)


def test_two_optimizers_that_overlap_are_refused():
    pairs = [model_and_built_optimizer() for _ in range(2)]

    @tf.function
    def step():
        for model, optimizer in pairs:
            optimizer.scale_loss(tf.reduce_sum(model(tf.ones((2, 8)))))

    with pytest.raises(ValueError, match="Two FusedUpdate optimizers"):
        step()


def test_not_built_and_without_variables():
    with pytest.raises(ValueError, match="must already be built"):
        FusedUpdate(optimizers.SGD(0.1)).apply([tf.ones(3)])


@pytest.mark.parametrize("devices", [["CPU:0"], ["CPU:0", "CPU:1"]])
def test_under_a_distribution_strategy_it_is_refused(devices):
    strategy = tf.distribute.MirroredStrategy(devices)
    with strategy.scope():
        model = model_of()
        model.compile(FusedUpdate(optimizers.SGD(0.1)), "mse")
    with pytest.raises(ValueError, match="tf.distribute"):
        model.fit(*data(), verbose=0)


def test_loss_scaling_is_refused():
    policy = keras.dtype_policies.DTypePolicy("mixed_float16")
    model = model_of(lambda: [keras.layers.Dense(4, dtype=policy) for _ in range(3)])
    with pytest.raises(ValueError, match="expected an optimizer that updates each variable"):
        FusedUpdate(optimizers.LossScaleOptimizer(optimizers.SGD(0.1)))
    model.compile(optimizers.LossScaleOptimizer(FusedUpdate(optimizers.SGD(0.1))), "mse")
    with pytest.raises(ValueError, match="Loss scaling"):
        model.fit(*data(), verbose=0)


class Scaled(optimizers.SGD):
    """An optimizer that changes all gradients before it applies them."""

    def apply(self, grads, trainable_variables=None):
        super().apply([0.1 * g for g in grads], trainable_variables)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: optimizers.SGD(0.1, global_clipnorm=1.0), "global_clipnorm=1.0 .* use `clipnorm`"),
        (lambda: optimizers.SGD(0.1, loss_scale_factor=8.0), "loss_scale_factor=8.0"),
        (
            lambda: optimizers.SGD(0.1, gradient_accumulation_steps=2),
            "gradient_accumulation_steps=2",
        ),
        (lambda: optimizers.Nadam(0.1), "received a Nadam"),
        (lambda: Scaled(0.1), "received a Scaled"),
        (lambda: FusedUpdate(optimizers.SGD(0.1)), "received a FusedUpdate"),
    ],
)
def test_optimizers_that_need_all_at_once_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        FusedUpdate(make())


def test_what_is_no_optimizer():
    with pytest.raises(TypeError, match="`inner_optimizer`: expected a Keras .*received .*=3"):
        FusedUpdate(3)


def test_saved_and_loaded(tmp_path):
    model = model_of()
    weights_after(model, FusedUpdate(optimizers.Adam(0.01)))
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    x, y = data()
    for m in model, loaded:
        m.fit(x, y, shuffle=False, verbose=0)
    assert_same_weights(loaded.get_weights(), model.get_weights())


def test_learning_rate_is_the_inner_ones():
    model = model_of()
    model.compile(FusedUpdate(optimizers.SGD(0.1)), "mse")
    seen = keras.callbacks.LearningRateScheduler(lambda epoch: 0.5**epoch)
    history = model.fit(*data(), epochs=2, callbacks=[seen], verbose=0)
    assert history.history["learning_rate"] == [1.0, 0.5]
    assert float(model.optimizer.inner_optimizer.learning_rate) == 0.5
