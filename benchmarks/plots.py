"""Memory, time and first-step time against depth."""

from measurement import CONTESTANTS
from report import MIB, series

STYLES = {
    "reversible": ("#0072b2", "o", "-"),
    "checkpoint": ("#009e73", "s", "-"),
    "keras.remat": ("#e69f00", "^", "-"),
    "none": ("#555555", "D", "-"),
    "forward": ("#f0e442", "*", ":"),
    "keras-default": ("#cc79a7", "v", "-"),
    "keras-jit": ("#d55e00", "P", "-"),
    "weights-alone": ("#000000", ".", ":"),
    "revlib": ("#56b4e9", "o", "--"),
    "memcnn": ("#8c564b", "X", "--"),
    "torch-checkpoint": ("#7fcfb4", "s", "--"),
    "torch": ("#999999", "D", "--"),
}


def plot(figures, unit, label, path):
    """One panel for each workload that has more than one depth."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import NullLocator, StrMethodFormatter

    workloads = [w for w in figures.workloads() if len(figures.depths(w)) > 1]
    if not workloads:
        return
    canvas, axes = pyplot.subplots(
        1,
        len(workloads),
        figsize=(4.5 * len(workloads), 4.6),
        squeeze=False,
        layout="constrained",
    )
    lines = {}
    for panel, workload in zip(axes[0], workloads):
        for contestant in figures.contestants(workload):
            color, marker, style = STYLES[contestant]
            depths = figures.depths(workload, contestant)
            values = [figures.median(workload, contestant, d) / unit for d in depths]
            name = CONTESTANTS[contestant]
            (lines[name],) = panel.plot(depths, values, color=color, marker=marker, ls=style)
        depths = figures.depths(workload)
        panel.set_xscale("log", base=2)
        panel.set_xticks(depths, [str(d) for d in depths])
        panel.set_yscale("log", base=2)
        panel.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        panel.xaxis.set_minor_locator(NullLocator())
        panel.grid(True, which="major", alpha=0.3)
        panel.set_title(workload, fontsize=10)
        panel.set_xlabel("blocks")
    axes[0][0].set_ylabel(label)
    columns = min(len(lines), 2 * len(workloads))
    canvas.legend(lines.values(), lines, loc="outside lower center", ncols=columns, fontsize=8)
    canvas.savefig(path, dpi=150)
    pyplot.close(canvas)


def write(measurements, out):
    """Writes the plots that there are measurements for."""
    for case, figure, unit, label, name in (
        ("memory", "activation_bytes", MIB, "activation memory (MiB)", "memory"),
        ("time", "step_seconds", 1, "step (s)", "time"),
        ("first step", "first_step_seconds", 1, "first step (s)", "first_step"),
    ):
        plot(series(measurements, case, figure), unit, label, out / f"benchmark_{name}.png")
