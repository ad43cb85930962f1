"""The code in the README, in docs/ and in docstrings runs."""

import doctest
import importlib
import os
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import revkeras
from tests.warm import python

pytestmark = pytest.mark.tensorflow("the documentation's code runs on TensorFlow")

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def code_on(page):
    return "\n".join(re.findall(r"^```python\n(.*?)^```", page.read_text(), re.M | re.S))


def test_the_readme_has_code():
    assert code_on(ROOT / "README.md")


@pytest.mark.parametrize("page", filter(code_on, PAGES), ids=lambda page: page.name)
def test_python_blocks_run(page, tmp_path):
    """All of a page's blocks in one fresh process, in order."""
    code = code_on(page)
    command = [sys.executable] if page.stem == "jax" else python()  # warm ones have TensorFlow
    subprocess.run(
        [*command, "-c", code],
        check=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "2"},
    )


MODULES = [m.name for m in pkgutil.walk_packages(revkeras.__path__, "revkeras.")]


@pytest.mark.parametrize("module", MODULES)
def test_docstring_examples_run(module):
    assert doctest.testmod(importlib.import_module(module)).failed == 0
