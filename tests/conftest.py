"""Settings for all tests."""

import os

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import hypothesis  # noqa: E402
import keras  # noqa: E402
import pytest  # noqa: E402

from tests.differentiation import COMPILED, cases  # noqa: E402

# `pytest --hypothesis-profile=thorough` draws many more cases.
hypothesis.settings.register_profile("thorough", max_examples=10_000)
hypothesis.settings.register_profile("quick", max_examples=cases(100) if COMPILED else 200)
hypothesis.settings.load_profile("quick")


@pytest.fixture(autouse=True)
def _fresh_keras():
    keras.utils.clear_session(free_memory=False)  # a garbage collection is 0.3 s a test
    keras.utils.set_random_seed(0)
    policy = keras.config.dtype_policy()
    yield
    keras.config.set_dtype_policy(policy)


def pytest_collection_modifyitems(config, items):
    """What is about another backend is left out."""
    if keras.backend.backend() == "tensorflow":
        return
    foreign = [item for item in items if item.get_closest_marker("tensorflow")]
    config.hook.pytest_deselected(items=foreign)
    items[:] = [item for item in items if not item.get_closest_marker("tensorflow")]
