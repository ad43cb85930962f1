"""Custom steps, metrics and layers, with real workers."""

from pathlib import Path

from tests.distribute.workers import run_workers

SCRIPT = Path(__file__).parent / "customized.py"


def test_custom_code_on_two_workers():
    assert run_workers(SCRIPT, 2, seconds=200) == 0
