"""Tokens as vectors, and vectors as scores of tokens."""

import math
from typing import Any

import keras
from keras import ops


@keras.saving.register_keras_serializable("revkeras")
class TokenEmbedding(keras.layers.Layer):
    """An embedding whose weights score the tokens too.

    Args:
        vocabulary_size: Integer, how many tokens there are.
        width: Integer, the size of a vector.
        **kwargs: Arguments of `keras.layers.Layer`, such as `name`.

    Call arguments:
        inputs: Token numbers of shape `(batch, length)`, or with `reverse` vectors.
        reverse: Boolean, whether vectors are turned into scores of tokens. Defaults
            to `False`.

    Example:

    >>> import keras
    >>> from revkeras.models.token_embedding import TokenEmbedding
    >>> embedding = TokenEmbedding(100, 8)
    >>> x = embedding(keras.ops.zeros((2, 5), dtype="int32"))
    >>> x.shape, embedding(x, reverse=True).shape
    (TensorShape([2, 5, 8]), TensorShape([2, 5, 100]))
    """

    def __init__(self, vocabulary_size: int, width: int, **kwargs: Any):
        super().__init__(**kwargs)
        self.vocabulary_size = vocabulary_size
        self.width = width

    def build(self, input_shape: Any = None) -> None:
        # Of this size, tied scores of a normalized vector start near one.
        initializer = keras.initializers.RandomNormal(stddev=self.width**-0.5)
        self.embeddings = self.add_weight(
            shape=(self.vocabulary_size, self.width), initializer=initializer, name="embeddings"
        )
        self.built = True

    def call(self, inputs: Any, reverse: bool = False) -> Any:
        table = ops.cast(ops.convert_to_tensor(self.embeddings), self.compute_dtype)
        if reverse:
            return ops.matmul(inputs, ops.transpose(table))
        return ops.take(table, ops.cast(inputs, "int32"), axis=0) * math.sqrt(self.width)

    def compute_output_spec(self, inputs: Any, reverse: bool = False) -> Any:
        shape = inputs.shape[:-1] if reverse else inputs.shape
        last = self.vocabulary_size if reverse else self.width
        return keras.KerasTensor((*shape, last), dtype=self.compute_dtype)

    def get_config(self) -> dict:
        own = {"vocabulary_size": self.vocabulary_size, "width": self.width}
        return {**super().get_config(), **own}
