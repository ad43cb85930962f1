"""Files that are about one backend are collected on that one alone."""

import keras

ON_JAX = ["test_jax_transformations.py", "test_sharded_on_jax.py"]

# Which starts processes on each backend itself.
ONCE = ["test_across_backends.py"]

collect_ignore = ONCE if keras.backend.backend() == "jax" else ON_JAX
