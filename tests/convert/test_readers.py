"""Outputs of blocks in the middle of a run that something else reads."""

import keras
import numpy as np
import pytest

import revkeras
from tests.convert.models import Block, X
from tests.differentiation import in_graph


class Reading(keras.Model):
    """Blocks in a loop; returns or uses the second one's output in some modes."""

    def __init__(self, deep=False):
        super().__init__()
        self.deep = deep
        self.blocks = [Block(name=f"block_{i}") for i in range(4)]

    def call(self, x, mode=None, training=None):
        outputs = []
        for block in self.blocks:
            x = block(x, training=training)
            outputs.append(x)
        if self.deep and training:
            return x + keras.ops.mean(outputs[1])
        if mode == "shape":
            return x * outputs[1].shape[-1] + keras.ops.cast(keras.ops.size(outputs[1]), x.dtype)
        if mode == "mean":
            return x + keras.ops.mean(outputs[1])
        return (x, outputs[:-1]) if mode == "all" else x


def called_in_graph(model, x, mode=None):
    return in_graph(lambda x: model(x, mode=mode), model.variables)(x)


def built(**options):
    model = Reading(**options)
    model(X)
    return model


def test_an_output_that_training_reads_ends_a_run():
    model = built(deep=True)
    expected = model(X, training=True)
    revkeras.to_momentum_net(model, beta=1e-6)
    runs = [[block.name for block in run.blocks] for run in model.momentum_runs]
    assert runs == [["block_0", "block_1"], ["block_2", "block_3"]]
    np.testing.assert_allclose(model(X, training=True), expected, atol=1e-4)


@pytest.mark.parametrize("in_graph", [False, True])
def test_outputs_returned_in_a_mode_that_was_not_traced(in_graph):
    model = revkeras.to_momentum_net(built())
    call = called_in_graph if in_graph else Reading.__call__
    call(model, X)
    with pytest.raises(ValueError, match="'block_0'.*is in the middle.*leave out each block"):
        call(model, X, mode="all")
    call(model, X)
    _, read = revkeras.from_momentum_net(model)(X, mode="all")
    assert len({np.array(y).tobytes() for y in read}) == 3


def test_what_a_graph_computes_of_them():
    model = revkeras.to_momentum_net(built())
    with pytest.raises(ValueError, match="'block_1'.*is in the middle of a momentum network"):
        called_in_graph(model, X, mode="mean")
    found = called_in_graph(model, X, mode="shape")  # of the right shape in any case
    np.testing.assert_allclose(found, np.array(model(X)) * 4 + X.size, rtol=1e-5)


def test_the_last_block_of_a_run_may_be_read():
    model = built()
    expected = model(X, mode="mean")
    revkeras.to_momentum_net(model, layers=["block_0", "block_1"], beta=1e-6)
    np.testing.assert_allclose(called_in_graph(model, X, mode="mean"), expected, atol=1e-4)
