"""Checkpoints, read by other numbers of workers too; damaged ones are named and passed over."""

import tracemalloc
import warnings
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from revkeras.distribute import sharded_checkpoint as checkpoint
from revkeras.distribute.partition import StatePiece
from revkeras.distribute.sharded_checkpoint import CheckpointError
from tests.distribute.workers import run_workers

_CHECKPOINTS = Path(__file__).with_name("checkpoints.py")


def _pieces(**tensors):
    return [
        StatePiece(name, x.shape, str(x.dtype), 0, x.size, lambda x=x: x.reshape(-1))
        for name, x in tensors.items()
    ]


def _tensors(seed=0):
    random = np.random.default_rng(seed)
    return {
        "dense/kernel": random.standard_normal((3, 4)).astype("float32"),
        "half": random.standard_normal(5).astype(ml_dtypes.bfloat16),
        "iteration": np.array(7, "int64"),
    }


def test_what_is_written_is_read(tmp_path):
    tensors = _tensors()
    local = {"seed": np.array([1, 2**31], "uint32"), "total": np.float32(0.1)}
    position = {"epoch": 1, "batch": 3}
    checkpoint.write(tmp_path, _pieces(**tensors), step=12, position=position, local=local)
    found = checkpoint.newest(tmp_path)
    assert (found.step, found.size, found.position) == (12, 1, position)
    found.check({name: x.shape for name, x in tensors.items()})
    for name, x in tensors.items():
        values = found.read_range(name, 0, x.size)
        assert values.dtype == x.dtype
        assert values.tobytes() == x.tobytes()
    np.testing.assert_array_equal(
        found.read_range("dense/kernel", 5, 9), tensors["dense/kernel"].reshape(-1)[5:9]
    )
    for name, x in local.items():
        np.testing.assert_array_equal(found.local(0)[name], x)
        assert found.local(0)[name].dtype == x.dtype
    for shapes, message in {
        ("dense/bias", (4,)): r"it has no 'dense/bias' of shape \(4,\)",
        ("dense/kernel", (4, 3)): r"has 'dense/kernel' of shape \(3, 4\), .* of shape \(4, 3\)",
    }.items():
        with pytest.raises(CheckpointError, match=message):
            found.check(dict([shapes]))
    with pytest.raises(CheckpointError, match=r"holds 2 of the elements 10 to 14 .* is \(3, 4\)"):
        found.read_range("dense/kernel", 10, 14)


def test_the_last_ones_are_kept(tmp_path):
    assert checkpoint.newest(tmp_path / "none") is None
    for step in 1, 2, 3, 3, 4:
        checkpoint.write(tmp_path, _pieces(x=np.full(3, step, "float32")), step=step, keep=2)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["step-00000003", "step-00000004"]
    assert checkpoint.newest(tmp_path).read_range("x", 0, 1) == 4


def test_steps_are_ordered_by_number(tmp_path):
    for step in 99_999_999, 100_000_000:
        checkpoint.write(tmp_path, _pieces(x=np.array(step)), step=step)
    assert checkpoint.newest(tmp_path).step == 100_000_000
    checkpoint.write(tmp_path, _pieces(x=np.array(0)), step=100_000_001, keep=2)
    names = {each.name for each in tmp_path.iterdir()}
    assert names == {"step-100000000", "step-100000001"}


@pytest.mark.parametrize("renames", [0, 1, 2])
def test_a_kill_while_a_step_is_written_again_loses_nothing(tmp_path, monkeypatch, renames):
    """As `kill -9` would, it stops before any clean-up."""
    checkpoint.write(tmp_path, _pieces(x=np.array(1)), step=1)
    done, rename, remove = [], Path.rename, checkpoint.shutil.rmtree

    def stop_after(self, target):
        if len(done) == renames:
            raise KeyboardInterrupt
        done.append(target)
        return rename(self, target)

    def stop_then(folder, *args, **kwargs):
        if len(done) == renames:
            raise KeyboardInterrupt
        remove(folder, *args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", stop_after)
        patched.setattr(checkpoint.shutil, "rmtree", stop_then if renames else remove)
        with pytest.raises(KeyboardInterrupt):
            checkpoint.write(tmp_path, _pieces(x=np.array(2)), step=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = checkpoint.newest(tmp_path)
    assert found.read_range("x", 0, 1) == (2 if renames == 2 else 1)
    checkpoint.write(tmp_path, _pieces(x=np.array(3)), step=1)
    assert [each.name for each in tmp_path.iterdir()] == ["step-00000001"]
    assert checkpoint.newest(tmp_path).read_range("x", 0, 1) == 3


def _flip(file, place):
    data = bytearray(file.read_bytes())
    data[place] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: _flip(f / "rank-00000-of-00001.bin", 50), "bin: 'half' has another checksum"),
        (
            lambda f: (f / "rank-00000-of-00001.bin").write_bytes(b"1"),
            "bin ends inside 'dense/kernel'",
        ),
        (lambda f: (f / "rank-00000-of-00001.bin").unlink(), "bin: No such file"),
        (lambda f: _flip(f / "rank-00000-of-00001.json", 30), "json has another checksum"),
        (lambda f: (f / "rank-00000-of-00001.json").unlink(), "json: No such file"),
        (lambda f: _flip(f / "manifest.json", 40), "manifest.json has another checksum"),
        (lambda f: (f / "manifest.json").unlink(), "manifest.json: .*No such file"),
    ],
)
def test_a_damaged_one_is_named_and_passed_over(tmp_path, damage, message):
    for step in 1, 2:
        checkpoint.write(tmp_path, _pieces(**_tensors(step)), step=step)
    damage(tmp_path / "step-00000002")
    with pytest.warns(UserWarning, match=f"step-00000002 is damaged: .*{message}.*Passed over"):
        found = checkpoint.newest(tmp_path)
    assert found.step == 1
    damage(tmp_path / "step-00000001")
    with (
        pytest.warns(UserWarning, match="is damaged"),
        pytest.raises(
            CheckpointError, match="All .* damaged: step-00000002, step-00000001. Restore"
        ),
    ):
        checkpoint.newest(tmp_path)


def test_a_half_written_one_is_named_passed_over_and_removed(tmp_path):
    checkpoint.write(tmp_path, _pieces(x=np.zeros(2)), step=1)
    (tmp_path / "step-00000002.tmp-0123456789ab").mkdir()
    (tmp_path / "notes").mkdir()
    with pytest.warns(UserWarning, match="step-00000002.tmp-0123456789ab .* never completed"):
        assert checkpoint.newest(tmp_path).step == 1
    checkpoint.write(tmp_path, _pieces(x=np.zeros(2)), step=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert checkpoint.newest(tmp_path).step == 2
    names = {each.name for each in tmp_path.iterdir()}
    assert names == {"step-00000001", "step-00000002", "notes"}


def test_a_failed_write_leaves_nothing(tmp_path):
    def fail():
        raise OSError(28, "No space left on device")

    full = StatePiece("x", (3,), "float32", 0, 3, fail)
    with pytest.raises(
        CheckpointError, match="Cannot write .*step-00000001.* rank 0: .*No space left"
    ):
        checkpoint.write(tmp_path, [full], step=1)
    assert list(tmp_path.iterdir()) == []


def test_one_piece_is_held_at_a_time(tmp_path):
    count, elements = 20, 2**18
    pieces = [
        StatePiece(
            f"x{n}", (elements,), "float32", 0, elements, lambda n=n: np.full(elements, n, "f4")
        )
        for n in range(count)
    ]
    tracemalloc.start()
    checkpoint.write(tmp_path, pieces, step=1)
    checkpoint.newest(tmp_path).read_range("x7", 3, 5)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2.5 * elements * 4


def test_other_numbers_of_workers_read_it(tmp_path):
    for workers in 3, 2, 1:
        assert run_workers(_CHECKPOINTS, workers, [tmp_path]) == 0
