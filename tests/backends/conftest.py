"""Files that are about one backend are collected on that one alone."""

import keras

ON_JAX = ["test_jax_transformations.py", "test_sharded_on_jax.py"]

collect_ignore = [] if keras.backend.backend() == "jax" else ON_JAX
