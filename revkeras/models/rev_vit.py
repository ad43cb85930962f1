"""Rev-ViT: the reversible vision transformer."""

import dataclasses
from typing import Any

import keras
from keras import ops

from revkeras._stack.reversible_sequential import ReversibleSequential
from revkeras.models.position import LearnedPositions
from revkeras.models.top import check_choice, check_top, image_input, is_size, with_weights
from revkeras.models.transformer_blocks import AttentionBlock, FeedForwardBlock


@dataclasses.dataclass(frozen=True)
class ViTArchitecture:
    """The sizes of a vision transformer."""

    width: int
    depth: int
    heads: int


ARCHITECTURES = {"small": ViTArchitecture(384, 12, 6), "base": ViTArchitecture(768, 12, 12)}


def RevViT(
    size: str = "small",
    include_top: bool = True,
    input_shape: tuple | None = None,
    pooling: str | None = None,
    classes: int = 1000,
    classifier_activation: Any = "softmax",
    *,
    patch_size: int = 16,
    dropout: float = 0.0,
    weights: str | None = None,
    memory_mode: str = "reversible",
    name: str | None = None,
) -> keras.Model:
    """A reversible vision transformer.

    The embedded patches start two streams, which attention and feed-forward
    layers take on in turn,

        y1 = x1 + attention(x2)
        y2 = x2 + feed_forward(y1)

    and the streams are concatenated at the end. Parameters for ImageNet:

    | size | parameters |
    | --- | ---: |
    | small | 22.4 million |
    | base | 87.3 million |

    Reference:

    - [Mangalam et al., 2022](https://arxiv.org/abs/2302.04869)

    Args:
        size: `"small"` or `"base"`. Defaults to `"small"`.
        include_top: Boolean, whether to classify. Defaults to `True`.
        input_shape: `(height, width, channels)`, height and width divisible by
            `patch_size`. Defaults to `None`, which means `(224, 224, 3)`.
        pooling: Without the top, `"avg"` or `"max"` for features pooled over the
            patches, or `None` for features of `(batch, patches, 2 * width)`.
            Defaults to `None`.
        classes: Integer, how many the top tells apart. Defaults to `1000`.
        classifier_activation: The activation of the top; `None` for logits.
            Defaults to `"softmax"`.
        patch_size: Integer, height and width of a patch. Defaults to `16`.
        dropout: Float, the rate of dropout at the end of each block. Defaults to
            `0.0`.
        weights: The path of a weights file to load. Defaults to `None`, which means
            random weights.
        memory_mode: That of the stack, see `revkeras.ReversibleSequential`.
            Defaults to `"reversible"`.
        name: The model's name. Defaults to `None`, which means `"rev_vit_small"`
            and so on.

    Returns:
        A `keras.Model`. Images are expected in a range around zero, for instance
        -1 to 1.

    Raises:
        ValueError: for bad arguments.

    Example:

    >>> import keras, revkeras
    >>> model = revkeras.models.RevViT("small", input_shape=(32, 32, 3), classes=10)
    >>> model(keras.ops.ones((2, 32, 32, 3))).shape
    TensorShape([2, 10])
    """
    check_choice("size", size, ARCHITECTURES)
    check_top(include_top, classes, pooling)
    if not is_size(patch_size):
        raise ValueError(
            "Invalid value for argument `patch_size`: expected a positive integer, received "
            f"patch_size={patch_size!r}."
        )
    patch_size = int(patch_size)
    images = image_input(input_shape, (224, 224, 3), patch_size)
    if None in images.shape[1:]:
        raise ValueError(
            "Invalid value for argument `input_shape`: expected a known height and width, for each "
            f"patch has a learned position; received input_shape={input_shape!r}."
        )
    x = rev_vit_features(ARCHITECTURES[size], images, patch_size, dropout, memory_mode)
    if include_top or pooling == "avg":
        x = keras.layers.GlobalAveragePooling1D(name="avg_pool")(x)
    elif pooling == "max":
        x = keras.layers.GlobalMaxPooling1D(name="max_pool")(x)
    if include_top:
        x = keras.layers.Dense(int(classes), classifier_activation, name="predictions")(x)
    model = keras.Model(images, x, name=name or f"rev_vit_{size}")
    return with_weights(model, weights)


def rev_vit_features(
    a: ViTArchitecture, images: Any, patch_size: int, dropout: float, memory_mode: str
) -> Any:
    """Both streams of all patches, concatenated and normalized."""
    x = keras.layers.Conv2D(a.width, patch_size, patch_size, name="patch_embedding")(images)
    x = keras.layers.Reshape((-1, a.width), name="patches")(x)
    x = LearnedPositions(x.shape[1], name="position_embedding")(x)
    blocks = []
    for _ in range(a.depth):
        blocks.append(AttentionBlock(a.heads, dropout=dropout))
        blocks.append(FeedForwardBlock(4 * a.width, dropout=dropout))
    streams = ReversibleSequential(blocks, memory_mode=memory_mode, name="reversible")((x, x))
    return keras.layers.LayerNormalization(epsilon=1e-6, name="post_norm")(
        ops.concatenate(streams, axis=-1)
    )
