"""The launcher: what workers are told, what it passes on, and how it ends."""

import signal
import subprocess
import sys

import pytest

from revkeras.distribute.launch import launch, main


def _python(code, workers):
    return launch([sys.executable, "-c", code], workers)


def test_each_worker_knows_its_task_and_its_output_has_its_rank(capsys):
    code = (
        "import json, os, sys; config = json.loads(os.environ['TF_CONFIG']);"
        "print(len(config['cluster']['worker']), config['task']['index']);"
        "print('to stderr', file=sys.stderr)"
    )
    assert _python(code, 3) == 0
    out, err = capsys.readouterr()
    assert sorted(out.splitlines()) == ["[0] 3 0", "[1] 3 1", "[2] 3 2"]
    assert sorted(err.splitlines()) == [f"[{rank}] to stderr" for rank in range(3)]


@pytest.mark.parametrize(
    ("gpus", "given", "seen"),
    [(0, None, "None None None"), (2, None, "0 1 0"), (2, "1", "1 1 1")],
)
def test_each_worker_sees_a_gpu_of_its_own(gpus, given, seen, tmp_path, monkeypatch, capsys):
    for number in range(gpus):
        (tmp_path / f"nvidia{number}").touch()
    (tmp_path / "nvidiactl").touch()
    monkeypatch.setattr("revkeras.distribute.launch._GPUS", f"{tmp_path}/nvidia[0-9]*")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if given:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
    assert _python("import os; print(os.environ.get('CUDA_VISIBLE_DEVICES'))", 3) == 0
    expected = [f"[{rank}] {gpu}" for rank, gpu in enumerate(seen.split())]
    assert sorted(capsys.readouterr().out.splitlines()) == expected


@pytest.mark.parametrize(
    ("failure", "status", "message"),
    [
        ("sys.exit(7)", 7, "Worker 1 failed with exit status 7: stopping all workers."),
        ("os.kill(os.getpid(), 9)", 137, "Worker 1 was ended by SIGKILL: stopping all workers."),
    ],
)
def test_one_failure_stops_all(failure, status, message, capsys):
    code = (
        "import os, sys, time\n"
        f"if '\"index\": 1' in os.environ['TF_CONFIG']: {failure}\n"
        "time.sleep(300)"
    )
    assert _python(code, 3) == status
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("how", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["ctrl-c", "kill"]
)
def test_who_stops_the_launcher_stops_the_workers(how, status):
    worker = (
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit())\n"
        "try:\n    print('ready'); time.sleep(300)\n"
        "except (KeyboardInterrupt, SystemExit):\n    print('stopped')"
    )
    code = (
        "import sys; from revkeras.distribute.launch import launch;"
        f"sys.exit(launch([sys.executable, '-c', {worker!r}], 2))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        text=True,
        # Where the tests run in a shell's background they ignore Ctrl-C, and so would this.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    ready = sorted(process.stdout.readline() for _ in range(2))
    assert ready == ["[0] ready\n", "[1] ready\n"]
    process.send_signal(how)
    out, _ = process.communicate(timeout=60)
    assert sorted(out.splitlines()) == ["[0] stopped", "[1] stopped"]
    assert process.returncode == status


def test_command_line(tmp_path, capsys):
    script = tmp_path / "script.py"
    script.write_text("import sys; print(sys.argv[1:])")
    assert main(["--workers", "1", str(script), "--epochs", "3"]) == 0
    assert capsys.readouterr().out == "[0] ['--epochs', '3']\n"
    with pytest.raises(SystemExit):
        main(["--workers", "0", str(script)])
    with pytest.raises(ValueError, match="`workers`: expected at least 1, received 0"):
        launch(["true"], 0)
