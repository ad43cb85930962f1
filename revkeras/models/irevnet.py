"""i-RevNet: invertible from the pixels to the features."""

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from revkeras._stack.reversible_sequential import ReversibleSequential
from revkeras._stack.streams import same_shape
from revkeras.layers import DepthToSpace, SpaceToDepth
from revkeras.layers.invertible import Invertible
from revkeras.models.top import add_top, check_top, image_input, is_size, with_weights


@keras.saving.register_keras_serializable("revkeras")
class InvertibleModel(keras.Model):
    """A functional model whose features determine its input.

    `IRevNet` returns one.
    """

    def inverse(self, features: Any) -> Any:
        """The images that features were computed of.

        Args:
            features: A tensor, the output of the model's layer `"reversible"`, which
                is that of a model without a top.

        Returns:
            A tensor of images.

        Raises:
            ValueError: if `features` do not have the shape of that layer's output.

        Example:

        >>> import keras, revkeras
        >>> model = revkeras.models.IRevNet(
        ...     (1, 1), (2, 2), include_top=False, input_shape=(16, 16, 3))
        >>> images = keras.random.uniform((1, 16, 16, 3))
        >>> error = keras.ops.max(keras.ops.abs(model.inverse(model(images)) - images))
        >>> bool(error < 1e-5)
        True
        """
        stack = self.get_layer("reversible")
        expected, received = stack.output.shape, tuple(keras.ops.shape(features))
        if not same_shape(received, expected):
            raise ValueError(
                "Invalid value for argument `features`: expected the output of the model's layer "
                f"'reversible', of shape {expected}, received the shape {received}. With a top "
                "or pooling, keras.Model(model.input, model.get_layer('reversible').output) "
                "computes it."
            )
        x = stack.inverse(features)
        first = self.layers[1]
        return first.inverse(x) if isinstance(first, SpaceToDepth) else x


@keras.saving.register_keras_serializable("revkeras")
class StreamsToDepth(Invertible):
    """Moves each block of positions into the channels, in both halves of them alone.

    `SpaceToDepth` for two streams that stay two streams: the first half of the output
    channels comes from the first half of the input's.
    """

    rearranges = True

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self.squeeze = SpaceToDepth(dtype=self.dtype_policy)

    def call(self, inputs: Any) -> Any:
        halves = ops.split(inputs, 2, axis=-1)
        return ops.concatenate([self.squeeze(x) for x in halves], axis=-1)

    def inverse(self, outputs: Any) -> Any:
        halves = ops.split(self._tensor(outputs), 2, axis=-1)
        return ops.concatenate([self.squeeze.inverse(x) for x in halves], axis=-1)

    def compute_output_shape(self, input_shape: Any) -> tuple:
        self._channels(input_shape, even=True)
        return self.squeeze.compute_output_shape(input_shape)


def IRevNet(
    blocks: Sequence[int] = (6, 16, 72, 6),
    strides: Sequence[int] = (2, 2, 2, 2),
    include_top: bool = True,
    input_shape: tuple | None = None,
    pooling: str | None = None,
    classes: int = 1000,
    classifier_activation: Any = "softmax",
    *,
    initial_downsampling: bool = True,
    bottleneck: int = 4,
    dropout: float = 0.0,
    weights: str | None = None,
    memory_mode: str = "reversible",
    name: str = "irevnet",
) -> keras.Model:
    """An invertible network, as i-RevNet (b) of the paper: bijective.

    One reversible stack leads from the pixels, squeezed into an even number of
    channels, to the features. Where the image is halved its positions move into the
    channels, so nothing is lost: features
    have as many elements as the image, and `model.inverse(features)` gives the
    image back. A block is a bottleneck of 1 x 1, 3 x 3 and 1 x 1 convolutions. The
    default is the paper's for ImageNet, of 300 layers and 29 million parameters;
    `IRevNet((18, 18, 18), (1, 2, 2), input_shape=(32, 32, 3), classes=10)` is that for CIFAR.

    Kernels are initialized as in Keras, but for the last one of a block, which is
    scaled by the root of the number of blocks: features then are no larger than
    images and lose no digits that the inverse needs.

    Reference:

    - [Jacobsen et al., 2018](https://arxiv.org/abs/1802.07088)

    Args:
        blocks: List of integers, the blocks of each stage. Defaults to
            `(6, 16, 72, 6)`.
        strides: List of integers, as long: 2 where a stage starts by halving the
            image, else 1. Defaults to `(2, 2, 2, 2)`.
        include_top: Boolean, whether to classify. Defaults to `True`.
        input_shape: `(height, width, channels)`, height and width divisible by
            two for each halving. Defaults to `None`, which means `(224, 224, 3)`.
        pooling: Without the top, `"avg"` or `"max"` for pooled features, or
            `None` for features of `(batch, height, width, channels)`, which
            `inverse` takes. Defaults to `None`.
        classes: Integer, how many the top tells apart. Defaults to `1000`.
        classifier_activation: The activation of the top; `None` for logits.
            Defaults to `"softmax"`.
        initial_downsampling: Boolean, whether the image is halved before the
            channels are split into two streams. Without it their number has to
            be even. Defaults to `True`.
        bottleneck: Integer, how many times fewer channels than a stream's a
            block has inside. Defaults to `4`.
        dropout: Float, the rate of dropout in a block. Defaults to `0.0`.
        weights: The path of a weights file to load. Defaults to `None`, which means
            random weights.
        memory_mode: That of the stack, see `revkeras.ReversibleSequential`.
            Defaults to `"reversible"`.
        name: The model's name. Defaults to `"irevnet"`.

    Returns:
        A `keras.Model` with a method `inverse`. Images are expected in a range around
        zero, for instance -1 to 1.

    Raises:
        ValueError: for bad arguments, and images that cannot be halved so often.

    Example:

    >>> import keras, revkeras
    >>> model = revkeras.models.IRevNet((1, 2), (2, 2), input_shape=(32, 32, 3), classes=10)
    >>> model(keras.ops.ones((2, 32, 32, 3))).shape
    TensorShape([2, 10])
    """
    check_top(include_top, classes, pooling)
    _check_stages(blocks, strides, bottleneck)
    halvings = int(initial_downsampling) + list(strides).count(2)
    images = image_input(input_shape, (224, 224, 3), 2**halvings)
    channels = images.shape[-1] * (4 if initial_downsampling else 1)
    if channels % 2:
        raise ValueError(
            "Invalid value for argument `input_shape`: without `initial_downsampling` expected an "
            f"even number of channels, received input_shape={tuple(images.shape[1:])}."
        )
    x = SpaceToDepth(name="initial_downsampling")(images) if initial_downsampling else images
    layers: list[keras.layers.Layer] = []
    stream, depth = channels // 2, sum(blocks)
    for number, stride in zip(blocks, strides, strict=True):
        for i in range(number):
            halves = stride == 2 and i == 0
            if halves:
                layers.append(StreamsToDepth())
                stream *= 4
            first = len(layers) <= halves
            inside = max(1, stream // int(bottleneck))
            layers.append(_block(stream, halves, first, inside, dropout, depth))
    features = ReversibleSequential(layers, memory_mode=memory_mode, name="reversible")(x)
    if not include_top:
        outputs = add_top(features, False, classes, None, pooling)
    else:
        x = keras.layers.BatchNormalization(momentum=0.9, name="post_bn")(features)
        x = keras.layers.ReLU(name="post_relu")(x)
        outputs = add_top(x, True, classes, classifier_activation, None)
    return with_weights(InvertibleModel(images, outputs, name=name), weights)


def _block(
    channels: int, halves: bool, first: bool, inside: int, dropout: float, depth: int
) -> keras.Sequential:
    """A residual function of a stream; where the image was halved, on the stream as it was."""
    normalize = keras.layers.BatchNormalization
    layers = [DepthToSpace()] if halves else []
    if not first:
        layers += [normalize(), keras.layers.ReLU()]
    layers += [_convolution(inside, 1), normalize(), keras.layers.ReLU()]
    layers.append(_convolution(inside, 3, 2 if halves else 1))
    if dropout:
        layers.append(keras.layers.Dropout(dropout))
    layers += [normalize(), keras.layers.ReLU()]
    scaled = keras.initializers.VarianceScaling(1 / depth, "fan_avg", "uniform")
    return keras.Sequential([*layers, _convolution(channels, 1, initializer=scaled)])


def _convolution(
    channels: int, size: int, stride: int = 1, initializer: Any = "glorot_uniform"
) -> keras.layers.Conv2D:
    return keras.layers.Conv2D(
        channels, size, stride, padding="same", use_bias=False, kernel_initializer=initializer
    )


def _check_stages(blocks: Any, strides: Any, bottleneck: Any) -> None:
    if not isinstance(blocks, (list, tuple)) or not blocks or not all(map(is_size, blocks)):
        raise ValueError(
            "Invalid value for argument `blocks`: expected a list of positive integers, received "
            f"blocks={blocks!r}."
        )
    is_list = isinstance(strides, (list, tuple)) and len(strides) == len(blocks)
    if not is_list or not all(s in (1, 2) for s in strides):
        raise ValueError(
            f"Invalid value for argument `strides`: expected {len(blocks)} times 1 or 2, one for "
            f"each stage of blocks={tuple(blocks)}; received strides={strides!r}."
        )
    if not is_size(bottleneck):
        raise ValueError(
            "Invalid value for argument `bottleneck`: expected a positive integer, received "
            f"bottleneck={bottleneck!r}."
        )
