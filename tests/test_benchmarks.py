"""The benchmark of a training step: one tiny run, and its report on made-up measurements."""

import dataclasses
import json
import os
import subprocess
from pathlib import Path

import ahead_of_time
import deep_stacks
import distributed
import fresh_process
import fused_update
import gpu
import machine
import offload
import operations
import plots
import pytest
import report
import stacked_loop
import training_step
import whole_program
from measurement import Configuration, Measurement, as_values, from_values

from tests.warm import python

pytestmark = pytest.mark.tensorflow("the benchmarks run on TensorFlow")

ROOT = Path(__file__).parents[1]
MIB = 2**20


def measured(
    contestant, depth, mib, seconds, round_=0, workload="dense", gradients=0, case="memory"
):
    configuration = Configuration(case, workload, depth, round_, contestant, 2048, 5)
    activations = int(mib * report.MIB)
    peak = activations + gradients
    return Measurement(
        configuration, 0.1, 1.0, False, gradients, gradients > 0, peak, activations, seconds
    )


def timed(contestant, depth, seconds, round_=0):
    configuration = Configuration("time", "dense", depth, round_, contestant, 2048, 5)
    return Measurement(configuration, 0.1, 1.0, False, 0, False, step_seconds=seconds)


def first_step(contestant, depth, seconds):
    configuration = Configuration("first step", "dense", depth, 0, contestant, 8, 0)
    return Measurement(configuration, 0.1, seconds, False, 0, False)


def run_benchmark(script, configuration):
    environment = {"PYTHONPATH": str(ROOT)}
    return fresh_process.measure(ROOT / "benchmarks" / script, configuration, environment, python())


def goals_by_name(measurements):
    return {goal.name: goal for goal in report.goals(measurements)}


@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="needs Linux's /proc")
def test_one_configuration_in_a_fresh_process(tmp_path):
    command = [*python(), "benchmarks/training_step.py", "--out", tmp_path, "--rounds", "1"]
    command += ["--workloads", "convolutional", "--contestants", "reversible", "--depths", "2"]
    subprocess.run(
        [*command, "--steps", "1", "--first-step-depths"],
        check=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
    )
    values = json.loads((tmp_path / "benchmark.json").read_text())
    found, of_time = values["measurements"]
    assert found["activation_bytes"] == found["peak_bytes"] > 0
    assert found["gradient_bytes"] == 2 * 4 * 2 * (9 * 16 * 16 + 2 * 16)
    assert found["step_seconds"] is of_time["activation_bytes"] is None
    assert of_time["step_seconds"] > 0
    assert set(values["versions"]) == {"revkeras", "keras", "tensorflow"}
    assert values["machine"]["cores"] >= 1
    assert "| convolutional |" in (tmp_path / "benchmark.md").read_text()


@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="needs Linux's /proc")
def test_fused_update_in_a_fresh_process():
    configuration = fused_update.Configuration("fused", depth=2, width=4, batch=2, steps=1)
    found = run_benchmark("fused_update.py", configuration)
    assert found["weight_bytes"] == 2 * 2 * 4 * 4 * 4
    assert found["step_seconds"] > 0


def test_stacked_loop_trains_as_the_stack_does():
    def loss(contestant):
        configuration = stacked_loop.Configuration("first step", contestant, 3, 8, steps=1)
        return run_benchmark("stacked_loop.py", configuration)["loss_after_a_step"]

    assert loss("loop, compiled") == pytest.approx(loss("reversible"), rel=1e-5)


@pytest.mark.parametrize("contestant", ["plain", "reversible"])
def test_deep_stacks_in_a_fresh_process(contestant):
    configuration = deep_stacks.Configuration(contestant, depth=2)
    found = run_benchmark("deep_stacks.py", configuration)
    assert list(found) == list(deep_stacks.PARTS)
    assert min(found.values()) > 0


def test_a_whole_program():
    configuration = whole_program.Configuration("dense", "reversible", depth=2, steps=1)
    environment = {**whole_program.ENVIRONMENT, "PYTHONPATH": str(ROOT)}
    script = ROOT / "benchmarks" / "whole_program.py"
    found = fresh_process.measure(script, configuration, environment)
    assert list(found) == ["temporaries", "compile", "step"]
    assert min(found.values()) > 0


def test_compiled_ahead_of_time():
    configuration = ahead_of_time.Configuration("dense", (4, 8), "cpu", "reversible", depth=2)
    script = ROOT / "benchmarks" / "ahead_of_time.py"
    environment = {**ahead_of_time.ENVIRONMENT, "PYTHONPATH": str(ROOT)}
    assert fresh_process.measure(script, configuration, environment)["temporaries"] > 0


def test_a_step_as_on_a_gpu():
    configuration = gpu.Configuration("transformer, batch", "reversible", (1, 4, 8), 2, steps=1)
    script = ROOT / "benchmarks" / "gpu.py"
    found = fresh_process.measure(
        script, configuration, {**gpu.ENVIRONMENT, "PYTHONPATH": str(ROOT)}
    )
    assert min(found["seconds"], found["peak"], found["limit"]) > 0


@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="needs Linux's /proc")
def test_offload_in_fresh_processes():
    """The host trains, and a server on this machine is the device."""
    configuration = offload.Configuration("on the host, fused", depth=2, width=4, batch=2, steps=1)
    found = run_benchmark("offload.py", configuration)
    assert found["weight_bytes"] == 2 * 2 * (4 * 4 + 4) * 4
    assert found["step_seconds"] > 0


def test_operations_of_a_step():
    """Rebuilding computes a block once more, and draws its random numbers again."""

    def counted(contestant):
        configuration = operations.Configuration("dense", contestant, depth=2)
        return run_benchmark("operations.py", configuration)

    plain, reversible = counted("none"), counted("reversible")
    assert plain["random draws"] == 2
    assert reversible["random draws"] == 4
    assert plain["matrix products"] < reversible["matrix products"] <= 2 * 8


def test_a_wrong_value_is_an_error(capsys):
    for wrong in ["--depths", "3"], ["--rounds", "0"], ["--contestants", "nobody"]:
        with pytest.raises(SystemExit):
            training_step.parse_arguments(wrong)
    errors = capsys.readouterr().err
    assert "expected an even number of blocks, 2 or more, received 3" in errors
    assert "expected 1 or more, received 0" in errors
    assert "invalid choice: 'nobody'" in errors


def test_pytorch_without_its_environment_is_an_error(tmp_path, capsys):
    missing = ["--pytorch-python", str(tmp_path / "python")]
    with pytest.raises(SystemExit):
        training_step.parse_arguments([*missing, "--contestants", "revlib"])
    assert "revlib: no Python at" in capsys.readouterr().err
    assert "revlib" not in training_step.parse_arguments(missing).contestants


def test_contestants_vary_fastest():
    rows = training_step.step_configurations(
        "time", ["dense"], ["reversible", "none"], {4: 2, 8: 1}, 5
    )
    assert [(row.depth, row.round, row.contestant) for row in rows[:5]] == [
        (4, 0, "reversible"),
        (4, 0, "none"),
        (4, 1, "reversible"),
        (4, 1, "none"),
        (8, 0, "reversible"),
    ]
    rows = training_step.step_configurations(
        "memory", ["dense-without-dropout"], ["reversible", "checkpoint"], {4: 1, 8: 1}, 5
    )
    assert [(row.depth, row.round, row.contestant) for row in rows] == [(8, 0, "reversible")]


def test_rounds():
    scheduled = {8: 1, 32: 3}
    assert training_step.rounds_by_depth(scheduled, None, None) == scheduled
    assert training_step.rounds_by_depth(scheduled, [32, 4], None) == {4: 1, 32: 3}
    assert training_step.rounds_by_depth(scheduled, [], None) == {}
    assert training_step.rounds_by_depth(scheduled, None, 2) == {8: 2, 32: 2}


def test_a_contestant_with_a_slow_first_step_goes_no_deeper():
    slow = [first_step("none", 64, 61.0), first_step("reversible", 64, 5.0)]
    assert training_step.slow_at_less_depth(first_step("none", 256, 0.0).configuration, slow)
    assert not training_step.slow_at_less_depth(
        first_step("reversible", 256, 0.0).configuration, slow
    )


def test_ratios_are_medians_of_ratios_within_a_round():
    """The second round met a busy machine, which slowed both alike."""
    measurements = [
        timed(contestant, 8, seconds * busy, round_)
        for round_, busy in enumerate([1.0, 9.0, 1.1])
        for contestant, seconds in (("reversible", 1.2), ("none", 1.0))
    ]
    seconds = report.series(measurements, "time", "step_seconds")
    assert seconds.ratio("dense", "reversible", "none", 8) == pytest.approx(1.2)
    assert seconds.median("dense", "none", 8) == pytest.approx(1.1)
    assert seconds.ratio("dense", "reversible", "checkpoint", 8) is None


def test_time_is_judged_where_the_most_rounds_are():
    measurements = [timed("none", d, 1.0, r) for d, r in [(8, 0), (32, 0), (32, 1), (64, 0)]]
    seconds = report.series(measurements, "time", "step_seconds")
    assert seconds.judged_depth("dense") == 32
    assert seconds.deepest("dense") == 64


def test_goals():
    found = goals_by_name(
        [
            measured("reversible", 8, 10, 1.3),
            measured("reversible", 64, 10.56, 2.4),
            measured("none", 8, 100, 1.0),
            measured("none", 64, 660, 2.0),
            measured("none", 2, 10, 1.0, case="few blocks"),
            timed("reversible", 64, 2.4),
            timed("none", 64, 2.0),
            timed("revlib", 64, 1.5),
            timed("torch", 64, 1.0),
            measured("revlib", 64, 12, 1.5),
            measured("torch", 64, 400, 1.0),
            measured("reversible", 64, 6, 1.0, workload="dense-without-dropout"),
            measured("revlib", 64, 12, 1.0, workload="dense-without-dropout", gradients=2**20),
            first_step("reversible", 8, 2.0),
            first_step("reversible", 64, 3.0),
            first_step("reversible", 256, 4.0),
            first_step("keras-default", 64, 12.0),
        ]
    )
    figures = {name: (goal.figure, goal.met) for name, goal in found.items()}
    assert figures["dense, 64 blocks: step, reversible over none"] == (pytest.approx(1.2), True)
    assert figures["dense, 64 blocks: step, reversible over keras.remat"] == (None, None)
    assert figures["dense, 64 blocks: step over plain, over that of RevLib"] == (
        pytest.approx(0.8),
        True,
    )
    share, met = figures["dense: activation bytes added per block, of mode none's"]
    assert share == pytest.approx(0.001, rel=1e-3)
    assert met
    name = (
        "dense: activation bytes of a deep stack, over plain training of two blocks and an output"
    )
    assert figures[name] == (pytest.approx(10.56 / 11), True)
    name = "dense-without-dropout: activation bytes of a deep stack in outputs, over RevLib's"
    assert figures[name] == (0.5, True)
    assert figures["first step of reversible, 256 blocks over 8"] == (2.0, False)
    assert figures["first step at 64 blocks, reversible over the plain Keras model's"][1]


def test_plain_training_of_a_few_blocks():
    """It stands beside the stacks and counts as none of them."""
    few = [measured("none", n, 10 * n, 1.0, case="few blocks") for n in (1, 2)]
    deep = [measured("reversible", 64, 12, 1.0)]
    assert "| dense | 10.0 | 20.0 | 12.0 | 64 |" in report.few_blocks_section([*few, *deep])
    assert "MiB at 64 | MiB added" in report.memory_table([*few, *deep])
    assert not report.few_blocks_section(deep)
    rows = training_step.few_block_configurations(["dense"], ["none", "reversible"], 5)
    assert [(row.contestant, row.depth) for row in rows] == [("none", 1), ("none", 2)]
    assert not training_step.few_block_configurations(["dense"], ["reversible"], 5)
    rows = training_step.few_block_configurations(["transformer"], ["none"], 5)
    assert [row.depth for row in rows] == [2, 4]  # attention and feed-forward are a block


def test_what_recomputation_alone_costs():
    found = [timed("none", 64, 2.0), timed("forward", 64, 1.0), timed("reversible", 64, 2.4)]
    assert "| dense | 64 | 0.50 | 1.50 | 1.20 | 0.80 |" in report.recomputation_section(found)
    assert not report.recomputation_section(found[::2])
    assert "forward" in {row.contestant for row in rows_of("time", "dense")}
    assert "forward" not in {row.contestant for row in rows_of("memory", "dense")}


def test_a_run_that_was_stopped_goes_on(tmp_path):
    found = [timed("none", 8, 2.0), timed("reversible", 8, 2.4)]
    here = report.Results("2026-01-01", machine.describe(), "abc", {"keras": "3"}, 60.0, found)
    training_step.write(here, tmp_path)
    started = report.Results("2026-01-02", machine.describe(), "abc")
    assert training_step.resumed(started, tmp_path) == here
    with pytest.raises(SystemExit, match="measured at commit abc"):
        training_step.resumed(dataclasses.replace(started, commit="abd"), tmp_path)
    elsewhere = report.Results("2026-01-02", {**machine.describe(), "cores": 1000})
    with pytest.raises(SystemExit, match="another machine"):
        training_step.resumed(elsewhere, tmp_path)


def test_every_contestant_can_be_plotted():
    assert set(plots.STYLES) == set(training_step.CONTESTANTS)


def rows_of(case, workload):
    contestants = list(training_step.CONTESTANTS)
    return training_step.step_configurations(case, [workload], contestants, {8: 1}, 5)


def test_gradients_stay_visible():
    m = measured("revlib", 8, 12, 1.0, gradients=3 * report.MIB)
    assert (m.peak_bytes, m.peak_less_gradients_bytes) == (15 * report.MIB, 12 * report.MIB)
    assert as_values(m)["gradient_bytes"] == 3 * report.MIB
    assert from_values(json.loads(json.dumps(as_values(m)))) == m
    assert "| 12.0 | 15.0 | 3.0 |" in report.memory_table([m])


def test_report_goes_between_the_markers(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"above\n{report.BEGIN}\nold\n{report.END}\nbelow\n")
    assert report.has_markers(page)
    machine = {"cpu": "a CPU", "cores": 2, "memory_bytes": 2**34, "python": "3.11"}
    results = report.Results("2020-01-01", machine, measurements=[measured("none", 8, 1, 1.0)])
    text = report.between_markers(page.read_text(), report.markdown(results))
    assert text.startswith(f"above\n{report.BEGIN}\n\n2020-01-01, a CPU, 2 cores, 16 GiB")
    assert text.endswith(f"{report.END}\nbelow\n")
    assert "old" not in text
    assert report.between_markers(text, "new") == (
        f"above\n{report.BEGIN}\n\nnew\n\n{report.END}\nbelow\n"
    )
    page.write_text("no markers\n")
    assert not report.has_markers(page)


@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="needs Linux's /proc")
def test_distributed(monkeypatch):
    """One real pair of workers; the other tables on made-up measurements."""
    monkeypatch.setattr(os, "environ", dict(os.environ))
    tiny = {"depth": 2, "width": 4, "hidden": 8, "batch": 4}
    result = distributed.measure(2, what="step_time", rounds=1, steps=1, **tiny)
    assert result["ratio"] == result["stage 2"] / result["data parallel"]

    measured = {"held": 3 * MIB, "planned": 2 * MIB, "sent": 6 * MIB, "parameters": 4 * MIB}
    peaks = {"peak": 8 * MIB}
    monkeypatch.setattr(distributed, "measure", lambda _, what, **__: {**measured, **peaks})
    assert (
        "| stage 3 | 3.00 MiB | 2.00 MiB | +50.0% | 6.00 MiB | 2.000 | 3 |" in distributed.state()
    )
    assert "| 32 | 8.0 MiB | 8.0 MiB | 0.0 MiB | 0.00 MiB |" in distributed.peak()
    results = iter([(137, ""), (0, "same"), (137, ""), (1, "other")])
    monkeypatch.setattr(distributed, "run", lambda *_: next(results))
    assert "| 1 of 2 |" in distributed.resume(times=2)
