"""Real worker processes on this machine, bounded in time."""

import os
import sys
from pathlib import Path

from revkeras.distribute.launch import launch

ROOT = Path(__file__).parents[2]

# In the worker itself, so that a collective that hangs fails with every thread's traceback.
_TIME_LIMIT = """
import faulthandler
faulthandler.dump_traceback_later({seconds}, exit=True)
"""


def run_workers(script, workers, arguments=(), seconds=100, environ=None):
    """Runs a script's file in `workers` processes; returns the launcher's exit status."""
    with _environment({"PYTHONPATH": str(ROOT), **(environ or {})}):
        return launch(
            [sys.executable, "-c", bounded(script, seconds), *map(str, arguments)], workers
        )


def bounded(script, seconds):
    """Python code that runs a script's file and ends it after `seconds`."""
    run = f"import runpy\nrunpy.run_path({str(script)!r}, run_name='__main__')"
    return _TIME_LIMIT.format(seconds=seconds) + run


class _environment:
    def __init__(self, changes):
        self._changes = changes

    def __enter__(self):
        self._before = dict(os.environ)
        os.environ.update(self._changes)

    def __exit__(self, *_):
        os.environ.clear()
        os.environ.update(self._before)
