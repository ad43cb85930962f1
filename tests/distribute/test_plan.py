"""`plan` against real workers, and its arithmetic."""

import re
from pathlib import Path

import keras
import pytest

import revkeras
from revkeras.distribute import plan
from tests.distribute.workers import needs_horovod, run_under_horovod, run_workers

_PLANNED = Path(__file__).with_name("planned.py")


def test_it_is_what_four_workers_hold_and_send():
    assert run_workers(_PLANNED, 4, seconds=150) == 0


@needs_horovod
def test_it_is_what_two_workers_hold_and_send_under_horovod():
    assert run_under_horovod(_PLANNED, 2, seconds=150)[0] == 0


def test_one_worker_holds_everything():
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4)])
    model.compile("adam", "mse")
    alone = plan(model, workers=1)
    assert (alone.parameters, alone.slots, alone.gradients) == (4 * 36, 8 * 36, 4 * 36)
    assert (alone.masters, alone.in_flight, alone.sent) == (0, 0, 0)
    assert "parameters  144 B" in str(alone)


def test_what_a_stage_shards_is_divided():
    blocks, size = [1000] * 8, 4 * 8000
    for workers in 2, 8:
        one, two, three = (plan(blocks, stage=s, workers=workers) for s in (1, 2, 3))
        share = size // workers
        assert (one.parameters, one.masters, one.gradients) == (size, share, size)
        assert (two.parameters, two.masters, two.gradients) == (size, share, share)
        assert (three.parameters, three.masters, three.gradients) == (share, 0, share)
        assert one.slots == two.slots == three.slots == 2 * share
        assert three.in_flight == 3 * 4 * 1000
        moved = size * (workers - 1) // workers
        assert (one.sent, two.sent, three.sent) == (2 * moved, 2 * moved, 3 * moved)


def test_a_bucket_is_as_large_as_its_variables():
    one, large = plan([1000] * 4, stage=2, workers=2, bucket_bytes=6000), [1000, 5000, 10]
    assert one.in_flight == 8000
    assert plan(large, stage=1, workers=2, bucket_bytes=6000).in_flight == 4 * 5010
    muon = keras.optimizers.Muon()  # whole variables' owners have them in parts
    assert plan(large, stage=2, workers=2, bucket_bytes=6000, optimizer=muon).in_flight == 6000


def test_a_checkpointed_layer_is_sharded_however_small_it_is():
    model = keras.Sequential([keras.Input((8,)), revkeras.Checkpoint(keras.layers.Dense(8))])
    assert plan(model, workers=2).parameters == 4 * (32 + 4)
    plain = keras.Sequential([keras.Input((8,)), keras.layers.Dense(8)])
    assert plan(plain, workers=2).parameters == 4 * (64 + 8)


def test_depth_adds_a_share_of_a_block():
    """At stage 3 a further block costs its state over the number of workers alone."""
    shallow, deep = (plan([10**6] * depth, workers=8) for depth in (16, 64))
    assert deep.total - shallow.total == 48 * 10**6 * 16 // 8


def test_optimizers_have_their_own_slots():
    for optimizer, slots in ("SGD", 0), ("Lion", 1), ("AdamW", 2), ("Adamax", 2):
        made = getattr(keras.optimizers, optimizer)()
        assert plan([1000], workers=1, optimizer=made).slots == 4000 * slots
    accumulating = keras.optimizers.Adam(use_ema=True, gradient_accumulation_steps=2)
    assert plan([1000], workers=1, optimizer=accumulating).slots == 16000


def test_bad_arguments():
    for arguments, message in (
        ({"stage": 4, "workers": 2}, "`stage`: expected 1, 2 or 3, received stage=4"),
        ({"workers": 0}, "`workers`: expected at least 1, received workers=0"),
    ):
        with pytest.raises(ValueError, match=message):
            plan([10], **arguments)
    unbuilt = keras.Sequential([revkeras.ReversibleSequential([keras.layers.Dense(4)])])
    with pytest.raises(ValueError, match="expected a model that is built"):
        plan(unbuilt, workers=2)


def test_the_table_in_the_documentation():
    page = (Path(revkeras.__file__).parents[1] / "docs" / "distributed.md").read_text()
    rows = re.findall(r"^\| [\d.]+ billion \| (\d+) x (\d+) \| (\d) \| (.*) \|$", page, re.M)
    assert len(rows) == 18
    units = {"GiB": 2**30, "TiB": 2**40}
    for depth, width, stage, cells in rows:
        blocks = [12 * int(width) ** 2] * int(depth)
        for workers, cell in zip((1, 8, 64, 256, 1024), cells.split(" | "), strict=True):
            planned = plan(blocks, stage=int(stage), workers=workers, compute_bytes=2).total
            number, unit = cell.split()
            assert float(number) == round(planned / units[unit], 1)
