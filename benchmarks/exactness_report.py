"""What the exactness benchmark measures and finds, and its table."""

import dataclasses
import json
import math


@dataclasses.dataclass(frozen=True)
class Configuration:
    """What one process measures.

    Attributes:
        case: What it belongs to.
        coupling: A key of `COUPLINGS`.
        blocks: How many there are.
        kind: A key of `KINDS`, what a block is; or the network.
        policy: The global dtype policy.
        streams: The dtype of the streams.
        scaled: Whether the blocks' last kernels are divided by the root of `blocks`.
        graph: Whether the step is a `tf.function`.
        onednn: Whether TensorFlow uses oneDNN.
        reference: A dtype policy in which mode "none" is compared too.
    """

    case: str
    coupling: str
    blocks: int
    kind: str = "dense"
    policy: str = "float32"
    streams: str = "float32"
    scaled: bool = False
    graph: bool = False
    onednn: bool = False
    reference: str | None = None

    @property
    def title(self):
        options = {
            self.kind: self.kind != "dense",
            self.policy: self.policy != "float32",
            f"{self.streams} streams": self.policy != "float32" or self.streams != "float32",
            "scaled weights": self.scaled,
        }
        return ", ".join([self.coupling, *(name for name, holds in options.items() if holds)])

    @property
    def execution(self):
        return ("graph" if self.graph else "eager") + ", oneDNN" * self.onednn


@dataclasses.dataclass(frozen=True)
class Figure:
    """One number or word, with its goal: to stay below a bound, or to equal a value."""

    name: str
    value: float | int | bool | str
    below: float | None = None
    equals: float | int | bool | str | None = None

    @property
    def goal(self):
        if self.below is not None:
            return f"below {self.below:g}"
        return "" if self.equals is None else shown(self.equals)

    @property
    def met(self):
        if self.below is not None:
            return bool(self.value < self.below)
        return None if self.equals is None else self.value == self.equals


@dataclasses.dataclass(frozen=True)
class Measurement:
    """A configuration, its figures, and the time that its process took."""

    configuration: Configuration
    figures: list
    seconds: float = math.nan


def measurement_from(values):
    configuration = Configuration(**values["configuration"])
    figures = [Figure(**figure) for figure in values["figures"]]
    return Measurement(configuration, figures, values["seconds"])


def shown(value):
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.2g}" if value == 0 or 1e-3 <= abs(value) < 1e4 else f"{value:.1e}"
    return str(value)


def verdict(figure):
    return {None: "", True: "yes", False: "**no**"}[figure.met]


def markdown(measurements):
    rows = [
        ["case", "stack", "blocks", "run", "figure", "value", "goal", "met"],
        ["---", "---", "---:", "---", "---", "---:", "---", "---"],
    ]
    for m in measurements:
        c = m.configuration
        head = [c.case, c.title, str(c.blocks), c.execution]
        for figure in m.figures:
            rows.append([*head, figure.name, shown(figure.value), figure.goal, verdict(figure)])
            head = [""] * len(head)
    table = "\n".join("| " + " | ".join(row) + " |" for row in rows)
    goals = [(m, f) for m in measurements for f in m.figures if f.met is not None]
    missed = [
        f"- missed: {m.configuration.title}, {m.configuration.blocks} blocks, "
        f"{m.configuration.execution}: {f.name} {shown(f.value)} (goal: {f.goal})\n"
        for m, f in goals
        if not f.met
    ]
    minutes = math.ceil(sum(m.seconds for m in measurements) / 60)
    return f"""\
How exact rebuilt values and gradients are. Gradient errors are those of mode "reversible"
against mode "none" with the same weights, relative to the norm of all gradients together.

{table}

{len(goals) - len(missed)} of {len(goals)} goals met; measured in {minutes} minutes.

{"".join(missed)}"""


def write(measurements, out):
    """Writes the table and the numbers."""
    out.mkdir(parents=True, exist_ok=True)
    text = markdown(measurements)
    (out / "exactness.md").write_text(text)
    values = [
        {
            "configuration": dataclasses.asdict(m.configuration),
            "figures": [{**dataclasses.asdict(f), "met": f.met} for f in m.figures],
            "seconds": m.seconds,
        }
        for m in measurements
    ]
    (out / "exactness.json").write_text(json.dumps({"measurements": values}, indent=2) + "\n")
    return text
