"""Language models at stage 3 end with the weights of one process, whatever a batch's size."""

from pathlib import Path

import numpy as np
import pytest

from revkeras.distribute import ZeroStrategy
from tests.distribute import language
from tests.distribute.workers import run_workers


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("language")
    assert run_workers(Path(language.__file__), 2, [out], seconds=200) == 0
    return out


@pytest.mark.parametrize("name", language.MODELS)
def test_same_weights_as_one_process(folder, name):
    with np.load(folder / f"{name}.npz") as file:
        found = [file[key] for key in file.files]
    for weight, expected in zip(found, language.train(name, ZeroStrategy()), strict=True):
        np.testing.assert_allclose(weight, expected, rtol=0, atol=1e-5)
