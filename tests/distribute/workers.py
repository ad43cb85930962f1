"""Real worker processes on this machine, bounded in time."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from revkeras.distribute.cluster import CONTROL_PORT
from revkeras.distribute.launch import free_ports, launch
from tests.warm import python

ROOT = Path(__file__).parents[2]

# In the worker itself, so that a collective that hangs fails with every thread's traceback.
_TIME_LIMIT = """
import faulthandler
faulthandler.dump_traceback_later({seconds}, exit=True)
"""


def run_workers(script, workers, arguments=(), seconds=100, environ=None, fresh=False):
    """Runs a script's file in `workers` processes; returns the launcher's exit status.

    With `fresh=True` they are no forks of one process, and each has another seed of `hash()`.
    """
    interpreter = [sys.executable] if fresh else python()
    with _environment({"PYTHONPATH": str(ROOT), **(environ or {})}):
        return launch([*interpreter, "-c", bounded(script, seconds), *map(str, arguments)], workers)


def run_separately(script, workers, arguments=(), seconds=100):
    """The same without a launcher that stops the others; returns each one's (status, output)."""
    *ports, control = free_ports(workers + 1)
    addresses = [f"127.0.0.1:{port}" for port in ports]
    processes = []
    for rank in range(workers):
        config = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": rank}}
        processes.append(
            subprocess.Popen(
                [*python(), "-c", bounded(script, seconds), *map(str, arguments)],
                env={
                    **os.environ,
                    "PYTHONPATH": str(ROOT),
                    "TF_CONFIG": json.dumps(config),
                    CONTROL_PORT: str(control),
                },
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    outputs = [process.communicate()[0] for process in processes]
    return [(p.returncode, output) for p, output in zip(processes, outputs)], addresses


needs_horovod = pytest.mark.skipif(
    importlib.util.find_spec("horovod") is None,
    reason="Horovod is not installed; scripts/build_horovod.sh installs it",
)


def run_under_horovod(script, workers, arguments=(), seconds=100):
    """Runs a script's file under `horovodrun`; returns its status and output."""
    launcher = "from horovod.runner.launch import run_commandline; run_commandline()"
    command = [*python(), "-c", launcher, "-np", str(workers)]
    done = subprocess.run(
        [*command, *python(), "-c", bounded(script, seconds), *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    print(done.stdout)
    return done.returncode, done.stdout


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
