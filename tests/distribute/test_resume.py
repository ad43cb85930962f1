"""An interrupted training ends as one that was not; other stages and numbers go on with it."""

import random
from pathlib import Path

import pytest

from revkeras.distribute import SaveAndResume
from tests.distribute.workers import needs_horovod, run_under_horovod, run_workers

_RESUMING = Path(__file__).with_name("resuming.py")
_RESTAGING = Path(__file__).with_name("restaging.py")


def test_a_worker_killed_at_any_step_leaves_no_trace_in_the_weights(tmp_path):
    step = random.randrange(1, 30)
    assert run_workers(_RESUMING, 2, [tmp_path, 2, f"1:{step}"]) == 137
    assert run_workers(_RESUMING, 2, [tmp_path, 2]) == 0


@needs_horovod
def test_the_same_under_horovod_at_stage_3(tmp_path):
    step = random.randrange(1, 30)
    assert run_under_horovod(_RESUMING, 2, [tmp_path, 3, f"0:{step}"])[0] != 0
    assert run_under_horovod(_RESUMING, 2, [tmp_path, 3])[0] == 0


def test_any_stage_and_number_of_workers_goes_on(tmp_path):
    for workers, stage in (2, 3), (3, 1), (1, 2):
        assert run_workers(_RESTAGING, workers, [tmp_path, stage]) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"every": 0}, "`every`: expected at least 1 step, received every=0"),
        ({"keep": 0}, "`keep`: expected at least 1 checkpoint, received keep=0"),
    ],
)
def test_arguments(arguments, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        SaveAndResume(None, tmp_path, **arguments)
