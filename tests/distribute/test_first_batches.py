"""Digests of the first batches, by which workers notice that they read different data."""

import numpy as np
import pytest
import tensorflow as tf

from revkeras.distribute.first_batches import COUNT, FirstBatches, digest
from revkeras.distribute.tensorflow.tf_dataset import rows_of_rank

ROWS = 4


def rows(changed=None):
    """Batches of numbers, strings, and rows of different lengths; a change is to one value."""
    values = {
        "number": np.arange(12.0),
        "flag": np.arange(12) % 2 == 0,
        "text": np.array([f"row {i}" for i in range(12)]),
        "ragged": tf.ragged.constant([[i] * (i % 3) for i in range(12)]),
    }
    if changed == "ragged":
        values["ragged"] = tf.ragged.constant([[i] * (2 - i % 3) for i in range(12)])
    elif changed:
        values[changed][1] = values[changed][2]
    return tf.data.Dataset.from_tensor_slices(values).batch(ROWS)


def noted(dataset, rank=0):
    """What a rank notes while it reads its rows, and those."""
    first = FirstBatches()
    first.watch()
    part = list(rows_of_rank(dataset, rank, 2, first))
    return first._digests, part


def test_ranks_that_read_the_same_note_the_same():
    (mine, own), (others, other) = noted(rows(), 0), noted(rows(), 1)
    assert mine == others
    assert len(mine) == COUNT
    assert own[0]["text"].numpy().tolist() == [b"row 0", b"row 1"]
    assert other[0]["text"].numpy().tolist() == [b"row 2", b"row 3"]
    assert other[0]["ragged"].to_list() == [[2, 2], []]


@pytest.mark.parametrize("changed", ["number", "flag", "text", "ragged"])
def test_a_value_that_differs_is_noted(changed):
    mine, others = noted(rows())[0], noted(rows(changed))[0]
    assert mine["0"] != others["0"]
    assert (mine["1"] == others["1"]) == (changed != "ragged")


def test_digests_tell_shapes_and_dtypes():
    arrays = [np.zeros(4), np.zeros((2, 2)), np.zeros(4, "int64"), np.array(["", "", "", ""], "O")]
    assert len({digest([x]) for x in arrays}) == len(arrays)
    assert digest([np.array(["a", "b"], "O")]) != digest([np.array(["ab", ""], "O")])
    assert digest(arrays[:2]) != digest(arrays[1::-1])
