"""Reversible transformers: encoder, decoder, or both."""

from typing import Any

import keras
from keras import ops

from revkeras._stack.reversible_sequential import ReversibleSequential
from revkeras.models.generation import GenerativeModel
from revkeras.models.position import LearnedPositions
from revkeras.models.token_embedding import TokenEmbedding
from revkeras.models.top import is_size, with_weights
from revkeras.models.transformer_blocks import (
    AttentionBlock,
    CrossAttentionBlock,
    FeedForwardBlock,
)


def ReversibleTransformer(
    vocabulary_size: int,
    encoder_layers: int = 0,
    decoder_layers: int = 0,
    hidden_dim: int = 512,
    num_heads: int = 8,
    intermediate_dim: int | None = None,
    max_length: int = 512,
    include_top: bool = True,
    input_shape: tuple | None = None,
    classes: int | None = None,
    classifier_activation: Any = None,
    *,
    dropout: float = 0.1,
    feed_forward_chunks: int = 1,
    weights: str | None = None,
    memory_mode: str = "reversible",
    name: str = "reversible_transformer",
) -> keras.Model:
    """A reversible transformer in the layout of Reformer.

    Two streams start from the embedded tokens. A layer is two half steps:

        y1 = x1 + attention(x2)
        y2 = x2 + feed_forward(y1)

    In a decoder beside an encoder, cross-attention is a third. The output is the
    streams' mean, normalized. With `encoder_layers` alone it is an encoder, with
    `decoder_layers` alone a causal language model, and with both a decoder that
    attends to the encoder's output. `base` of the original transformer
    ([Vaswani et al., 2017](https://arxiv.org/abs/1706.03762)) is
    `ReversibleTransformer(37000, 6, 6)`.

    Inputs are a dictionary of `"token_ids"` and `"padding_mask"`, of shape `(batch,
    length)`, the mask 1 where there is a token. With both an encoder and a decoder
    the four names start with `"encoder_"` and `"decoder_"`. Models with a decoder
    have a method `generate`.

    Reference:

    - [Kitaev et al., 2020](https://arxiv.org/abs/2001.04451)

    Args:
        vocabulary_size: Integer, how many tokens there are.
        encoder_layers: Integer, layers of the encoder. Defaults to `0`.
        decoder_layers: Integer, layers of the decoder. Defaults to `0`.
        hidden_dim: Integer, the width of each stream. Defaults to `512`.
        num_heads: Integer, heads of an attention; divides `hidden_dim`. Defaults
            to `8`.
        intermediate_dim: Integer, the width inside a feed-forward half step.
            Defaults to `None`, which means four times `hidden_dim`.
        max_length: Integer, the longest sequence. Defaults to `512`.
        include_top: Boolean, whether to score: tokens at each position, by the
            embedding's own weights, or `classes`. Defaults to `True`.
        input_shape: `(length,)` to fix the length. Defaults to `None`, which means
            any.
        classes: Integer, for an encoder: how many classes a dense layer on the mean
            of all positions tells apart. Defaults to `None`.
        classifier_activation: The activation of the top. Defaults to `None`, which
            gives logits.
        dropout: Float, the rate of dropout on embeddings and on each update.
            Defaults to `0.1`.
        feed_forward_chunks: Integer, into how many parts the sequence is cut in
            the feed-forward half steps, see
            `revkeras.models.transformer_blocks.FeedForwardBlock`. Defaults to `1`.
        weights: The path of a weights file to load. Defaults to `None`, which means
            random weights.
        memory_mode: That of the stacks, see `revkeras.ReversibleSequential`.
            Defaults to `"reversible"`.
        name: The model's name. Defaults to `"reversible_transformer"`.

    Returns:
        A `keras.Model`.

    Raises:
        ValueError: for sizes that cannot be, no layers at all, and `classes` beside
            a decoder.

    Example:

    >>> import keras, revkeras
    >>> model = revkeras.models.ReversibleTransformer(
    ...     256, decoder_layers=2, hidden_dim=16, num_heads=2, max_length=32)
    >>> tokens = keras.ops.ones((2, 10), dtype="int32")
    >>> model({"token_ids": tokens, "padding_mask": keras.ops.ones_like(tokens)}).shape
    TensorShape([2, 10, 256])
    >>> model.generate(tokens, max_length=12).shape
    (2, 12)
    """
    sizes = {
        "vocabulary_size": vocabulary_size,
        "hidden_dim": hidden_dim,
        "num_heads": num_heads,
        "intermediate_dim": 4 * hidden_dim if intermediate_dim is None else intermediate_dim,
        "max_length": max_length,
        "feed_forward_chunks": feed_forward_chunks,
    }
    _check(sizes, encoder_layers, decoder_layers, classes)
    sizes = {name: int(size) for name, size in sizes.items()}
    max_length = sizes["max_length"]
    length = _length(input_shape, max_length)
    embedding = TokenEmbedding(
        sizes["vocabulary_size"], sizes["hidden_dim"], name="token_embedding"
    )

    def embed(prefix: str) -> tuple[Any, Any, dict]:
        tokens = keras.Input((length,), dtype="int32", name=f"{prefix}token_ids")
        mask = keras.Input((length,), dtype="int32", name=f"{prefix}padding_mask")
        positions = LearnedPositions(max_length, name=f"{prefix}position_embedding")
        x = positions(embedding(tokens))
        x = keras.layers.Dropout(dropout, name=f"{prefix}embedding_dropout")(x)
        return x, mask, {f"{prefix}token_ids": tokens, f"{prefix}padding_mask": mask}

    def run(x: Any, layers: int, part: str, **arguments: Any) -> Any:
        causal, cross = part == "decoder", "context" in arguments
        blocks = _blocks(layers, sizes, dropout, causal, cross)
        stack = ReversibleSequential(blocks, split_axis=None, memory_mode=memory_mode, name=part)
        x = stack(x, **arguments)
        return keras.layers.LayerNormalization(epsilon=1e-6, name=f"{part}_norm")(x)

    both = bool(encoder_layers and decoder_layers)
    inputs, context = {}, {}
    if encoder_layers:
        x, mask, inputs = embed("encoder_" if both else "")
        x = run(x, encoder_layers, "encoder", padding_mask=mask)
        context = {"context": x, "context_mask": mask}
    if decoder_layers:
        x, mask, more = embed("decoder_" if both else "")
        x = run(x, decoder_layers, "decoder", padding_mask=mask, **context)
        inputs = {**inputs, **more}
    if include_top and classes:
        seen = ops.expand_dims(ops.cast(mask, x.dtype), -1)
        x = ops.sum(x * seen, axis=1) / ops.maximum(ops.sum(seen, axis=1), 1)
        x = keras.layers.Dense(int(classes), classifier_activation, name="predictions")(x)
    elif include_top:
        x = embedding(x, reverse=True)
        if classifier_activation:
            x = keras.layers.Activation(classifier_activation, name="predictions")(x)
    model = (GenerativeModel if decoder_layers else keras.Model)(inputs, x, name=name)
    return with_weights(model, weights)


def _blocks(layers: int, sizes: dict, dropout: float, causal: bool, cross: bool) -> list:
    blocks: list[keras.layers.Layer] = []
    heads = sizes["num_heads"]
    for index in range(layers):
        blocks.append(AttentionBlock(heads, causal, dropout, index))
        if cross:
            blocks.append(CrossAttentionBlock(heads, dropout, index))
        blocks.append(
            FeedForwardBlock(sizes["intermediate_dim"], dropout, sizes["feed_forward_chunks"])
        )
    return blocks


def _length(input_shape: Any, max_length: int) -> int | None:
    if input_shape is None:
        return None
    if not isinstance(input_shape, (tuple, list)) or len(input_shape) != 1:
        raise ValueError(
            "Invalid value for argument `input_shape`: expected (length,), received "
            f"input_shape={input_shape!r}."
        )
    (length,) = input_shape
    if length is not None and not 0 < length <= max_length:
        raise ValueError(
            "Invalid value for argument `input_shape`: expected a length of at most "
            f"max_length={max_length}, received input_shape={tuple(input_shape)}."
        )
    return length


def _check(sizes: dict, encoder_layers: Any, decoder_layers: Any, classes: Any) -> None:
    for name, size in sizes.items():
        if not is_size(size):
            raise ValueError(
                f"Invalid value for argument `{name}`: expected a positive integer, received "
                f"{name}={size!r}."
            )
    for name, n in ("encoder_layers", encoder_layers), ("decoder_layers", decoder_layers):
        if not is_size(n) and n != 0:
            raise ValueError(
                f"Invalid value for argument `{name}`: expected an integer of at least 0, received "
                f"{name}={n!r}."
            )
    if not encoder_layers and not decoder_layers:
        raise ValueError(
            "Invalid value for arguments `encoder_layers` and `decoder_layers`: expected a "
            "positive number for at least one of them, received 0 for both."
        )
    if sizes["hidden_dim"] % sizes["num_heads"]:
        raise ValueError(
            f"Invalid value for argument `num_heads`: expected a divisor of hidden_dim="
            f"{sizes['hidden_dim']}, received num_heads={sizes['num_heads']}."
        )
    if classes is not None and decoder_layers:
        raise ValueError(
            "Invalid value for argument `classes`: expected None beside a decoder, which scores "
            f"the tokens of its vocabulary; received classes={classes!r}."
        )
    if classes is not None and not is_size(classes):
        raise ValueError(
            "Invalid value for argument `classes`: expected a positive integer or None, received "
            f"classes={classes!r}."
        )
