"""A benchmark's configuration, measured in a process of its own."""

import dataclasses
import json
import os
import subprocess
import sys


def measure(script, configuration, environment, python=sys.executable):
    """Runs `script --measure` on a configuration; returns the values that it prints last."""
    arguments = ["--measure", json.dumps(dataclasses.asdict(configuration))]
    process = subprocess.run(
        [str(python), script, *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    if process.returncode:
        raise RuntimeError(f"{configuration} failed:\n{process.stderr[-4000:]}")
    return json.loads(process.stdout.splitlines()[-1])
