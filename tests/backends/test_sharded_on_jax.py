"""`keras.distribution` on virtual devices and on processes trains as one device does."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]


def trained(*arguments, processes=1, devices=1):
    """What each process printed."""
    flags = {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
    command = ["timeout", "200", sys.executable, "-m", "tests.backends.sharded", *arguments]
    if processes > 1:
        with socket.create_server(("127.0.0.1", 0)) as server:
            command += [f"127.0.0.1:{server.getsockname()[1]}", str(processes)]
    running = [
        subprocess.Popen(
            command + [str(i)] * (processes > 1),
            cwd=ROOT,
            env={**os.environ, "JAX_PLATFORMS": "cpu", **flags},
            stdout=subprocess.PIPE,
            text=True,
        )
        for i in range(processes)
    ]
    outputs = [process.communicate()[0] for process in running]
    assert not any(process.returncode for process in running)
    return [json.loads(output.splitlines()[-1]) for output in outputs]


@pytest.fixture(scope="module")
def expected():
    return trained("one")[0]["losses"]


@pytest.mark.parametrize(("kind", "shards"), [("data", 1), ("model", 4)])
@pytest.mark.parametrize("processes", [1, 2])
def test_losses_are_those_of_one_device(kind, shards, processes, expected):
    for found in trained(kind, processes=processes, devices=4 // processes):
        np.testing.assert_allclose(found["losses"], expected, rtol=1e-6)
        assert found["shards"] == shards  # of the first kernel
