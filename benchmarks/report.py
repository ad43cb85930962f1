"""Tables and goals, from measurements alone."""

import dataclasses
import statistics

from measurement import CONTESTANTS, Measurement, plain_of
from tables import table
from workloads import WORKLOADS

MIB = 2**20
BEGIN, END = "<!-- benchmark -->", "<!-- /benchmark -->"


@dataclasses.dataclass(frozen=True)
class Results:
    """A run of the benchmark, as far as it has come."""

    date: str
    machine: dict
    commit: str | None = None  # of the code, where that is known
    versions: dict = dataclasses.field(default_factory=dict)
    seconds: float = 0.0
    measurements: list[Measurement] = dataclasses.field(default_factory=list)
    failures: list[str] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class Goal:
    """A figure and what it should be; `None` where it was not measured."""

    name: str
    figure: float | None
    limit: float
    percent: bool = False

    @property
    def met(self):
        return None if self.figure is None else self.figure <= self.limit


@dataclasses.dataclass(frozen=True)
class Series:
    """One figure of one case, by workload, contestant, depth and round."""

    rounds: dict[tuple[str, str, int], dict[int, float]]

    def median(self, workload, contestant, depth):
        found = self.rounds.get((workload, contestant, depth))
        return statistics.median(found.values()) if found else None

    def ratio(self, workload, contestant, other, depth):
        """Median of the ratios within a round, so that both saw the same machine."""
        a = self.rounds.get((workload, contestant, depth), {})
        b = self.rounds.get((workload, other, depth), {})
        ratios = [a[r] / b[r] for r in a.keys() & b.keys() if b[r]]
        return statistics.median(ratios) if ratios else None

    def depths(self, workload=None, contestant=None):
        return sorted(
            {d for w, c, d in self.rounds if workload in (None, w) and contestant in (None, c)}
        )

    def workloads(self):
        return [w for w in WORKLOADS if any(key[0] == w for key in self.rounds)]

    def contestants(self, workload):
        return [c for c in CONTESTANTS if any(key[:2] == (workload, c) for key in self.rounds)]

    def deepest(self, workload):
        return max(self.depths(workload), default=0)

    def judged_depth(self, workload):
        """The depth with the most rounds; of several, the deepest."""

        def rounds(depth):
            return max(
                len(r) for (w, _, d), r in self.rounds.items() if (w, d) == (workload, depth)
            )

        return max(self.depths(workload), key=lambda depth: (rounds(depth), depth))


def series(measurements, case, figure):
    """The figure named `figure` of all measurements that have it."""
    rounds = {}
    for m in measurements:
        c, value = m.configuration, getattr(m, figure)
        if c.case == case and value is not None:
            key = c.workload, c.contestant, c.depth
            rounds.setdefault(key, {})[c.round] = value
    return Series(rounds)


def divide(a, b):
    return None if a is None or not b else a / b


def bytes_per_block(activation, workload, contestant):
    """What a block adds, from the smallest to the largest depth; `None` with one depth."""
    depths = activation.depths(workload, contestant)
    if len(depths) < 2:
        return None
    first, last = depths[0], depths[-1]
    added = activation.median(workload, contestant, last) - activation.median(
        workload, contestant, first
    )
    return added / (last - first)


def outputs(activation, workload, contestant):
    """Activation memory of the deepest stack, in tensors of the size of its output."""
    depth = activation.deepest(workload)
    return divide(activation.median(workload, contestant, depth), WORKLOADS[workload].output_bytes)


def few_blocks(measurements):
    """Activation memory of plain training of one block and of two."""
    return series(measurements, "few blocks", "activation_bytes")


def few_blocks_depths(workload):
    """How many blocks of a stack are one block of the network, and two."""
    kinds = WORKLOADS[workload].kinds
    return kinds, 2 * kinds


def memory_goals(activation, few):
    for workload in activation.workloads():
        mine = activation.median(workload, "reversible", activation.deepest(workload))
        two = few.median(workload, "none", few_blocks_depths(workload)[1])
        yield Goal(
            f"{workload}: activation bytes of a deep stack, "
            "over plain training of two blocks and an output",
            divide(mine, two and two + WORKLOADS[workload].output_bytes),
            1.0,
        )
        if len(activation.depths(workload)) > 1:
            mine, plain = (bytes_per_block(activation, workload, c) for c in ("reversible", "none"))
            yield Goal(
                f"{workload}: activation bytes added per block, of mode none's",
                divide(mine, plain),
                0.01,
                percent=True,
            )
    for workload in ("dense-without-dropout", "convolutional"):
        for other, limit in ("revlib", 0.7), ("memcnn", 0.5):
            yield Goal(
                f"{workload}: activation bytes of a deep stack in outputs, "
                f"over {CONTESTANTS[other]}'s",
                divide(*(outputs(activation, workload, c) for c in ("reversible", other))),
                limit,
            )


def time_goals(seconds):
    for workload in seconds.workloads():
        if workload == "dense-without-dropout":
            continue
        depth = seconds.judged_depth(workload)
        overhead = seconds.ratio(workload, "reversible", "none", depth)
        remat = seconds.ratio(workload, "reversible", "keras.remat", depth)
        yield Goal(f"{workload}, {depth} blocks: step, reversible over none", overhead, 1.25)
        yield Goal(f"{workload}, {depth} blocks: step, reversible over keras.remat", remat, 1.0)
        for other in "revlib", "memcnn":
            theirs = seconds.ratio(workload, other, "torch", depth)
            yield Goal(
                f"{workload}, {depth} blocks: step over plain, over that of {CONTESTANTS[other]}",
                divide(overhead, theirs),
                1.0,
            )


def first_step_goals(first):
    def at(depth):
        return first.median("dense", "reversible", depth)

    yield Goal("first step of reversible, 256 blocks over 8", divide(at(256), at(8)), 1.5)
    yield Goal(
        "first step at 64 blocks, reversible over the plain Keras model's",
        first.ratio("dense", "reversible", "keras-default", 64),
        0.3,
    )


def goals(measurements):
    """What the benchmark is to show, and whether it does."""
    return [
        *time_goals(series(measurements, "time", "step_seconds")),
        *memory_goals(series(measurements, "memory", "activation_bytes"), few_blocks(measurements)),
        *first_step_goals(series(measurements, "first step", "first_step_seconds")),
    ]


# Tables.


def shown(value, form="{:.2f}"):
    return "" if value is None else form.format(value)


def named_rows(figures):
    """Workload, contestant and the first two cells of each row."""
    for workload in figures.workloads():
        for number, contestant in enumerate(figures.contestants(workload)):
            yield workload, contestant, ["" if number else workload, CONTESTANTS[contestant]]


def memory_table(measurements):
    activation = series(measurements, "memory", "activation_bytes")
    peak = series(measurements, "memory", "peak_bytes")
    gradients = series(measurements, "memory", "gradient_bytes")
    depths = activation.depths()
    header = ["blocks", "contestant", *(f"MiB at {d}" for d in depths)]
    header += ["MiB added per block", "of plain's", "in outputs", "ordinary peak", "gradients"]
    rows = []
    for workload, contestant, cells in named_rows(activation):
        added = bytes_per_block(activation, workload, contestant)
        plain = bytes_per_block(activation, workload, plain_of(contestant))
        levels = [activation.median(workload, contestant, d) for d in depths]
        deepest = activation.deepest(workload)
        beside = [f.median(workload, contestant, deepest) for f in (peak, gradients)]
        rows.append(
            [
                *cells,
                *(shown(divide(level, MIB), "{:.1f}") for level in levels),
                shown(divide(added, MIB), "{:.3f}"),
                shown(divide(added, plain), "{:.2%}"),
                shown(outputs(activation, workload, contestant), "{:.1f}"),
                *(shown(divide(value, MIB), "{:.1f}") for value in beside),
            ]
        )
    return table(header, rows, 2)


def few_blocks_section(measurements):
    """What TensorFlow takes to differentiate a block, whoever asks it to."""
    few = few_blocks(measurements)
    if not few.rounds:
        return ""
    activation = series(measurements, "memory", "activation_bytes")
    rows = []
    for workload in few.workloads():
        deepest = activation.deepest(workload)
        figures = [few.median(workload, "none", n) for n in few_blocks_depths(workload)]
        figures.append(activation.median(workload, "reversible", deepest))
        megabytes = (shown(divide(value, MIB), "{:.1f}") for value in figures)
        rows.append([workload, *megabytes, str(deepest)])
    header = [
        "blocks",
        "plain, one block, MiB",
        "plain, two, MiB",
        "reversible, MiB",
        "blocks of it",
    ]
    return f"""\
Beside plain training of one block and of two, the least that TensorFlow's gradients of these
blocks take. A block of the transformer is attention and feed-forward, two of the stack's.

{table(header, rows, 1)}
"""


def time_table(measurements):
    seconds = series(measurements, "time", "step_seconds")
    depths = seconds.depths()
    header = ["blocks", "contestant", *(f"s at {d}" for d in depths)]
    header += [f"over plain at {d}" for d in depths]
    rows = []
    for workload, contestant, cells in named_rows(seconds):
        plain = plain_of(contestant)
        rows.append(
            [
                *cells,
                *(shown(seconds.median(workload, contestant, d), "{:.3f}") for d in depths),
                *(shown(seconds.ratio(workload, contestant, plain, d)) for d in depths),
            ]
        )
    return table(header, rows, 2)


def recomputation_section(measurements):
    """What any method pays that computes each block again."""
    seconds = series(measurements, "time", "step_seconds")
    rows = []
    for workload in seconds.workloads():
        depth = seconds.judged_depth(workload)
        forward = seconds.ratio(workload, "forward", "none", depth)
        mine = seconds.ratio(workload, "reversible", "none", depth)
        if forward and mine:
            figures = forward, 1 + forward, mine, mine / (1 + forward)
            rows.append([workload, str(depth), *(shown(figure) for figure in figures)])
    if not rows:
        return ""
    header = ["blocks", "depth", "forward pass over a plain step"]
    header += ["plain step and forward pass", "reversible", "of those"]
    return f"""\
A reversible step computes all of the forward pass once more, since a block's whole output goes
into the rebuilding of its input. What that alone would make of a plain step, beside what the
reversible one takes:

{table(header, rows, 1)}
"""


def first_step_table(measurements):
    first = series(measurements, "first step", "first_step_seconds")
    build = series(measurements, "first step", "build_seconds")
    depths = first.depths()
    header = ["blocks", "contestant", *(f"s at {d}" for d in depths)]
    header += [f"build s at {d}" for d in depths]
    rows = [
        [
            *cells,
            *(shown(first.median(workload, contestant, d), "{:.1f}") for d in depths),
            *(shown(build.median(workload, contestant, d), "{:.1f}") for d in depths),
        ]
        for workload, contestant, cells in named_rows(first)
    ]
    return table(header, rows, 2)


def goal_table(all_goals):
    verdicts = {None: "not measured", True: "yes", False: "**no**"}
    rows = []
    for goal in all_goals:
        form = "{:.2%}" if goal.percent else "{:.2f}"
        limit = f"{goal.limit:.0%}" if goal.percent else f"{goal.limit:g}"
        rows.append([goal.name, f"at most {limit}", shown(goal.figure, form), verdicts[goal.met]])
    return table(["figure", "goal", "measured", "met"], rows, 1)


def first_step_section(measurements):
    if not any(m.configuration.case == "first step" for m in measurements):
        return ""
    jit = {m.jit_compiled for m in measurements if m.configuration.contestant == "keras-default"}
    default = " Keras's default compile used XLA." if True in jit else ""
    if jit == {False}:
        default = " Keras's default compile came out without XLA here."
    return f"""\
### Time of the first step

With a small batch, so that tracing and compiling are what takes the time. Building the layers
is counted apart.{default}

{first_step_table(measurements)}"""


def markdown(results):
    """The whole report."""
    measurements, machine = results.measurements, results.machine
    rounds = max((m.configuration.round + 1 for m in measurements), default=0)
    rounds = "One round." if rounds == 1 else f"Up to {rounds} rounds."
    memory = f"{machine['memory_bytes'] / 2**30:.0f} GiB" if machine.get("memory_bytes") else "?"
    versions = ", ".join(f"{name} {version}" for name, version in results.versions.items())
    commit = f", commit {results.commit}" if results.commit else ""
    used = [w for w in WORKLOADS if any(m.configuration.workload == w for m in measurements)]
    blocks = "\n".join(
        f"- {name}: {WORKLOADS[name].blocks}; input {WORKLOADS[name].input_shape}" for name in used
    )
    failures = "".join(f"- failed: {failure}\n" for failure in results.failures)
    return (
        f"""\
{results.date}, {machine["cpu"]}, {machine["cores"]} cores, {memory} of memory, two threads.
Python {machine["python"]}, {versions}{commit}. {rounds} {results.seconds / 60:.0f} minutes.

{blocks}

Input shapes have the batch in them; a block sees half of the channels.

### Goals

{goal_table(goals(measurements))}

### Activation memory

The peak of a step over the level between steps, with each gradient applied as it arrives. That
is what TensorFlow does. PyTorch's `backward()` ends with all gradients; its contestants are
measured in steps that apply each one in a hook. "Plain" is mode none on Keras and plain autograd
on PyTorch. The last three columns are of the deepest stack: the memory over the bytes of its
output, the peak of ordinary steps in MiB, and one set of gradients in MiB.

{memory_table(measurements)}

{few_blocks_section(measurements)}
### Time of a step

{time_table(measurements)}

{recomputation_section(measurements)}
{first_step_section(measurements)}

{failures}""".rstrip()
        + "\n"
    )


# A page that holds the report.


def has_markers(page):
    return page.exists() and page.read_text().partition(BEGIN)[2].count(END) == 1


def between_markers(page, text):
    """The page with the text in the place of what stood between the markers."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{text.strip()}\n\n{END}{after}"
