"""Sharded training in several processes on this machine, against its arithmetic and its goals.

    python benchmarks/distributed.py            # about 15 minutes on 2 cores
    python benchmarks/distributed.py --only state peak step_time resume

Prints Markdown tables. Linux only.
"""

import argparse
import contextlib
import io
import json
import os
import random
import sys
import tempfile
from pathlib import Path

from step_cost import memory
from tables import table

from revkeras.distribute.launch import launch

ROOT = Path(__file__).parents[1]
WORKER = Path(__file__).with_name("distributed_worker.py")
RESUMING = ROOT / "tests" / "distribute" / "resuming.py"
MIB = 2**20
STACK = {"width": 256, "hidden": 1024}


def run(workers, script, *arguments):
    """Runs a script in several processes; its output is shown if it should have gone well."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "benchmarks"), os.environ.get("PYTHONPATH", "")])
    os.environ.update(memory.ENVIRONMENT, PYTHONPATH=path, TF_CPP_MIN_LOG_LEVEL="2")
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        status = launch([sys.executable, str(script), *map(str, arguments)], workers)
    return status, output.getvalue()


def measure(workers, **configuration):
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "result.json"
        status, output = run(workers, WORKER, out, json.dumps(configuration))
        if status:
            raise RuntimeError(f"{configuration} failed:\n{output[-4000:]}")
        return json.loads(out.read_text())


def state(workers=4, depth=8):
    rows = []
    for stage in 1, 2, 3:
        m = measure(workers, what="state", stage=stage, depth=depth, batch=8, **STACK)
        share = (workers - 1) / workers * m["parameters"]
        rows.append(
            [
                f"stage {stage}",
                f"{m['held'] / MIB:.2f} MiB",
                f"{m['planned'] / MIB:.2f} MiB",
                f"{m['held'] / m['planned'] - 1:+.1%}",
                f"{m['sent'] / MIB:.2f} MiB",
                f"{m['sent'] / share:.3f}",
                "3" if stage == 3 else "2",
            ]
        )
    header = [f"{workers} workers, AdamW", "held a rank", "arithmetic", "off by", "sent a step"]
    return table([*header, "in (N-1)/N of the parameters", "goal"], rows, 1)


def peak(workers=4, depths=(16, 32, 64)):
    """The state is what wide blocks need beyond narrow ones, whose graphs are as large."""

    def peaks(width, hidden):
        return [
            measure(workers, what="peak", depth=d, batch=8, width=width, hidden=hidden)["peak"]
            for d in depths
        ]

    wide, narrow = peaks(**STACK), peaks(4, 16)
    state = [w - n for w, n in zip(wide, narrow)]
    block = 2 * STACK["width"] * STACK["hidden"] + STACK["hidden"] + 3 * STACK["width"]
    # Parameters, two slots and the gradient, in float32.
    planned = 4 * 4 * block / workers
    rows = []
    for place, depth in enumerate(depths):
        cells = [f"{each[place] / MIB:.1f} MiB" for each in (wide, narrow, state)]
        added = (state[place] - state[place - 1]) / (depth - depths[place - 1]) if place else None
        rows.append([str(depth), *cells, f"{added / MIB:.2f} MiB" if place else ""])
    rows.append(["arithmetic: the block's state over N", "", "", "", f"{planned / MIB:.2f} MiB"])
    header = [
        f"blocks, stage 3, {workers} workers",
        "peak of a rank",
        "narrow blocks, graphs alone",
    ]
    return table([*header, "difference", "added a block"], rows, 1)


def step_time(workers=2):
    m = measure(
        workers, what="step_time", depth=8, width=256, hidden=1024, batch=512, rounds=11, steps=3
    )
    rows = [
        [f"{workers} workers"]
        + [f"{m[name] * 1000:.0f} ms" for name in ("stage 2", "data parallel")]
        + [f"{m['ratio']:.3f}", "1.05"]
    ]
    return table(["step", "stage 2", "data parallel", "median of ratios", "goal"], rows, 1)


def resume(workers=2, times=10):
    same = 0
    steps = []
    for _ in range(times):
        killed = f"{random.randrange(workers)}:{random.randrange(1, 30)}"
        with tempfile.TemporaryDirectory() as folder:
            status, output = run(workers, RESUMING, folder, 2, killed)
            if status != 137:
                raise RuntimeError(f"nobody was killed:\n{output[-4000:]}")
            status, output = run(workers, RESUMING, folder, 2)
        steps.append(killed if status == 0 else f"**{killed}**")
        same += status == 0
    rows = [[f"{times} times", ", ".join(steps), f"{same} of {times}"]]
    header = [f"`kill -9`, {workers} workers, stage 2", "rank:step", "same weights"]
    return table(header, rows, 2)


PARTS = {"state": state, "peak": peak, "step_time": step_time, "resume": resume}


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    for name in parser.parse_args(arguments).only:
        print(f"\n{PARTS[name]()}", flush=True)


if __name__ == "__main__":
    main()
