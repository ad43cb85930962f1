"""What holds on every Keras backend: `KERAS_BACKEND=jax pytest tests/backends`."""
