"""Sharded training runs on TensorFlow alone."""

import keras

collect_ignore_glob = [] if keras.backend.backend() == "tensorflow" else ["*"]
