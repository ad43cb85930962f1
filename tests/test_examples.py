"""The examples, small, as their readers run them."""

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

from tests.modes import assert_same_training, fit
from tests.warm import python

pytestmark = pytest.mark.tensorflow("the examples run on TensorFlow")

ROOT = Path(__file__).parents[1]


def run_example(name, *arguments):
    env = {**os.environ, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "2"}
    command = [*python(), str(ROOT / "examples" / name), *map(str, arguments)]
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
    _, rows, flow = main(size)
    assert rows["flow"] < rows["Gaussian on pixels"] - 5
    logits, _ = to_logits(load()[1] + 0.5)
    np.testing.assert_allclose(flow.stack.inverse(flow.stack(logits)), logits, atol=1e-3)
    assert (tmp_path / "digits.png").stat().st_size > 1000


def test_normalizing_flow_trains_as_in_mode_none():
    from examples.normalizing_flow import Flow, build_stack, load

    def train(mode):
        keras.utils.set_random_seed(0)
        flow = Flow(build_stack(depth=2, width=16, dropout=0.2))
        flow.stack.memory_mode = mode
        flow.compile(keras.optimizers.SGD(3e-3))
        return fit(flow, load()[0][:256], None, batch_size=64)

    assert_same_training(train("reversible"), train("none"))


def test_digits_are_learned_by_a_revnet_and_a_resnet_of_its_size(tmp_path):
    sizes = ["--units", 1, "--width", 8, "--epochs", 8, "--seeds", 1, "--batch", 64]
    printed = run_example("train_digits.py", *sizes, "--out", tmp_path)
    assert "RevNet less ResNet" in printed
    rows = json.loads((tmp_path / "train_digits.json").read_text())
    assert rows["RevNet"]["parameters"] == pytest.approx(rows["ResNet"]["parameters"], rel=0.05)
    assert rows["RevNet"]["steps"] == rows["ResNet"]["steps"]
    assert all(row["accuracy"][0] > 50 for row in rows.values())


def test_images_come_back_from_features(tmp_path):
    sizes = ["--blocks", 1, "--epochs", 1, "--images", 3, "--batch", 250]
    printed = run_example("reconstruct.py", *sizes, "--out", tmp_path)
    assert float(re.search(r"error of a pixel (\S+),", printed)[1]) < 1e-4
    assert (tmp_path / "reconstruct.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.skipif(sys.version_info < (3, 11), reason="KerasHub needs Python 3.11")
def test_a_gpt2_is_converted_and_fine_tuned(tmp_path):
    sizes = ["--layers", 2, "--width", 8, "--heads", 2, "--sequence", 16, "--batch", 2]
    steps = ["--pretrain", 2, "--steps", 2, "--measure-steps", 1, "--megabytes", 0.2]
    run_example("convert_gpt2.py", *sizes, *steps, "--out", tmp_path)
    results = json.loads((tmp_path / "convert_gpt2.json").read_text())
    assert results["difference"]["0.0"] == 0
    assert results["difference"]["1e-06"] < 1e-4 < results["difference"]["0.1"]
    assert set(results["costs"]) == set(results["loss"]) == {"original", "converted"}
    assert "| converted |" in (tmp_path / "convert_gpt2.md").read_text()
