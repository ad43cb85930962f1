"""Custom steps, metrics and layers, with real workers."""

from pathlib import Path

from tests.distribute.workers import run_workers

SCRIPT = Path(__file__).parent / "customized.py"


def test_custom_code_on_two_workers(tmp_path):
    assert run_workers(SCRIPT, 2, [tmp_path], seconds=300) == 0
