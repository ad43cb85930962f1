"""The examples, small, as their readers run them."""

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]


def run_example(name, *arguments):
    env = {**os.environ, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "2"}
    command = [sys.executable, str(ROOT / "examples" / name), *map(str, arguments)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("name", ["irevnet.py", "momentumnet.py"])
def test_convolutional_example_keeps_shapes_and_trains(name):
    sizes = ["--batch", 2, "--size", 8, "--channels", 4, "--depth", 2, "--classes", 10]
    printed = run_example(name, *sizes, "--multiplier", 2, "--steps", 3)
    assert "input  (2, 8, 8, 3)" in printed
    assert "output (2, 8, 8, 10)" in printed
    losses = [float(x) for x in re.findall(r"loss \w+ +(\S+)", printed)]
    assert len(losses) == 2
    assert all(math.isfinite(x) for x in losses)


def test_language_model_trains_samples_and_compares(tmp_path):
    sizes = ["--blocks", 2, "--width", 16, "--heads", 2, "--sequence", 32, "--batch", 2]
    lengths = ["--steps", 8, "--epochs", 2, "--sample", 8, "--measure-steps", 1]
    printed = run_example("language_model.py", *sizes, *lengths, "--out", tmp_path)
    assert "--- sample ---\ndef " in printed
    results = json.loads((tmp_path / "language_model.json").read_text())
    assert len(results["history"]["loss"]) == 2
    assert all(math.isfinite(x) for x in results["history"]["val_loss"])
    assert results["sample"].startswith("def ")
    assert set(results["costs"]) == {"reversible", "remat", "plain"}
    assert all(cost["seconds"] > 0 for cost in results["costs"].values())
    assert "| plain |" in (tmp_path / "language_model.md").read_text()
    assert (tmp_path / "language_model.png").read_bytes().startswith(b"\x89PNG")


def test_language_model_trains_alone(tmp_path):
    sizes = ["--blocks", 2, "--width", 16, "--heads", 2, "--sequence", 32, "--batch", 2]
    run_example(
        "language_model.py",
        *sizes,
        "--steps",
        2,
        "--sample",
        2,
        "--skip-measure",
        "--out",
        tmp_path,
    )
    assert json.loads((tmp_path / "language_model.json").read_text())["costs"] == {}
    assert not (tmp_path / "language_model.png").exists()


def test_normalizing_flow_trains_inverts_and_draws(tmp_path):
    from examples.normalizing_flow import load, main, to_logits

    size = ["--depth", "2", "--width", "16", "--epochs", "6", "--out", str(tmp_path)]
    losses, rows, flow = main(size)
    assert losses[-1] < losses[0] - 5
    assert rows["flow"] < rows["Gaussian on pixels"] - 5
    logits, _ = to_logits(load()[1] + 0.5)
    np.testing.assert_allclose(flow.stack.inverse(flow.stack(logits)), logits, atol=1e-3)
    assert (tmp_path / "digits.png").stat().st_size > 1000
