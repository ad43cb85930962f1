"""Starts a script in several processes on this machine: `python -m revkeras.distribute.launch`."""

import argparse
import glob
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence

from revkeras.distribute.cluster import CONTROL_PORT

_HOST = "127.0.0.1"
_GPUS = "/dev/nvidia[0-9]*"
_VISIBLE = "CUDA_VISIBLE_DEVICES"
# A worker that is told to stop has this long before it is killed. In seconds.
_GRACE = 5.0


def launch(command: Sequence[str], workers: int) -> int:
    """Runs `command` in `workers` processes with `TF_CONFIG` for each, until all are through.

    Their output is passed on line by line, with the rank in front. When one of
    them fails, or on Ctrl-C, the others are stopped. Where the machine has NVIDIA GPUs and
    `CUDA_VISIBLE_DEVICES` is not set, each process sees one of them.

    Args:
        command: List of strings, the program and its arguments.
        workers: Integer, how many processes.

    Returns:
        The exit status: 0 if all workers ended well, else that of the first that failed, and
        128 plus the signal's number if a signal ended it.

    Raises:
        ValueError: if `workers` is less than 1.
    """
    if workers < 1:
        raise ValueError(
            f"Invalid value for argument `workers`: expected at least 1, received {workers}."
        )
    *ports, control = free_ports(workers + 1)
    cluster = {"worker": [f"{_HOST}:{port}" for port in ports]}
    processes, readers = [], []
    handler = _on_termination()
    try:
        for rank in range(workers):
            task = {"type": "worker", "index": rank}
            environ = {
                **os.environ,
                **_own_gpu(rank),
                "TF_CONFIG": json.dumps({"cluster": cluster, "task": task}),
                CONTROL_PORT: str(control),
                "PYTHONUNBUFFERED": "1",
            }
            # A session of its own: Ctrl-C reaches this process alone, which passes it on.
            process = subprocess.Popen(
                command,
                env=environ,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
            processes.append(process)
            for source, target in (process.stdout, sys.stdout), (process.stderr, sys.stderr):
                reader = threading.Thread(target=_forward, args=(rank, source, target), daemon=True)
                reader.start()
                readers.append(reader)
        status = _wait(processes)
    except KeyboardInterrupt:
        print("Interrupted: stopping all workers.", file=sys.stderr)
        _stop(processes, signal.SIGINT)
        status = 128 + signal.SIGINT
    except _Terminated:
        print("Terminated: stopping all workers.", file=sys.stderr)
        status = 128 + signal.SIGTERM
    finally:
        _stop(processes, signal.SIGTERM)
        if handler is not None:
            signal.signal(signal.SIGTERM, handler)
        for reader in readers:
            reader.join(timeout=_GRACE)
    return status


def _own_gpu(rank: int) -> dict[str, str]:
    """What shows a process one of the machine's GPUs; TensorFlow would take the first in each."""
    n_gpus = len(glob.glob(_GPUS))
    if n_gpus == 0 or _VISIBLE in os.environ:
        return {}
    return {_VISIBLE: str(rank % n_gpus)}


class _Terminated(BaseException):
    """This process was told to stop; its workers would go on without it."""


def _on_termination():  # noqa: ANN202  whatever handled it before
    """Has SIGTERM raise; signals reach the main thread alone."""
    if threading.current_thread() is not threading.main_thread():
        return None

    def terminate(*_: object) -> None:
        raise _Terminated

    return signal.signal(signal.SIGTERM, terminate)


def _wait(processes: Sequence[subprocess.Popen]) -> int:
    running = dict(enumerate(processes))
    while running:
        for rank, process in list(running.items()):
            code = process.poll()
            if code is None:
                continue
            del running[rank]
            if code != 0:
                print(f"Worker {rank} {_ending(code)}: stopping all workers.", file=sys.stderr)
                return code if code > 0 else 128 - code
        time.sleep(0.05)
    return 0


def _ending(code: int) -> str:
    if code > 0:
        return f"failed with exit status {code}"
    return f"was ended by {signal.Signals(-code).name}"


def _stop(processes: Sequence[subprocess.Popen], how: signal.Signals) -> None:
    running = [process for process in processes if process.poll() is None]
    for process in running:
        process.send_signal(how)
        process.send_signal(signal.SIGCONT)  # a stopped process acts on signals when it goes on
    deadline = time.monotonic() + _GRACE
    for process in running:
        try:
            process.wait(max(deadline - time.monotonic(), 0))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _forward(rank: int, source, target) -> None:
    """Passes lines on; what a progress bar redraws (`\\r`) as well."""
    for line in iter(source.readline, b""):
        text = line.decode(errors="replace")
        target.write(f"[{rank}] {text}" if text.endswith("\n") else f"[{rank}] {text}\n")
        target.flush()


def free_ports(count: int) -> list[int]:
    """Ports of this machine's loopback address that nobody listens on now."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind((_HOST, 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m revkeras.distribute.launch",
        description="Runs a Python script in several processes on this machine, as one cluster.",
    )
    parser.add_argument("--workers", type=int, required=True, help="how many processes")
    parser.add_argument("script", help="the script that each process runs")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="the script's own arguments")
    options = parser.parse_args(arguments)
    if options.workers < 1:
        parser.error(f"--workers: expected at least 1, received {options.workers}")
    return launch([sys.executable, options.script, *options.arguments], options.workers)


if __name__ == "__main__":
    sys.exit(main())
