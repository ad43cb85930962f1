"""Fresh Python processes without the seconds that it takes to import TensorFlow.

A server imports TensorFlow and Keras once, without starting TensorFlow's runtime, and forks itself
for each process that a test asks for. A small client stands for that process: it has its output,
ends as it ends, and takes it along when it is killed. What a process reads of its environment when
it starts, the server has to be started with. On other backends a process starts anew.

Forks share one seed of `hash()`. Where the order of a set of strings may differ between workers,
test with `sys.executable`.
"""

import atexit
import functools
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import keras

ROOT = Path(__file__).parents[2]
_CLIENT = Path(__file__).with_name("client.py")


def python(**environ: str) -> list[str]:
    """A command for `[*python(), "-c", code, ...]` and `[*python(), script, ...]`.

    Its processes are forks of one that started with `environ`, as settings of malloc need it.
    """
    if keras.backend.backend() != "tensorflow":
        return ["env", *(f"{k}={v}" for k, v in environ.items()), sys.executable]
    return [sys.executable, "-I", "-S", str(_CLIENT), _address(**environ)]


@functools.cache
def _address(**environ):
    folder = tempfile.TemporaryDirectory(prefix="warm-")
    address = f"{folder.name}/socket"
    # It ends with its standard input, so that it does not outlive this process.
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.warm.server", address],
        cwd=ROOT,
        env={**os.environ, **environ},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    atexit.register(folder.cleanup)
    atexit.register(server.stdin.close)
    if server.stdout.readline() != b"ready\n":
        raise RuntimeError("The server of warm processes did not start.")
    return address
