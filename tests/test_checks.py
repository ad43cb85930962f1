"""Measurements of the rebuild: of one layer, of a gradient, and while a model trains."""

import sys
import warnings

import keras
import numpy as np
import pytest

import revkeras
from revkeras import (
    ReconstructionMonitor,
    ReversibleSequential,
    check_inverse,
    gradient_drift,
    to_momentum_net,
    to_reversible,
)
from revkeras.couplings import Additive, Momentum, Pair
from tests.blocks import KINDS, shape
from tests.compiling import compiled
from tests.convert.models import BUILDERS as CONVERTED
from tests.convert.models import DATA as CONVERTED_DATA
from tests.differentiation import COMPILED, gradients
from tests.modes import in_mode

L = keras.layers


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype("float32")


def stack(depth=4, channels=4, **options):
    blocks = [L.Dense(channels, activation="tanh") for _ in range(depth)]
    return ReversibleSequential(blocks, **options)


def momentum(depth, exact=False, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its depth
        layer = stack(depth, 8, coupling=Momentum(0.5, exact=exact), split_axis=None, **options)
        layer.build((None, 8))
    return layer


def state_of(layer):
    return [np.array(v) for v in layer.variables]


def assert_untouched(layer, before):
    for variable, value in zip(layer.variables, before, strict=True):
        np.testing.assert_array_equal(variable, value, err_msg=variable.path)


class Wrong(Additive):
    """A coupling whose inverse is off by a tenth of the update."""

    def inverse(self, y, fx):
        return y - 0.9 * fx


class Idle(L.Layer):
    """Holds a stack and does not call it."""

    def __init__(self):
        super().__init__()
        self.stack = stack()
        self.stack.build((None, 8))

    def call(self, x):
        return x


class Scaled(L.Layer):
    """Doubles; the inverse divides by what it was given."""

    def __init__(self, divisor=2.0, **kwargs):
        super().__init__(**kwargs)
        self.divisor = divisor

    def call(self, x):
        return 2 * x

    def inverse(self, y):
        return y / self.divisor


class TestCheckInverse:
    @pytest.mark.parametrize("name", ["additive", "affine", "leapfrog", "momentum"])
    @pytest.mark.parametrize("dtype", [None, "float64", "bfloat16"])
    def test_couplings(self, name, dtype):
        found = check_inverse(name, (3, 2, 4), dtype, raise_on_failure=True)
        assert found.passed
        assert len(found.index) == 4

    def test_an_exact_coupling_has_no_error(self):
        found = check_inverse(Momentum(0.3, exact=True), (8, 16))
        assert found.absolute == found.relative == 0

    def test_a_wrong_coupling(self):
        found = check_inverse(Wrong(), (3, 4))
        assert not found.passed
        assert 0.01 < found.relative < 0.3
        assert found.index[0] == 0  # the stream that took the update in
        with pytest.raises(ValueError, match=r"Wrong does not undo it: .* at \(0, \d, \d\)"):
            check_inverse(Wrong(), (3, 4), raise_on_failure=True)

    def test_a_coupling_whose_source_is_wrong(self):
        class Lost(Additive):
            def source(self, outputs):
                return outputs[1]

        assert check_inverse(Lost(), (3, 4)).index[0] == 2

    def test_the_worst_element_is_found(self):
        def inverse(y, fx):
            return y - fx + keras.ops.one_hot(2, 4)

        found = check_inverse(Pair(lambda x, fx: x + fx, inverse), (1, 4))
        assert found.index == (0, 0, 2)
        assert found.absolute == pytest.approx(1)

    @pytest.mark.parametrize(
        "layer",
        [
            revkeras.layers.ActNorm(),
            revkeras.layers.InvertibleDense(),
            revkeras.layers.Permute(seed=0),
            revkeras.layers.SpaceToDepth(),
            revkeras.layers.Split(),
            Scaled(),
        ],
        ids=lambda layer: type(layer).__name__,
    )
    def test_layers(self, layer):
        assert check_inverse(layer, (2, 4, 4, 4), raise_on_failure=True).block is None

    def test_a_wrong_layer(self):
        found = check_inverse(Scaled(2.5, name="scaled"), (2, 4), "float64")
        assert found.relative == pytest.approx(0.2)
        message = "Scaled 'scaled' does not undo it: .*Correct the inverse.*`tolerance`"
        with pytest.raises(ValueError, match=message):
            check_inverse(Scaled(2.5, name="scaled"), (2, 4), raise_on_failure=True)
        assert check_inverse(Scaled(2.5), (2, 4), tolerance=0.3, raise_on_failure=True).passed

    def test_an_inverse_that_is_not_finite(self):
        found = check_inverse(Scaled(float("nan")), (2, 4))
        assert found.relative == found.absolute == float("inf")
        assert not found.passed

    def test_dtype_is_the_layers_or_the_one_that_is_given(self):
        assert check_inverse(Scaled(dtype="float64"), (2, 4)).tolerance == 1e-8
        assert check_inverse(Scaled(dtype="float64"), (2, 4), "float16").tolerance == 0.05
        assert check_inverse(stack(), (2, 8), "float64", raise_on_failure=True).tolerance == 2e-5

    @pytest.mark.parametrize("kind", KINDS)
    def test_stacks(self, kind):
        layer = ReversibleSequential([KINDS[kind](4) for _ in range(3)])
        check_inverse(layer, (2, *shape(kind, 4), 8), raise_on_failure=True)

    @pytest.mark.parametrize("options", [{"split_axis": None}, {"coupling": Momentum(exact=True)}])
    def test_stacks_whose_outputs_do_not_suffice(self, options):
        check_inverse(stack(**options), (2, 4 if "split_axis" in options else 8))

    def test_a_stack_of_invertible_layers_and_blocks_that_return_more(self):
        class Two(L.Layer):
            def call(self, x):
                return 0.5 * x, keras.ops.sum(x)

        for inputs in (2, 8), [(2, 4), (2, 4)], ((2, 4), (2, 4)):
            layers = [Two(), revkeras.layers.Split(), Two(), revkeras.layers.ActNorm(), Two()]
            check_inverse(ReversibleSequential(layers), inputs, raise_on_failure=True)
            check_inverse(ReversibleSequential([Two()]), inputs, raise_on_failure=True)

    def test_the_block_that_is_wrong_is_found(self):
        couplings = [Additive(), Additive(), Wrong(), Additive()]
        blocks = [L.Dense(4, name=f"block_{i}") for i in range(4)]
        layer = ReversibleSequential(blocks, coupling=couplings, check_inverse=False)
        found = check_inverse(layer, (2, 8))
        assert not found.passed
        assert found.block == "Block 2 ('block_2', of type Dense)"
        with pytest.raises(ValueError, match="first went wrong at Block 2 .'block_2'"):
            check_inverse(layer, (2, 8), raise_on_failure=True)

    def test_further_arguments(self):
        class Biased(L.Layer):
            def call(self, x, bias):
                return keras.ops.tanh(x + bias)

        layer = ReversibleSequential([Biased(), Biased()])
        check_inverse(layer, (2, 4), bias=keras.ops.ones((2, 2)), raise_on_failure=True)

    def test_nothing_changes_but_what_is_not_built(self):
        layer = ReversibleSequential([KINDS["convolution"](4), revkeras.layers.ActNorm()])
        check_inverse(layer, (2, 3, 3, 8))
        assert layer.built
        before = state_of(layer)
        check_inverse(layer, (2, 3, 3, 8))
        assert_untouched(layer, before)
        assert layer.memory_mode == "reversible"

    def test_the_seed_counts(self):
        a, b, c = (check_inverse(Wrong(), (3, 4), seed=seed).absolute for seed in (0, 0, 1))
        assert a == b != c

    @pytest.mark.parametrize(
        ("shape", "message"),
        [
            ((None, 4), r"axis 0 of \(None, 4\) is None"),
            ((2, None, 4), r"axis 1 of \(2, None, 4\) is None"),
            ((), r"two sizes or more; received input_shape=\(\)"),
            ((4,), r"two sizes or more; received input_shape=\(4,\)"),
            (4, "two sizes or more; received input_shape=4"),
            ((2, 4.0), r"positive integers; axis 1 of \(2, 4.0\) is 4.0"),
            ((2, 0), "is 0"),
            ((-2, 4), "axis 0 .* is -2"),
            ((2, True), "is True"),
            (("a", "b"), "is 'a'"),
        ],
    )
    @pytest.mark.parametrize("layer", ["additive", Scaled()], ids=["coupling", "layer"])
    def test_bad_shapes(self, layer, shape, message):
        with pytest.raises(ValueError, match=f"`input_shape`: expected.*{message}"):
            check_inverse(layer, shape)

    @pytest.mark.tensorflow("TensorShape")
    def test_a_shape_of_tensorflow(self):
        import tensorflow as tf

        with pytest.raises(ValueError, match="`input_shape`: expected.*axis 1"):
            check_inverse("additive", tf.TensorShape([2, None]))

    def test_shapes_that_the_layer_refuses(self):
        message = r"'odd' failed on input_shape=\(2, 5\): .*known, even size there, received 5"
        with pytest.raises(ValueError, match=message):
            check_inverse(stack(name="odd"), (2, 5))
        with pytest.raises(ValueError, match=r"input_shape=\(2, 3, 4\): .*divisible"):
            check_inverse(revkeras.layers.SpaceToDepth(), (2, 3, 4))
        with pytest.raises(ValueError, match=r"A coupling takes nothing but streams of one shape"):
            check_inverse("additive", [(2, 4), (2, 4)])

    def test_an_inverse_of_another_shape(self):
        class Cut(Scaled):
            def inverse(self, y):
                return y[:, :2]

        with pytest.raises(ValueError, match=r"expected \[\(2, 4\)\], received \[\(2, 2\)\]"):
            check_inverse(Cut(), (2, 4))

    @pytest.mark.parametrize("layer", [L.Dense(4), None, [Additive()]])
    def test_what_has_no_inverse(self, layer):
        with pytest.raises(TypeError, match="`layer`: expected a ReversibleSequential, another"):
            check_inverse(layer, (2, 4))

    @pytest.mark.parametrize("layer", ["addition", 3])
    def test_what_is_no_coupling(self, layer):
        with pytest.raises(ValueError, match="`coupling`: expected one of .*'additive'"):
            check_inverse(layer, (2, 4))

    def test_other_bad_arguments(self):
        for dtype in "int32", "complex64", "float33":
            with pytest.raises(ValueError, match=f"`dtype`: expected one of .*dtype='{dtype}'"):
                check_inverse("additive", (2, 4), dtype)
        message = "`tolerance`: expected None or a positive number"
        for tolerance in -1.0, "1e-3":
            with pytest.raises(ValueError, match=message):
                check_inverse("additive", (2, 4), tolerance=tolerance)


def errors(drift):
    return [b.input_error for b in drift.blocks], [b.gradient_error for b in drift.blocks]


class TestGradientDrift:
    @pytest.mark.parametrize("kind", KINDS)
    def test_small_for_additive_blocks(self, kind):
        layer = ReversibleSequential([KINDS[kind](4) for _ in range(4)])
        drift = gradient_drift(layer, normal(6, *shape(kind, 4), 8))
        assert len(drift.blocks) == 4
        assert max(b.input_error for b in drift.blocks) < 2e-6
        assert max(b.gradient_error for b in drift.blocks) < 2e-4
        assert drift.input_gradient_error < 2e-5

    def test_grows_towards_the_input_for_momentum_beyond_its_depth(self):
        inputs, gradients = errors(gradient_drift(momentum(24), normal(4, 8)))
        assert inputs[0] > 0.1 > 1e-6 > inputs[-1]
        assert gradients[0] > 1e-2 > 1e-6 > gradients[-1]
        assert all(a > b for a, b in zip(inputs[::4], inputs[4::4]))

    def test_zero_for_an_exact_coupling(self):
        drift = gradient_drift(momentum(12, exact=True), normal(4, 8))
        assert errors(drift) == ([0.0] * 12, [0.0] * 12)
        assert drift.input_gradient_error == 0

    def test_is_what_the_memory_modes_differ_by(self):
        layer, x = momentum(16), normal(4, 8)

        def by_block(mode):
            copy = in_mode(layer, mode)
            found = gradients(lambda: copy(x) ** 2, [], copy.trainable_variables, graph=COMPILED)
            per_block = len(found) // copy.depth
            return [found[i : i + per_block] for i in range(0, len(found), per_block)]

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found, expected = by_block("reversible"), by_block("none")
        drift = gradient_drift(layer, x, loss=lambda y: keras.ops.sum(y**2))
        for block, ours, theirs in zip(drift.blocks, found, expected, strict=True):
            ours, theirs = [np.concatenate([np.ravel(g) for g in gs]) for gs in (ours, theirs)]
            error = np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)
            np.testing.assert_allclose(block.gradient_error, error, rtol=0.05, atol=1e-6)
        assert drift.blocks[0].gradient_error > 1e-3

    @pytest.mark.parametrize("mode", ["reversible", "checkpoint", "none"])
    def test_all_stacks_of_a_model_in_any_mode(self, mode):
        model = keras.Sequential(
            [
                L.Embedding(7, 8),
                stack(3, name="first", memory_mode=mode),
                L.Dense(8),
                stack(2, name="second", memory_mode=mode),
                L.Dense(2),
            ]
        )
        drift = gradient_drift(model, np.arange(14).reshape(2, 7) % 7)
        names = [b.name.split(" ('")[0] for b in drift.blocks]
        expected = [("first", 0), ("first", 1), ("first", 2), ("second", 0), ("second", 1)]
        assert names == [f"{stack}: Block {i}" for stack, i in expected]
        assert drift.input_gradient_error < 1e-5
        assert all(s.memory_mode == mode for s in (model.layers[1], model.layers[3]))

    def test_errors_of_a_later_stack_reach_an_earlier_one(self):
        inputs = keras.Input((8,))
        model = keras.Model(inputs, momentum(24, name="spoils")(stack(2, name="first")(inputs)))
        drift = gradient_drift(model, normal(4, 8))
        assert drift.blocks[0].input_error < 1e-6
        assert drift.blocks[0].gradient_error > 1e-3
        assert drift.input_gradient_error > 1e-3

    def test_streams_arguments_and_blocks_without_weights(self):
        class Biased(L.Layer):
            def call(self, x, bias):
                return x * bias

        layer = ReversibleSequential([L.Activation("tanh"), L.Dense(4), Biased()])
        pair = normal(2, 4), normal(2, 4, seed=1)
        drift = gradient_drift(layer, pair, bias=keras.ops.ones((2, 4)))
        assert [b.gradient_error is None for b in drift.blocks] == [True, False, False]
        assert str(drift).splitlines()[1].split()[-1] == "-"

    def test_one_layer_twice_has_two_errors(self):
        block = L.Dense(4)
        drift = gradient_drift(ReversibleSequential([block, block]), normal(2, 8))
        assert drift.blocks[0].gradient_error > drift.blocks[1].gradient_error

    def test_a_stack_in_a_block_is_a_part_of_it(self):
        layer = ReversibleSequential([stack(3, 2, name="inner"), L.Dense(4)], name="outer")
        drift = gradient_drift(layer, normal(2, 8))
        assert [b.name.split(":")[0] for b in drift.blocks] == ["outer"] * 2
        assert 0 < drift.blocks[0].gradient_error < 1e-5

    def test_layers_with_an_inverse(self):
        layers = [L.Dense(4), revkeras.layers.ActNorm(), revkeras.layers.Split(), L.Dense(2)]
        drift = gradient_drift(ReversibleSequential(layers), normal(6, 8))
        assert drift.input_gradient_error < 1e-5

    def test_state_is_the_same_for_both_passes_and_afterwards(self):
        blocks = [KINDS[kind](4) for kind in ("dropout", "batch_norm", "dropout")]
        model = keras.Sequential([L.Dropout(0.5), ReversibleSequential(blocks), L.Dense(3)])
        x = normal(8, 8)
        first = gradient_drift(model, x)
        before = state_of(model)
        assert gradient_drift(model, x) == first
        assert first.input_gradient_error < 1e-4
        assert_untouched(model, before)
        model(x, training=True)
        with pytest.raises(AssertionError):
            assert_untouched(model, before)

    def test_mixed_precision(self):
        keras.config.set_dtype_policy("mixed_bfloat16")
        drift = gradient_drift(stack(4), normal(4, 8))
        assert max(b.input_error for b in drift.blocks) < 1e-6

    def test_table(self):
        lines = str(gradient_drift(stack(12, name="s"), normal(2, 8))).splitlines()
        assert len(lines) == 14
        assert len({len(line) for line in lines}) == 1
        assert lines[0].split() == ["block", "input", "error", "gradient", "error"]
        assert lines[1].startswith("s: Block 0 ('dense', of type Dense)")

    @pytest.mark.parametrize("exact", [False, True])
    def test_plot(self, exact, tmp_path):
        pytest.importorskip("matplotlib")
        path = tmp_path / "drift.png"
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            gradient_drift(momentum(3, exact=exact), normal(2, 8)).plot(path)
        assert path.read_bytes().startswith(b"\x89PNG")

    def test_plot_without_matplotlib(self, monkeypatch, tmp_path):
        monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
        drift = gradient_drift(stack(1), normal(2, 8))
        with pytest.raises(ImportError, match="pip install matplotlib"):
            drift.plot(tmp_path / "drift.png")

    def test_bad_arguments(self):
        for layer in L.Dense(2), keras.Sequential([L.Dense(2)]), "additive", None:
            with pytest.raises(ValueError, match="`layer`: expected a ReversibleSequential, or a"):
                gradient_drift(layer, normal(2, 4))
        with pytest.raises(ValueError, match="`loss`: expected a function .* loss='mse'"):
            gradient_drift(stack(), normal(2, 8), loss="mse")

        with pytest.raises(ValueError, match="called none of those that it holds"):
            gradient_drift(Idle(), normal(2, 8))


def fit(model, monitor, epochs=1, steps=4, **options):
    x = normal(4 * steps, 8)
    return model.fit(
        x, x, batch_size=4, epochs=epochs, verbose=0, shuffle=False, callbacks=[monitor], **options
    ).history


def model_of(*layers, learning_rate=0.0, **options):
    model = keras.Sequential([keras.Input((8,)), *layers])
    return compiled(model, keras.optimizers.SGD(learning_rate), **options)


def blow_up(layer, factor):
    for variable in layer.trainable_variables:
        variable.assign(variable * factor)


def named_stack(depth=4, name="stack"):
    return ReversibleSequential([L.Dense(4, name=f"block_{i}") for i in range(depth)], name=name)


class TestReconstructionMonitor:
    def test_silent_on_a_healthy_model(self):
        model = model_of(named_stack(), learning_rate=0.01)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            history = fit(model, ReconstructionMonitor(normal(2, 8), every=2), epochs=3)
        assert len(history["reconstruction_error"]) == 3
        assert all(0 < e < 1e-5 for e in history["reconstruction_error"])

    def test_names_the_block_that_loses_the_other_stream(self):
        layer = named_stack()
        model = model_of(L.Dense(8), layer)
        blow_up(layer.layers[1], 1e7)
        message = (
            r"After training step 2, Block 1 \('block_1', of type Dense\) of ReversibleSequential "
            r"'stack' rebuilds its input with a relative error of .*tolerance 0.001.*gradients"
        )
        with pytest.warns(UserWarning, match=message) as caught:
            history = fit(model, ReconstructionMonitor(normal(2, 8), every=2), epochs=2)
        assert len([w for w in caught if "rebuilds" in str(w.message)]) == 1
        assert min(history["reconstruction_error"]) > 1e-3

    def test_warns_before_values_are_not_finite(self):
        """A block that doubles with every step, until its float32 streams lose their digits."""

        class Grow(keras.callbacks.Callback):
            def on_train_batch_begin(self, batch, logs=None):
                assert all(np.isfinite(w).all() for w in self.model.get_weights())
                blow_up(layer.layers[2], 10)

        layer = named_stack()
        model = model_of(layer)
        x = normal(48, 8)
        monitor = ReconstructionMonitor(x[:2], every=1, tolerance=1e-2)
        with pytest.warns(UserWarning, match=r"Block 2 .*rebuilds its input"):
            model.fit(x, x, batch_size=4, verbose=0, callbacks=[Grow(), monitor])

    def test_values_that_are_not_finite(self):
        layer = named_stack()
        layer.trainable = False  # or the first step would make all weights NaN
        model = model_of(layer, L.Dense(8))
        layer.layers[1].bias.assign([float("nan")] * 4)
        with pytest.warns(UserWarning, match="Block 1 .*returns values that are not finite"):
            history = fit(model, ReconstructionMonitor(normal(2, 8), every=1))
        assert history["reconstruction_error"] == [float("inf")]

    def test_every_stack_is_watched(self):
        good, bad = named_stack(name="good"), named_stack(name="bad")
        model = model_of(good, L.Dense(8), bad)
        blow_up(bad.layers[3], 1e7)
        with pytest.warns(UserWarning, match="Block 3 .*'bad'") as caught:
            fit(model, ReconstructionMonitor(normal(2, 8), every=1))
        assert not any("'good'" in str(w.message) for w in caught)

    def test_training_is_not_touched(self):
        def train(*callbacks):
            keras.utils.set_random_seed(1)
            blocks = [KINDS[kind](4) for kind in ("dropout", "batch_norm", "dropout")]
            model = model_of(
                L.Dropout(0.2), ReversibleSequential(blocks), L.Dense(8), learning_rate=0.1
            )
            x = normal(16, 8)
            model.fit(x, x, batch_size=4, verbose=0, shuffle=False, callbacks=list(callbacks))
            return state_of(model)

        for a, b in zip(train(), train(ReconstructionMonitor(normal(2, 8), 1)), strict=True):
            np.testing.assert_array_equal(a, b)

    def test_when_it_measures(self):
        steps = []

        class Watch(keras.callbacks.Callback):
            def on_train_batch_end(self, batch, logs=None):
                if "reconstruction_error" in logs:
                    steps.append(batch)

        x = normal(24, 8)
        for per_execution, expected in (1, [2, 5, 2, 5]), (2, [3, 5, 3, 5]):
            steps.clear()
            model = model_of(named_stack(2), steps_per_execution=per_execution)
            callbacks = [ReconstructionMonitor(x[:2], every=3), Watch()]
            model.fit(x, x, batch_size=4, epochs=2, verbose=0, callbacks=callbacks)
            assert steps == expected

    def test_an_epoch_without_a_measured_step_has_one_at_its_end(self):
        history = fit(model_of(named_stack()), ReconstructionMonitor(normal(2, 8)), epochs=2)
        assert all(0 < e < 1e-5 for e in history["reconstruction_error"])

    def test_inputs_in_a_dict(self):
        inputs = {name: keras.Input((8,), name=name) for name in "ab"}
        outputs = named_stack()(L.Add()([inputs["a"], inputs["b"]]))
        model = keras.Model(inputs, outputs)
        model.compile("sgd", "mse")
        x = {"a": normal(4, 8), "b": normal(4, 8)}
        history = model.fit(x, x["a"], verbose=0, callbacks=[ReconstructionMonitor(x, 1)]).history
        assert history["reconstruction_error"][0] < 1e-5

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"batch": None}, "`batch`: expected the model's inputs.*type NoneType"),
            ({"batch": []}, "`batch`"),
            ({"batch": iter([])}, "`batch`"),
            ({"every": 0}, "`every`: expected a positive integer, received every=0"),
            ({"every": 1.5}, "every=1.5"),
            ({"every": True}, "every=True"),
            ({"tolerance": 0}, "`tolerance`: expected a positive number, received tolerance=0"),
            ({"tolerance": float("nan")}, "tolerance=nan"),
            ({"tolerance": "1e-3"}, "tolerance='1e-3'"),
        ],
    )
    def test_bad_arguments(self, arguments, message):
        with pytest.raises(ValueError, match=message):
            ReconstructionMonitor(**{"batch": normal(2, 8), **arguments})

    def test_a_model_without_a_stack(self):
        message = "nothing to measure in model '.*': expected a ReversibleSequential, or a model"
        with pytest.raises(ValueError, match=message):
            fit(model_of(L.Dense(8)), ReconstructionMonitor(normal(2, 8)))

    def test_a_model_whose_call_runs_no_stack(self):
        with pytest.raises(ValueError, match="called none of its stacks on the `batch`"):
            fit(model_of(L.Dense(8), Idle()), ReconstructionMonitor(normal(2, 8), every=1))

    @pytest.mark.parametrize("kind", CONVERTED)
    @pytest.mark.parametrize("blocks", [3, 6])  # six are too many for anything but exact couplings
    def test_a_converted_model(self, kind, blocks):
        x = CONVERTED_DATA[kind]
        model = to_momentum_net(CONVERTED[kind](blocks), beta=0.1)
        model.compile(keras.optimizers.SGD(0.01), "mse", run_eagerly=True)
        (run,) = model.momentum_runs
        assert run.stack.couplings[0].exact == (run.stack.depth > 4)
        y, monitor = np.zeros(model(x).shape), ReconstructionMonitor(x, every=1)
        (error,) = model.fit(x, y, verbose=0, callbacks=[monitor]).history["reconstruction_error"]
        assert error == 0 if run.stack.couplings[0].exact else 0 < error < 1e-3

    def test_a_converted_model_whose_rebuild_goes_wrong(self):
        model = to_momentum_net(CONVERTED["sequential"](3), beta=0.5)
        model.compile(keras.optimizers.SGD(0.0), "mse")
        blow_up(model.layers[1].dense, 1e6)
        blow_up(model.layers[1].norm, 1e6)
        x = CONVERTED_DATA["sequential"]
        with pytest.warns(UserWarning, match="'block_1_.*rebuilds its input"):
            model.fit(x, np.zeros((6, 3)), verbose=0, callbacks=[ReconstructionMonitor(x, every=1)])

    def test_a_converted_model_that_keeps_its_inputs(self):
        model = to_momentum_net(CONVERTED["sequential"](3), beta=0.0)
        model.compile("sgd", "mse")
        x = CONVERTED_DATA["sequential"]
        with pytest.raises(ValueError, match="`beta` that is large enough to rebuild inputs"):
            model.fit(x, np.zeros((6, 3)), verbose=0, callbacks=[ReconstructionMonitor(x)])

    def test_a_model_made_reversible(self):
        plain = keras.Sequential([L.Dense(8, activation="tanh") for _ in range(4)])
        history = fit(model_of(to_reversible(plain)), ReconstructionMonitor(normal(2, 8), 1))
        assert 0 <= history["reconstruction_error"][0] < 1e-5
