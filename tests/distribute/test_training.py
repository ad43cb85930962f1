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
# Each optimizer at each stage on some number of workers; on each number, each optimizer and stage.
# `cases.MORE` has SGD at stages 2 and 3, and AdamW and Muon at stage 3, on two workers.
GROUPS = {
    2: [
        *["sgd-1", "adamw-1", "adamw-2", "lion-2", "lion-3", "muon-1", "muon-2"],
        *(name for name in cases.MORE if name not in BYTES),
    ],
    3: ["sgd-2", "adamw-3", "lion-1", "muon-3", *(x for x in BYTES if x != "bytes-muon-3")],
    # Muon's whole variables, few and large, can be dealt out quite evenly to four alone.
    4: ["sgd-3", "adamw-1", "lion-2", "muon-2", "idle_ranks", "bytes-muon-3"],
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
@pytest.mark.parametrize(
    ("workers", "names"), [(2, ["sgd-1", "adamw-2"]), (3, ["lion-3", "muon-3"])]
)
def test_same_weights_by_horovod(tmp_path, workers, names):
    """What a strategy has of its engine are verbs; those are tested on four workers too."""
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
    return sum(4 * w.size for w in EVERY[name].model().get_weights())


@pytest.mark.parametrize(("stage", "whole"), [(1, 1), (2, 1), (3, 0)])
def test_bytes_that_a_rank_holds(runs, stage, whole):
    """Parameters, whole or over N; masters, where those are whole; two slots of AdamW, over N."""
    name, n = f"bytes-{stage}", 3
    parameters = parameter_bytes(name)
    arithmetic = parameters * (whole + 1 / n + 2 / n)
    for cost in costs(runs(n), name, n):
        assert cost["held"] == pytest.approx(arithmetic, rel=0.03)


@pytest.mark.parametrize(
    ("name", "n", "times", "padding"),
    [
        ("bytes-1", 3, 2, 0.01),
        ("bytes-2", 3, 2, 0.01),
        ("bytes-3", 3, 3, 0.01),
        # Gradients go on to whole variables' owners, and parameters come back.
        ("bytes-muon-3", 4, 5, 0.05),
        ("bytes-bfloat16-2", 3, 1.5, 0.01),  # parameters in 16 bits, gradients in 32
        ("bytes-bfloat16-3", 3, 2, 0.01),
    ],
)
def test_bytes_that_a_step_moves(runs, name, n, times, padding):
    for cost in costs(runs(n), name, n):
        assert cost["sent"] == pytest.approx(
            times * (n - 1) / n * parameter_bytes(name), rel=padding
        )
