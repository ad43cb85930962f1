"""Parameters of models that nobody computes."""

import math

import keras


def parameters(build):
    """How many trainable weights a model has; none of them is given a value."""
    with keras.StatelessScope(initialize_variables=False):
        model = build()
        return sum(math.prod(v.shape) for v in model.trainable_variables)
