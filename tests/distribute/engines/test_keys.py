"""The keys of collectives."""

import pytest

from revkeras.distribute.engines.keys import CollectiveKeys

# Their hashes are equal.
GATHER, REDUCE = ("all_gather", "float32", (84880,)), ("reduce_max", "float32", (401447,))


def test_a_key_does_not_depend_on_what_came_before():
    first, second = CollectiveKeys(), CollectiveKeys()
    collectives = [("reduce_sum", "float32", (n, None)) for n in range(50)]
    found = {x: first.number(*x) for x in collectives}
    assert len(set(found.values())) == 50
    assert {x: second.number(*x) for x in reversed(collectives)} == found
    assert {x: first.number(*x) for x in collectives} == found


@pytest.mark.parametrize(("first", "second"), [(GATHER, REDUCE), (REDUCE, GATHER)])
def test_equal_hashes_are_an_error(first, second):
    """Another key would depend on which of the two this worker traced before."""
    keys = CollectiveKeys()
    keys.number(*first)
    message = r"same key \d+: {}.*float32\[\d+\] and {}.*pad the tensor, or pass another"
    with pytest.raises(RuntimeError, match=message.format(first[0], second[0])):
        keys.number(*second)
    assert keys.number(*first) == CollectiveKeys().number(*first)
