"""The half steps of a reversible transformer: attention, cross-attention, feed-forward."""

from typing import Any

import keras
from keras import ops

from revkeras.checkpoint import Checkpoint


class _Attention(keras.layers.Layer):
    """What both attentions share: the projections, and the way from queries to the update."""

    def __init__(self, heads: int, dropout: float = 0.0, index: int = 0, **kwargs: Any):
        super().__init__(**kwargs)
        self.heads = heads
        self.dropout = dropout
        self.index = index
        policy = self.dtype_policy
        self.norm = keras.layers.LayerNormalization(epsilon=1e-6, dtype=policy, name="norm")
        self.drop = keras.layers.Dropout(dropout, dtype=policy, name="dropout")

    def build(self, input_shape: Any) -> None:
        width = input_shape[-1]
        if width % self.heads:
            raise ValueError(
                f"Invalid value for argument `heads`: expected a divisor of the width {width}, "
                f"received heads={self.heads}."
            )
        self.norm.build(input_shape)
        for name in "query", "key", "value", "output":
            layer = keras.layers.Dense(width, dtype=self.dtype_policy, name=name)
            layer.build(input_shape)
            setattr(self, f"{name}_dense", layer)
        self.built = True

    def compute_output_spec(self, x: Any, cache: Any = None, **arguments: Any) -> Any:
        # Not left to Keras, which would compute with sizes of its own choice: a cache has its own.
        update = keras.KerasTensor(x.shape, dtype=self.compute_dtype)
        if cache is None:
            return update
        return update, keras.KerasTensor((*cache.shape[:1], *cache.shape[2:]), dtype=cache.dtype)

    def get_config(self) -> dict:
        own = {"heads": self.heads, "dropout": self.dropout, "index": self.index}
        return {**super().get_config(), **own}

    def _split_heads(self, x: Any) -> Any:
        batch, length, width = ops.shape(x)
        return ops.reshape(x, (batch, length, self.heads, width // self.heads))

    def _update(self, query: Any, key: Any, value: Any, mask: Any, training: Any) -> Any:
        x = ops.dot_product_attention(query, key, value, mask=mask)
        batch, length, heads, size = ops.shape(x)
        x = self.output_dense(ops.reshape(x, (batch, length, heads * size)))
        return self.drop(x, training=training)


@keras.saving.register_keras_serializable("revkeras")
class AttentionBlock(_Attention):
    """Layer normalization and multi-head self-attention, with nothing added to the input.

    Args:
        heads: Integer, the number of heads, which divides the width.
        causal: Boolean, whether a position sees none behind it. Defaults to `False`.
        dropout: Float, the rate of dropout on the update. Defaults to `0.0`.
        index: Integer, which part of a cache is this block's. Defaults to `0`.
        **kwargs: Arguments of `keras.layers.Layer`, such as `name`.

    Call arguments:
        x: A tensor of shape `(batch, length, width)`.
        padding_mask: A tensor of shape `(batch, length)`, or of the cache's length,
            true or 1 where there is something to see. Defaults to `None`.
        cache: Keys and values of all blocks of a stack, of shape `(batch, blocks, 2,
            max_length, heads, width // heads)`, or `None`. The block's own are
            updated and returned beside its update. Defaults to `None`.
        cache_index: Integer tensor, the place of the first position of `x` in the
            cache. Defaults to `None`, which means 0.

    Returns:
        The update, or `(update, keys_and_values)`.

    Example:

    >>> import keras
    >>> from revkeras.models.transformer_blocks import AttentionBlock
    >>> AttentionBlock(2, causal=True)(keras.ops.ones((3, 5, 8))).shape
    TensorShape([3, 5, 8])
    """

    def __init__(
        self,
        heads: int,
        causal: bool = False,
        dropout: float = 0.0,
        index: int = 0,
        **kwargs: Any,
    ):
        super().__init__(heads, dropout, index, **kwargs)
        self.causal = causal

    def call(
        self,
        x: Any,
        padding_mask: Any = None,
        cache: Any = None,
        cache_index: Any = None,
        training: bool | None = None,
    ) -> Any:
        x = self.norm(x)
        dense = self.query_dense, self.key_dense, self.value_dense
        query, key, value = (self._split_heads(project(x)) for project in dense)
        start = 0 if cache_index is None else cache_index
        if cache is not None:
            own = ops.take(cache, self.index, axis=1)
            new = ops.cast(ops.stack([key, value], axis=1), own.dtype)
            first = ops.zeros_like(start)  # of the same dtype, which JAX wants
            own = ops.slice_update(own, (first, first, start, first, first), new)
            key, value = ops.cast(own[:, 0], query.dtype), ops.cast(own[:, 1], query.dtype)
        mask = None
        if self.causal:
            places = start + ops.arange(ops.shape(query)[1])
            mask = (places[:, None] >= ops.arange(ops.shape(key)[1])[None])[None, None]
        if padding_mask is not None:
            seen = ops.cast(padding_mask, "bool")[:, None, None]
            mask = seen if mask is None else ops.logical_and(mask, seen)
        update = self._update(query, key, value, mask, training)
        return update if cache is None else (update, own)

    def get_config(self) -> dict:
        return {**super().get_config(), "causal": self.causal}


@keras.saving.register_keras_serializable("revkeras")
class CrossAttentionBlock(_Attention):
    """Layer normalization and attention to a context, with nothing added to the input.

    Args:
        heads: Integer, the number of heads, which divides the width.
        dropout: Float, the rate of dropout on the update. Defaults to `0.0`.
        index: Integer, which part of a cache is this block's. Defaults to `0`.
        **kwargs: Arguments of `keras.layers.Layer`, such as `name`.

    Call arguments:
        x: A tensor of shape `(batch, length, width)`.
        context: What is attended to, of shape `(batch, context_length, width)`.
            Defaults to `None`, where there is a `context_cache`.
        context_mask: A tensor of shape `(batch, context_length)`, true or 1 where
            there is something to see. Defaults to `None`.
        context_cache: Keys and values that `project` has made of the context, of all
            blocks: `(batch, blocks, 2, context_length, heads, width // heads)`.
            Defaults to `None`.

    Example:

    >>> import keras
    >>> from revkeras.models.transformer_blocks import CrossAttentionBlock
    >>> x, context = keras.ops.ones((3, 5, 8)), keras.ops.ones((3, 7, 8))
    >>> CrossAttentionBlock(2)(x, context=context).shape
    TensorShape([3, 5, 8])
    """

    def build(self, x_shape: Any, **shapes: Any) -> None:
        super().build(x_shape)

    def call(
        self,
        x: Any,
        context: Any = None,
        context_mask: Any = None,
        context_cache: Any = None,
        training: bool | None = None,
    ) -> Any:
        if context is None and context_cache is None:
            raise ValueError(
                f"{type(self).__name__} '{self.name}' attends to a context, and received neither "
                "`context` nor `context_cache`. Pass one of them."
            )
        query = self._split_heads(self.query_dense(self.norm(x)))
        own = self.project(context) if context_cache is None else context_cache[:, self.index]
        key, value = ops.cast(own[:, 0], query.dtype), ops.cast(own[:, 1], query.dtype)
        mask = None
        if context_mask is not None:
            mask = ops.cast(context_mask, "bool")[:, None, None]
        return self._update(query, key, value, mask, training)

    def project(self, context: Any) -> Any:
        """The keys and values of a context, of shape `(batch, 2, length, heads, size)`."""
        projections = self.key_dense(context), self.value_dense(context)
        return ops.stack([self._split_heads(x) for x in projections], axis=1)


@keras.saving.register_keras_serializable("revkeras")
class FeedForwardBlock(keras.layers.Layer):
    """Layer normalization and two dense layers, with nothing added to the input.

    Positions do not see each other, so a long sequence can be taken in chunks:
    what is wide is then computed, and in the backward pass computed again, for
    one chunk at a time ([Kitaev et al., 2020](https://arxiv.org/abs/2001.04451)).

    Args:
        intermediate_dim: Integer, the width between the two layers.
        dropout: Float, the rate of dropout on the update. Defaults to `0.0`.
        chunks: Integer, into how many parts the sequence is cut. Defaults to `1`.
        **kwargs: Arguments of `keras.layers.Layer`, such as `name`.

    Call arguments:
        x: A tensor of shape `(batch, length, width)`.

    Example:

    >>> import keras
    >>> from revkeras.models.transformer_blocks import FeedForwardBlock
    >>> FeedForwardBlock(32, chunks=4)(keras.ops.ones((3, 10, 8))).shape
    TensorShape([3, 10, 8])
    """

    def __init__(self, intermediate_dim: int, dropout: float = 0.0, chunks: int = 1, **kwargs: Any):
        super().__init__(**kwargs)
        self.intermediate_dim = intermediate_dim
        self.dropout = dropout
        self.chunks = chunks

    def build(self, input_shape: Any) -> None:
        dtype = self.dtype_policy
        self.inside = keras.Sequential(
            [
                keras.layers.LayerNormalization(epsilon=1e-6, dtype=dtype, name="norm"),
                keras.layers.Dense(self.intermediate_dim, "gelu", dtype=dtype, name="intermediate"),
                keras.layers.Dense(input_shape[-1], dtype=dtype, name="output"),
                keras.layers.Dropout(self.dropout, dtype=dtype, name="dropout"),
            ],
            name="inside",
        )
        self.inside.build((None, None, input_shape[-1]))
        self.checkpoint = Checkpoint(self.inside, name="chunk") if self.chunks > 1 else None
        self.built = True

    def call(self, x: Any, training: bool | None = None) -> Any:
        if self.checkpoint is None:
            return self.inside(x, training=training)
        length = ops.shape(x)[1]
        size = (length + self.chunks - 1) // self.chunks
        parts = [x[:, i * size : (i + 1) * size] for i in range(self.chunks)]
        parts = [self.checkpoint(part, training=training) for part in parts]
        return ops.reshape(ops.concatenate(parts, axis=1), ops.shape(x))

    def compute_output_shape(self, input_shape: Any) -> tuple:
        return tuple(input_shape)

    def get_config(self) -> dict:
        own = {"dropout": self.dropout, "chunks": self.chunks}
        return {**super().get_config(), "intermediate_dim": self.intermediate_dim, **own}
