"""Gradient clipping by norms of whole variables, of which each rank has pieces."""

from typing import Any

import keras
from keras import ops

from revkeras._keras import set_gradient_clipping


class Clipping:
    """Takes the place of an optimizer's own clipping, where that needs a norm.

    Attributes:
        positions: The positions, in the model's list, of the variables whose pieces
            the next step's gradients are of.
    """

    def __init__(self, engine: Any, optimizer: Any, n_variables: int):
        self.positions: list[int] = []
        self._engine = engine
        self._n_variables = n_variables
        self._clipnorm = optimizer.clipnorm
        self._global_clipnorm = optimizer.global_clipnorm
        if engine.size > 1 and (self._clipnorm or self._global_clipnorm):
            set_gradient_clipping(optimizer, self._clip)

    def _clip(self, grads: list) -> list:
        dtype = keras.backend.result_type("float32", *(g.dtype for g in grads))
        squares = [ops.sum(ops.square(ops.cast(g, dtype))) for g in grads]
        if self._global_clipnorm:
            norm = ops.sqrt(self._engine.all_reduce(sum(squares)))
            # Not finite, it makes all gradients so, as in Keras.
            scale = self._global_clipnorm * ops.minimum(1 / norm, 1 / self._global_clipnorm)
            scale = scale + (norm - norm)
            return [g * ops.cast(scale, g.dtype) for g in grads]
        by_position = dict(zip(self.positions, squares, strict=True))
        zero = ops.zeros((), dtype)
        rows = ops.stack([by_position.get(i, zero) for i in range(self._n_variables)])
        norms = ops.sqrt(self._engine.all_reduce(rows))
        scales = self._clipnorm / ops.maximum(norms, self._clipnorm)
        return [
            g * ops.cast(scales[i], g.dtype) if i < self._n_variables else g
            for i, g in zip(self.positions, grads, strict=True)
        ]
