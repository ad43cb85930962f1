"""A benchmark's configuration, measured in a process of its own."""

import dataclasses
import json
import os
import subprocess
import sys

PYTHON = (sys.executable,)


def main(parser, configuration_class, measure_here, run):
    """Runs a benchmark, or with `--measure JSON` one configuration, in this process."""
    parser.add_argument("--measure", metavar="JSON", help="measure one configuration, here")
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure_here(configuration_class(**json.loads(arguments.measure)))))
    else:
        run(arguments)


def measure(script, configuration, environment, python=PYTHON):
    """Runs `script --measure` by the command `python`; returns the values that it prints last."""
    arguments = ["--measure", json.dumps(dataclasses.asdict(configuration))]
    process = subprocess.run(
        [*python, script, *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    if process.returncode:
        raise RuntimeError(f"{configuration} failed:\n{process.stderr[-4000:]}")
    return json.loads(process.stdout.splitlines()[-1])
