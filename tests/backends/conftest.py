"""Files that are about one backend are collected on that one alone."""

import keras

ONE = {
    "jax": ["test_jax_transformations.py", "test_sharded_on_jax.py"],
    "torch": ["test_pytorch_graphs.py"],
    "tensorflow": ["test_across_backends.py"],  # starts processes on each backend itself
}

collect_ignore = [
    file for backend, files in ONE.items() if backend != keras.backend.backend() for file in files
]
