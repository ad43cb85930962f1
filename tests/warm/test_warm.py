"""A warm process is as one that Python starts."""

import os
import signal
import subprocess

import pytest

from tests.warm import python

pytestmark = pytest.mark.tensorflow("warm processes have TensorFlow")


def run(code, *arguments, **options):
    command = [*python(), "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, **options)


def test_arguments_streams_folder_and_environment(tmp_path):
    code = (
        "import os, sys; print(sys.argv, input(), os.getcwd(), sys.path[:2])\n"
        "print(os.environ['A'], 'HOME' in os.environ)"
    )
    environment = {"PYTHONPATH": "/elsewhere", "A": "1"}
    found = run(code, "x", "é y", input="line", cwd=tmp_path, env=environment).stdout
    assert found == f"['-c', 'x', 'é y'] line {tmp_path} ['', '/elsewhere']\n1 False\n"


def test_a_script_is_the_main_module(tmp_path):
    (tmp_path / "beside.py").write_text("number = 7")
    script = tmp_path / "script.py"
    script.write_text("import sys, beside\nprint(__name__, sys.argv[1:], beside.number)")
    found = subprocess.run([*python(), script, "x"], capture_output=True, text=True)
    assert found.stdout == "__main__ ['x'] 7\n"


@pytest.mark.parametrize(
    ("code", "status", "error"),
    [
        ("pass", 0, ""),
        ("import sys; sys.exit(3)", 3, ""),
        ("raise ValueError('no')", 1, "ValueError: no"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL, ""),
    ],
)
def test_it_ends_with_its_status(code, status, error):
    found = run(code)
    assert found.returncode == status
    assert error in found.stderr


def test_it_is_killed_with_its_client():
    code = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"
    with subprocess.Popen([*python(), "-c", code], stdout=subprocess.PIPE) as client:
        worker = int(client.stdout.readline())
        os.kill(worker, 0)
        client.kill()
        assert client.stdout.read() == b""  # ends when nobody can write to it any more


def test_tensorflow_has_not_started():
    code = (
        "import sys; print('tensorflow' in sys.modules, 'revkeras' in sys.modules)\n"
        "import tensorflow as tf; tf.config.threading.set_inter_op_parallelism_threads(3)"
    )
    found = run(code)
    assert (found.returncode, found.stdout) == (0, "True False\n")
