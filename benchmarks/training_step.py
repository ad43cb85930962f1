"""What a training step costs: activation memory, time, and the time until the first is done.

    python benchmarks/training_step.py --quick --out out

The memory modes of `ReversibleSequential`, `keras.remat`, and on PyTorch plain autograd,
`torch.utils.checkpoint`, RevLib and MemCNN train the same blocks with SGD, each in a process
of its own, one after another; contestants vary fastest, in several rounds where time is
judged, so that what slows the machine for a while slows them all. Figures are medians over
rounds of each process's median step, and ratios are medians of each round's ratio.

Memory and time are measured in processes of their own: what gives freed tensors back to the
system at once, so that memory can be seen, makes every step slower.

Activation bytes are the peak of a step over the level between steps, which holds the
model's and the optimizer's state and what compilers left behind. TensorFlow applies each
gradient as it arrives, and one that waits counts; PyTorch's `backward()` ends with all of
them, so further steps there apply each one in a hook, and the peak of those is taken.
The results name the peak of the ordinary steps and the bytes of one set of gradients too.

PyTorch and its libraries live in an environment of their own (`make bench-full` makes it);
without it they are left out. Writes `benchmark.json`, `benchmark.md` and plots. Linux only.
"""

import argparse
import dataclasses
import datetime
import itertools
import json
import statistics
import sys
import time
from pathlib import Path

import fresh_process
import machine
import plots
import report
from measurement import (
    CONTESTANTS,
    PYTORCH_CONTESTANTS,
    Configuration,
    Measurement,
    as_values,
    from_values,
)
from step_cost import memory
from workloads import WORKLOADS

ROOT = Path(__file__).parents[1]
ENVIRONMENT = {
    "TF_CPP_MIN_LOG_LEVEL": "2",
    "TF_NUM_INTRAOP_THREADS": "2",
    "TF_NUM_INTEROP_THREADS": "2",
    "OMP_NUM_THREADS": "2",
    # Spinning threads of PyTorch slow each other many times where others use the cores too.
    "OMP_WAIT_POLICY": "PASSIVE",
}
FIRST_STEP_ALONE = ("keras-default", "keras-jit", "weights-alone")
TIME_CONTESTANTS = [name for name in CONTESTANTS if name not in FIRST_STEP_ALONE]
MEMORY_CONTESTANTS = [name for name in TIME_CONTESTANTS if name != "forward"]
# For the memory of the reversible libraries where none keeps masks or seeds.
MASKLESS_CONTESTANTS = ("reversible", "none", "revlib", "memcnn", "torch")
FIRST_STEP_CONTESTANTS = ("reversible", "none", *FIRST_STEP_ALONE)
WARM_UP_STEPS = 2
FIRST_STEP_WORKLOAD, FIRST_STEP_BATCH = "dense", 8
SLOW_FIRST_STEP_SECONDS = 60


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Depths and how many rounds each is measured in; memory repeats, time needs several."""

    memory_rounds: dict[int, int]
    time_rounds: dict[int, int]
    first_step_rounds: dict[int, int]
    first_step_contestants: tuple[str, ...]


FULL = Schedule({8: 1, 64: 1}, {8: 1, 32: 5}, {8: 3, 64: 3, 256: 1}, FIRST_STEP_CONTESTANTS)
QUICK = Schedule({4: 1, 12: 1}, {4: 1, 12: 1}, {8: 1, 64: 1}, ("reversible", "keras-default"))


def measure(configuration):
    """Measures a configuration in this process; returns the versions of what it used too."""
    if configuration.contestant in PYTORCH_CONTESTANTS:
        import pytorch_contestants as contestants
    else:
        import keras_contestants as contestants

    start = time.perf_counter()
    training = contestants.build(configuration)
    built = time.perf_counter()
    training.step()
    stepped = time.perf_counter()
    found = Measurement(
        configuration,
        built - start,
        stepped - built,
        training.jit_compiled,
        training.gradient_bytes,
        training.apply_gradients_at_once is not None,
    )
    if configuration.case == "time":
        found = dataclasses.replace(
            found, step_seconds=median_seconds(training.step, configuration.steps)
        )
    elif configuration.case != "first step":
        cost = memory.measure_steps(training.step, steps=configuration.steps)
        peak = activations = cost.activation_bytes
        if training.apply_gradients_at_once:
            training.apply_gradients_at_once()
            activations = memory.measure_steps(training.step, steps=1).activation_bytes
        found = dataclasses.replace(
            found,
            peak_bytes=peak,
            activation_bytes=activations,
        )
    return found, contestants.VERSIONS


def median_seconds(step, steps):
    """The median duration of a step, in seconds."""
    for _ in range(WARM_UP_STEPS):
        step()
    seconds = []
    for _ in range(steps):
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def measure_in_fresh_process(configuration, pytorch_python):
    in_pytorch = configuration.contestant in PYTORCH_CONTESTANTS
    python = [str(pytorch_python) if in_pytorch else sys.executable]
    of_memory = memory.ENVIRONMENT if configuration.case in ("memory", "few blocks") else {}
    environment = {**ENVIRONMENT, **of_memory}
    values = fresh_process.measure(__file__, configuration, environment, python)
    return from_values(values["measurement"]), values["versions"]


def step_configurations(case, workloads, contestants, rounds, steps):
    """Contestants vary fastest. Blocks without dropout are measured at the greatest depth alone."""
    rows = []
    for workload, depth in itertools.product(workloads, rounds):
        maskless = workload == "dense-without-dropout"
        if maskless and depth != max(rounds):
            continue
        batch = WORKLOADS[workload].input_shape[0]
        competing = MEMORY_CONTESTANTS if case == "memory" else TIME_CONTESTANTS
        if maskless:
            competing = MASKLESS_CONTESTANTS
        rows += [
            Configuration(case, workload, depth, round_, contestant, batch, steps)
            for round_ in range(rounds[depth])
            for contestant in contestants
            if contestant in competing
        ]
    return rows


def few_block_configurations(workloads, contestants, steps):
    """Plain training of one block and of two, beside which a deep stack's memory is judged."""
    return [
        Configuration("few blocks", workload, depth, 0, "none", batch, steps)
        for workload in workloads
        for batch in [WORKLOADS[workload].input_shape[0]]
        for depth in report.few_blocks_depths(workload)
        if "none" in contestants
    ]


def first_step_configurations(contestants, rounds):
    return [
        Configuration(
            "first step", FIRST_STEP_WORKLOAD, depth, round_, contestant, FIRST_STEP_BATCH, 0
        )
        for depth in rounds
        for round_ in range(rounds[depth])
        for contestant in contestants
    ]


def rounds_by_depth(scheduled, depths, rounds):
    """What is scheduled, where the command line says nothing else."""
    depths = scheduled if depths is None else depths
    return {depth: rounds or scheduled.get(depth, 1) for depth in sorted(depths)}


def slow_at_less_depth(configuration, measurements):
    """Whether a first step is not worth waiting for."""
    return configuration.case == "first step" and any(
        m.configuration.case == "first step"
        and m.configuration.contestant == configuration.contestant
        and m.configuration.depth < configuration.depth
        and m.first_step_seconds > SLOW_FIRST_STEP_SECONDS
        for m in measurements
    )


def described(m):
    """A measurement in a line."""
    if m.step_seconds is not None:
        return f"{m.step_seconds:.3f} s a step"
    if m.activation_bytes is not None:
        return f"{m.activation_bytes / 2**20:.1f} MiB"
    return f"first step {m.first_step_seconds:.1f} s"


def write(results, out):
    """Writes the numbers, the tables and, if it can, the plots; returns the tables."""
    out.mkdir(parents=True, exist_ok=True)
    text = report.markdown(results)
    values = {
        **dataclasses.asdict(results),
        "measurements": [as_values(m) for m in results.measurements],
        "goals": [
            {**dataclasses.asdict(goal), "met": goal.met}
            for goal in report.goals(results.measurements)
        ],
    }
    (out / "benchmark.json").write_text(json.dumps(values, indent=2) + "\n")
    (out / "benchmark.md").write_text(text)
    try:
        plots.write(results.measurements, out)
    except ImportError:
        print("No plots: matplotlib is not installed.", file=sys.stderr)
    return text


def resumed(results, out):
    """What a run that was stopped has found, if it was of the same code on the same machine."""
    found = json.loads((out / "benchmark.json").read_text())
    if found["machine"] != results.machine:
        raise SystemExit(f"{out / 'benchmark.json'}: measured on another machine.")
    if found["commit"] != results.commit:
        raise SystemExit(f"{out / 'benchmark.json'}: measured at commit {found['commit']}.")
    measurements = [from_values(values) for values in found["measurements"]]
    kept = {name: found[name] for name in ("date", "versions", "seconds")}
    return dataclasses.replace(results, measurements=measurements, **kept)


def run(arguments):
    start = time.perf_counter()
    schedule = QUICK if arguments.quick else FULL
    a = arguments
    first_contestants = [c for c in schedule.first_step_contestants if c in a.contestants]
    memory_rounds = rounds_by_depth(schedule.memory_rounds, a.depths, 1)
    time_rounds = rounds_by_depth(schedule.time_rounds, a.depths, a.rounds)
    first_rounds = rounds_by_depth(schedule.first_step_rounds, a.first_step_depths, a.rounds)
    rows = [
        *few_block_configurations(a.workloads, a.contestants, a.steps),
        *step_configurations("memory", a.workloads, a.contestants, memory_rounds, a.steps),
        *step_configurations("time", a.workloads, a.contestants, time_rounds, a.steps),
        *first_step_configurations(first_contestants, first_rounds),
    ]
    today = datetime.date.today().isoformat()
    results = report.Results(today, machine.describe(), machine.commit())
    if arguments.resume:
        results = resumed(results, arguments.out)
        start -= results.seconds
    measured = {m.configuration for m in results.measurements}
    for number, c in enumerate(rows, 1):
        if c in measured:
            continue
        line = f"[{number}/{len(rows)}] {c.case}, {c.workload}, {c.depth} blocks, {c.contestant}: "
        if slow_at_less_depth(c, results.measurements):
            print(f"{line}left out, took over {SLOW_FIRST_STEP_SECONDS} s at less depth")
            continue
        try:
            m, versions = measure_in_fresh_process(c, arguments.pytorch_python)
        except RuntimeError as error:  # the others are worth having
            print(f"{line}failed\n{error}", file=sys.stderr, flush=True)
            results = dataclasses.replace(results, failures=[*results.failures, line[:-2]])
            continue
        results = dataclasses.replace(
            results,
            seconds=time.perf_counter() - start,
            versions={**results.versions, **versions},
            measurements=[*results.measurements, m],
        )
        print(line + described(m), flush=True)
        write(results, arguments.out)
    text = write(results, arguments.out)
    if arguments.docs:
        page = arguments.docs.read_text()
        arguments.docs.write_text(report.between_markers(page, text))
    print("\n" + text)
    return 1 if results.failures else 0


def _depth(text):
    depth = int(text)
    if depth < 2 or depth % 2:
        raise argparse.ArgumentTypeError(
            f"expected an even number of blocks, 2 or more, received {depth}"
        )
    return depth


def _count(text):
    count = int(text)
    if count < 1:
        raise argparse.ArgumentTypeError(f"expected 1 or more, received {count}")
    return count


def parse_arguments(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder for the results")
    parser.add_argument("--quick", action="store_true", help="small depths, one round")
    parser.add_argument(
        "--rounds", type=_count, help="of times, at every depth; default: 5 at 32 blocks"
    )
    parser.add_argument("--steps", type=_count, default=5, help="measured steps a process")
    parser.add_argument("--workloads", nargs="+", choices=WORKLOADS, default=list(WORKLOADS))
    parser.add_argument("--contestants", nargs="+", choices=CONTESTANTS)
    parser.add_argument("--depths", type=_depth, nargs="+", help="of the stacks, in blocks")
    parser.add_argument(
        "--first-step-depths", type=_depth, nargs="*", help="none leaves out the first step"
    )
    parser.add_argument(
        "--pytorch-python",
        type=Path,
        default=ROOT / ".venv-pytorch" / "bin" / "python",
        help="the Python that has PyTorch, RevLib and MemCNN",
    )
    parser.add_argument("--docs", type=Path, help="a page to write the tables into")
    parser.add_argument(
        "--resume", action="store_true", help="go on with a run that was stopped, from `--out`"
    )
    parser.add_argument("--measure", metavar="JSON", help="measure one configuration, here")
    parsed = parser.parse_args(argv)
    if not parsed.pytorch_python.exists() and not parsed.measure:
        asked = [c for c in parsed.contestants or () if c in PYTORCH_CONTESTANTS]
        if asked:
            parser.error(
                f"{', '.join(asked)}: no Python at {parsed.pytorch_python}; `make pytorch` makes it"
            )
        print("Without PyTorch: `make pytorch` makes its environment.", file=sys.stderr)
        parsed.contestants = parsed.contestants or [
            c for c in CONTESTANTS if c not in PYTORCH_CONTESTANTS
        ]
    parsed.contestants = parsed.contestants or list(CONTESTANTS)
    if parsed.docs and not report.has_markers(parsed.docs):
        parser.error(f"{parsed.docs}: expected a page with {report.BEGIN} and {report.END}")
    return parsed


if __name__ == "__main__":
    parsed = parse_arguments()
    if parsed.measure:
        m, versions = measure(Configuration(**json.loads(parsed.measure)))
        print(json.dumps({"measurement": as_values(m), "versions": versions}))
    else:
        sys.exit(run(parsed))
