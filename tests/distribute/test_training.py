"""Training on several workers ends with the weights of one process on the same global batches."""

import functools
import json
from pathlib import Path

import numpy as np
import pytest

from tests.distribute import cases
from tests.distribute.workers import needs_horovod, run_under_horovod, run_workers

SCRIPT = Path(__file__).parent / "training.py"
EVERY = cases.CASES | cases.MORE
# For their costs alone. Of the wide model's biases, which start at zero, AdamW's first steps are as
# large for a gradient's rounding as for a gradient.
BYTES = [name for name in cases.MORE if name.startswith("bytes-")]
# What is to be seen on several numbers of workers; the rest is on two.
GROUPS = {
    2: [*cases.CASES, *(name for name in cases.MORE if name not in BYTES)],
    3: [*cases.CASES],
    4: [*cases.CASES, "idle_ranks", *BYTES],
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """By number of workers, the folder with what they wrote."""

    @functools.cache
    def run(workers):
        out = tmp_path_factory.mktemp(f"workers-{workers}")
        arguments = [out, *GROUPS[workers]]
        assert run_workers(SCRIPT, workers, arguments, seconds=900, fresh=workers == 2) == 0
        return out

    return run


@functools.cache
def expected(name):
    return cases.train(EVERY[name])[0]


def check(folder, name):
    with np.load(folder / f"{name}.npz") as file:
        found = [file[key] for key in file.files]
    assert cases.error(EVERY[name], found, expected(name)) <= EVERY[name].tolerance


@pytest.mark.parametrize(
    ("workers", "name"),
    [(n, name) for n, names in GROUPS.items() for name in names if name not in BYTES],
)
def test_same_weights_as_one_process(runs, workers, name):
    check(runs(workers), name)


@needs_horovod
@pytest.mark.parametrize("workers", [2, 3, 4])
def test_same_weights_by_horovod(tmp_path, workers):
    names = ["sgd-1", "adamw-2", "lion-3", "muon-3"]
    assert run_under_horovod(SCRIPT, workers, [tmp_path, *names], seconds=300)[0] == 0
    for name in names:
        check(tmp_path, name)


def costs(folder, name, workers):
    return [
        json.loads((folder / f"costs-{rank}.json").read_text())[name] for rank in range(workers)
    ]


def test_all_ranks_skip_a_step_that_overflows_on_one(runs):
    for cost in costs(runs(2), "loss_scale", 2):
        assert cost["updates"] == cases.STEPS - 1
        assert cost["scale"] == 2.0**9


def parameter_bytes(name):
    return sum(4 * w.size for w in expected(name))


@pytest.mark.parametrize(("stage", "whole"), [(1, 1), (2, 1), (3, 0)])
def test_bytes_that_a_rank_holds(runs, stage, whole):
    """Parameters, whole or over N; masters, where those are whole; two slots of AdamW, over N."""
    name, n = f"bytes-{stage}", 4
    parameters = parameter_bytes(name)
    arithmetic = parameters * (whole + 1 / n + 2 / n)
    for cost in costs(runs(n), name, n):
        assert cost["held"] == pytest.approx(arithmetic, rel=0.03)


@pytest.mark.parametrize(
    ("name", "times", "padding"),
    [
        ("bytes-1", 2, 0.01),
        ("bytes-2", 2, 0.01),
        ("bytes-3", 3, 0.01),
        # Gradients go on to whole variables' owners, and parameters come back; few and large
        # ones cannot be dealt out quite evenly.
        ("bytes-muon-3", 5, 0.05),
        ("bytes-bfloat16-2", 1.5, 0.01),  # parameters in 16 bits, gradients in 32
        ("bytes-bfloat16-3", 2, 0.01),
    ],
)
def test_bytes_that_a_step_moves(runs, name, times, padding):
    n = 4
    for cost in costs(runs(n), name, n):
        assert cost["sent"] == pytest.approx(
            times * (n - 1) / n * parameter_bytes(name), rel=padding
        )
