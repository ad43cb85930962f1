"""Files of one backend are loaded by another, which goes on from them in the same way."""

import json
import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
BACKENDS = "tensorflow", "jax", "torch"


def run(backend, *arguments):
    return subprocess.run(
        [sys.executable, "-m", "tests.backends.across", *arguments],
        cwd=ROOT,
        env={**os.environ, "KERAS_BACKEND": backend},
        stdout=subprocess.PIPE,
        check=True,
        text=True,
        timeout=300,
    ).stdout


@pytest.mark.parametrize("maker", ["tensorflow", "jax"])
def test_training_goes_on_alike(maker, tmp_path):
    files = str(tmp_path / "m.keras"), str(tmp_path / "m.weights.h5")
    run(maker, "make", *files)
    first, *others = (json.loads(run(b, "train", *files).splitlines()[-1]) for b in BACKENDS)
    for found in others:
        for name, expected in first.items():
            pairs = zip(*map(keras.tree.flatten, (found[name], expected)), strict=True)
            for a, b in pairs:
                np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
