"""Settings for all tests."""

import os

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import hypothesis  # noqa: E402
import keras  # noqa: E402
import pytest  # noqa: E402

# `pytest --hypothesis-profile=thorough` draws many more cases.
hypothesis.settings.register_profile("thorough", max_examples=10_000)
hypothesis.settings.register_profile("quick", max_examples=200)
hypothesis.settings.load_profile("quick")


@pytest.fixture(autouse=True)
def _fresh_keras():
    keras.utils.clear_session(free_memory=False)  # a garbage collection is 0.3 s a test
    keras.utils.set_random_seed(0)
    policy = keras.config.dtype_policy()
    yield
    keras.config.set_dtype_policy(policy)
