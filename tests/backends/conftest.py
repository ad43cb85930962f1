"""Files that are about one backend are collected on that one alone."""

import keras

collect_ignore = [] if keras.backend.backend() == "jax" else ["test_jax_transformations.py"]
