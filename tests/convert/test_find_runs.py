"""Which runs are found, and what is said where none is."""

import keras
import numpy as np
import pytest

import revkeras
from tests.convert.models import DATA, Block, X, functional, inlined, sequential, subclassed

L = keras.layers


def runs(model):
    return [[block.name for block in run.blocks] for run in model.momentum_runs]


def chain(blocks, output=lambda tensors: tensors[-1], width=4):
    x = keras.Input((width,))
    tensors = [x]
    for block in blocks:
        tensors.append(block(tensors[-1]))
    return keras.Model(x, output(tensors), name="chain")


def activated(blocks):
    """Blocks that change the sum, which are the model's own operations."""
    y = x = keras.Input((4,))
    for _ in range(blocks):
        y = L.ReLU()(L.Add()([y, L.Dense(4)(y)]))
    return keras.Model(x, y)


def test_two_runs_with_a_change_of_width_between():
    blocks = [Block(4, name=f"a{i}") for i in range(2)] + [L.Dense(6)]
    model = chain([*blocks, *(Block(6, name=f"b{i}") for i in range(3))])
    assert runs(revkeras.to_momentum_net(model)) == [["a0", "a1"], ["b0", "b1", "b2"]]


def test_a_tensor_that_is_read_elsewhere_ends_a_run():
    blocks = [Block(name=f"block_{i}") for i in range(5)]
    model = chain(blocks, output=lambda t: [t[-1], L.Dense(2)(t[2])])
    assert runs(revkeras.to_momentum_net(model)) == [
        ["block_0", "block_1"],
        ["block_2", "block_3", "block_4"],
    ]
    model = chain([Block(name=f"c{i}") for i in range(4)], output=lambda t: [t[-1], t[2]])
    assert runs(revkeras.to_momentum_net(model)) == [["c0", "c1"], ["c2", "c3"]]


def test_names_make_a_run_of_a_part():
    model = revkeras.to_momentum_net(functional(), layers=["block_1", "block_2"])
    assert runs(model) == [["block_1", "block_2"]]
    model = revkeras.to_momentum_net(subclassed(), layers=["block_0", "block_1", "block_2"])
    assert runs(model) == [["block_0", "block_1", "block_2"]]


def test_names_take_blocks_that_are_not_equal_or_not_residual():
    class Other(Block):
        pass

    layers = [Block(name="a"), Other(name="b"), L.Dense(4, name="c")]
    model = revkeras.to_momentum_net(chain(layers), layers=["a", "b", "c"], beta=1e-6)
    assert runs(model) == [["a", "b", "c"]]
    expected = model(X)
    revkeras.from_momentum_net(model)
    np.testing.assert_allclose(chain(layers)(X), expected, atol=1e-4)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (lambda: chain([L.Dense(4) for _ in range(3)]), "3 x Dense .* adds nothing to its input"),
        (lambda: chain([L.Dense(4), L.Dense(3)]), "2 layers .*no other layer has the type"),
        (
            lambda: chain([Block(name="a"), L.ReLU(), Block(name="b")]),
            r"2 x Block \('a', 'b'\): is not called on the output of another",
        ),
        (
            lambda: chain([block := Block(name="a"), Block(name="b"), block]),
            "is called more than once",
        ),
        (lambda: sequential(1), r"layers \('block_0', .*no other layer has the type"),
        (lambda: chain([L.ReLU()]), "no layer with weights"),
        (
            lambda: chain([revkeras.ReversibleSequential([L.Dense(2)] * 2, name="stack")]),
            r"Looked at:\n- 'stack': is a ReversibleSequential already\nIn a functional",
        ),
        (
            lambda: chain([inlined(), L.Dense(4)]),
            r"\(a model in it\): .*to_momentum_net\(model.get_layer\('functional",
        ),
        (lambda: activated(3), r"adds nothing to its input(.|\n)*may also be `x \+ f\(x\)`"),
        (
            lambda: chain([Block(name="a"), Block(name="b", activity_regularizer="l2")]),
            "has an activity regularizer of its own",
        ),
    ],
)
def test_a_model_without_a_run(model, reason):
    with pytest.raises(ValueError, match=rf"has no run of equal residual blocks(.|\n)*{reason}"):
        revkeras.to_momentum_net(model())


@pytest.mark.parametrize("beta", [1, 1.0, -0.1, "0.1", None, True, float("nan")])
def test_bad_beta(beta):
    message = "`beta`: expected a number from 0, included, to 1, excluded"
    with pytest.raises(ValueError, match=message):
        revkeras.to_momentum_net(functional(), beta=beta)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("block_0", "a list of at least two names"),
        (["block_0"], "a list of at least two names"),
        (["block_0", "block_0"], "each name once"),
        (["block_0", "nothing"], "no layer has the name 'nothing' in model 'functional'.*block_3"),
        (["block_0", "block_2"], r"\['block_0', 'block_2'\] stand alone"),
        (["first", "last"], r"'last' \(of type Dense\) changes the shape.*Leave it out"),
    ],
)
def test_names_that_form_no_run(names, message):
    with pytest.raises(ValueError, match=message):
        revkeras.to_momentum_net(functional(), layers=names)


def test_what_cannot_be_converted():
    with pytest.raises(TypeError, match="`model`: expected a `keras.Model`.*Dense"):
        revkeras.to_momentum_net(L.Dense(2))
    with pytest.raises(ValueError, match="is not built"):
        revkeras.to_momentum_net(keras.Sequential([Block(), Block()]))
    model = revkeras.to_momentum_net(functional())
    with pytest.raises(ValueError, match="is a momentum network already"):
        revkeras.to_momentum_net(model)


def test_arguments_that_the_original_does_not_take():
    for model, data in (
        (functional(), DATA["functional"]),
        (sequential(), X),
        (inlined(), X),
        (subclassed(), X),
    ):
        revkeras.to_momentum_net(model)
        with pytest.raises(TypeError, match=r"received the arguments \['context'\].*it takes \["):
            model(data, context=X)
        model(data, training=False)
    with pytest.raises(TypeError, match="unexpected keyword argument 'context'"):
        model.blocks[0](X, context=X)


def test_a_block_that_is_called_by_itself():
    model = revkeras.to_momentum_net(subclassed())
    with pytest.raises(ValueError, match="'block_2'.*expected the output of 'block_1'"):
        model.blocks[2](X)


def test_blocks_that_get_other_arguments_than_the_run_was_converted_for():
    class Alternating(keras.Model):
        def __init__(self):
            super().__init__()
            self.blocks = [Block(name=f"block_{i}") for i in range(2)]

        def call(self, x, scale=None, other=None):
            x = self.blocks[0](x, scale=scale)
            return self.blocks[1](x, scale=scale if other is None else other)

    model = Alternating()
    scale = np.ones((6, 1), "float32")
    model(X)
    revkeras.to_momentum_net(model, layers=["block_0", "block_1"], beta=0.5)
    model(X, scale=scale)
    model(X, scale=scale, other=2 * scale)  # block by block, for `scale` was not there before
    run = model.momentum_runs[0]
    run.arguments = frozenset({"scale"})
    model(X, scale=scale)
    with pytest.raises(ValueError, match="'block_1'.*is called with other arguments than"):
        model(X, scale=scale, other=2 * scale)


def test_a_model_that_holds_a_converted_one_and_one_inside_a_converted_one():
    inner = chain([Block(name=f"block_{i}") for i in range(3)])
    outer = keras.Sequential([keras.Input((4,)), inner, Block(name="a"), Block(name="b")])
    for first, second, held in (inner, outer, "chain"), (outer, inner, "block_0"):
        expected = revkeras.to_momentum_net(first, beta=0.5)(X)
        with pytest.raises(ValueError, match=f"holds a momentum network already: '{held}'"):
            revkeras.to_momentum_net(second)
        np.testing.assert_array_equal(first(X), expected)
        plain = revkeras.to_plain(first)
        np.testing.assert_allclose(plain(X), expected, rtol=1e-5, atol=1e-6)
        revkeras.from_momentum_net(first)


def test_a_call_put_in_the_place_of_a_layers_own_stays():
    model = chain([L.Dense(4), L.Dense(4)])
    model.layers[1].call = own = model.layers[1].call
    with pytest.raises(ValueError, match="has no run"):
        revkeras.to_momentum_net(model)
    assert vars(model.layers[1])["call"] is own
    model = chain([Block(name="a"), Block(name="b")])
    model.layers[1].call = own = model.layers[1].call
    revkeras.from_momentum_net(revkeras.to_momentum_net(model))
    assert vars(model.layers[1])["call"] is own


def test_parallel_towers_are_runs_of_their_own():
    x = keras.Input((4,))
    left, right = x, L.Dense(4)(x)
    for i in range(3):
        left, right = Block(name=f"left_{i}")(left), Block(name=f"right_{i}")(right)
    model = keras.Model(x, [left, right])
    expected = model(X)
    revkeras.to_momentum_net(model, beta=1e-6)
    expected_runs = [[f"{side}_{i}" for i in range(3)] for side in ("left", "right")]
    assert sorted(runs(model)) == expected_runs
    for found, y in zip(model(X), expected):
        np.testing.assert_allclose(found, y, atol=1e-4)


class Loop(keras.Model):
    """Calls blocks in turn, by a function of a block and a tensor."""

    def __init__(self, kind, step, **options):
        super().__init__()
        self.step = step
        self.blocks = [kind(name=f"block_{i}", **options) for i in range(2)]

    def call(self, x):
        for block in self.blocks:
            x = self.step(block, x)
        return x


class Joined(Block):
    def call(self, x, training=None):
        return super().call(x[0], training=training)


class Lone(Block):
    def call(self, x, training=None):
        return (super().call(x, training=training),)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (
            lambda: Loop(Joined, lambda block, x: block([x, x]), width=4),
            "is called on several tensors in one argument",
        ),
        (lambda: Loop(Lone, lambda block, x: block(x)[0]), "returns a tuple of one tensor"),
    ],
)
def test_blocks_that_are_called_in_ways_a_run_is_not(model, reason):
    model = model()
    model.blocks[0].build((None, 4)), model.blocks[1].build((None, 4))
    expected = model(X)
    with pytest.raises(ValueError, match=f"has no run(.|\n)*{reason}"):
        revkeras.to_momentum_net(model)
    with pytest.raises(ValueError, match=f"'block_0'.*{reason}"):
        revkeras.to_momentum_net(model, layers=["block_0", "block_1"])
    np.testing.assert_allclose(model(X), expected)


def test_layers_called_in_loops_are_passed_over():
    x = keras.Input((5, 4))
    y = Block(name="b")(Block(name="a")(x))
    for _ in range(2):
        y = L.RNN(L.LSTMCell(4), return_sequences=True)(y)
    assert runs(revkeras.to_momentum_net(keras.Model(x, y))) == [["a", "b"]]


def test_a_model_that_fails_without_a_message():
    model = Loop(Block, lambda block, x: block(x))
    model(X)

    def fails(block, x):
        raise AssertionError

    model.step = fails
    keras.config.disable_traceback_filtering()  # which writes a message
    try:
        with pytest.raises(ValueError, match="could not be traced.*: AssertionError. Pass the"):
            revkeras.to_momentum_net(model)
    finally:
        keras.config.enable_traceback_filtering()


def test_a_model_of_two_arguments():
    class Masked(keras.Model):
        def __init__(self):
            super().__init__()
            self.embedding = L.Embedding(10, 4)
            self.blocks = [Block(name=f"block_{i}") for i in range(3)]

        def call(self, token_ids, padding_mask):
            x = self.embedding(token_ids)
            scale = keras.ops.cast(~keras.ops.equal(padding_mask, 0), x.dtype)[..., None]
            for block in self.blocks:
                x = block(x, scale=scale)
            return x

    model, tokens, mask = Masked(), np.ones((2, 5), "int32"), np.ones((2, 5), "int32")
    expected = model(tokens, mask)
    revkeras.to_momentum_net(model, beta=1e-6)
    assert runs(model) == [["block_0", "block_1", "block_2"]]
    np.testing.assert_allclose(model(tokens, mask), expected, atol=1e-4)
