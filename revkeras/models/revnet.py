"""RevNet: the residual network whose stages are reversible."""

import dataclasses
from typing import Any

import keras
from keras import ops

from revkeras._stack.reversible_sequential import ReversibleSequential
from revkeras.models.top import add_top, check_choice, check_top, image_input, with_weights


@dataclasses.dataclass(frozen=True)
class RevNetArchitecture:
    """The sizes of one depth.

    Attributes:
        units: How many pairs of residual functions each stage has.
        channels: Of both streams together: after the first convolution, and in each stage.
        strides: Of each stage's first pair.
        bottleneck: Whether a residual function is three convolutions, the middle one narrow.
        input_shape: What the paper trained it on.
        classes: How many there were.
    """

    units: tuple[int, ...]
    channels: tuple[int, ...]
    strides: tuple[int, ...]
    bottleneck: bool
    input_shape: tuple[int, int, int]
    classes: int

    @property
    def is_for_imagenet(self) -> bool:
        return len(self.units) == 4


def _for_cifar(units: int, last: int, bottleneck: bool = False) -> RevNetArchitecture:
    widths = [32, 64, last]
    channels = (32, *(4 * c if bottleneck else c for c in widths))
    return RevNetArchitecture((units,) * 3, channels, (1, 2, 2), bottleneck, (32, 32, 3), 10)


def _for_imagenet(*units: int) -> RevNetArchitecture:
    channels = 128, *(4 * c for c in (128, 256, 512, 832))
    return RevNetArchitecture(units, channels, (1, 2, 2, 2), True, (224, 224, 3), 1000)


ARCHITECTURES = {
    38: _for_cifar(3, 112),
    110: _for_cifar(9, 128),
    164: _for_cifar(9, 128, bottleneck=True),
    56: _for_imagenet(2, 2, 3, 2),
    104: _for_imagenet(2, 2, 11, 2),
}


def RevNet(
    depth: int = 38,
    include_top: bool = True,
    input_shape: tuple | None = None,
    pooling: str | None = None,
    classes: int | None = None,
    classifier_activation: Any = "softmax",
    *,
    weights: str | None = None,
    memory_mode: str = "reversible",
    name: str | None = None,
) -> keras.Model:
    """A reversible residual network.

    The channels are two streams, and each unit takes them two half steps on,
    by residual functions `f` and `g` of their own:

        y1 = x1 + f(x2)
        y2 = x2 + g(y1)

    Only what goes into a stage is kept for the gradient, and the first unit of
    each stage that halves the image. Parameters, with the paper's classes:

    | depth | for | parameters |
    | ---: | --- | ---: |
    | 38 | CIFAR, 32 x 32 | 0.46 million |
    | 110 | CIFAR, 32 x 32 | 1.73 million |
    | 164 | CIFAR, 32 x 32, bottlenecks | 1.75 million |
    | 56 | ImageNet, 224 x 224 | 27.6 million |
    | 104 | ImageNet, 224 x 224 | 45.4 million |

    Reference:

    - [Gomez et al., 2017](https://arxiv.org/abs/1707.04585)

    Args:
        depth: Integer, one of 38, 110, 164, 56 and 104. Defaults to `38`.
        include_top: Boolean, whether to classify. Defaults to `True`.
        input_shape: `(height, width, channels)`. Defaults to `None`, which means
            what the paper trained the depth on.
        pooling: Without the top, `"avg"` or `"max"` for pooled features, or
            `None` for features of `(batch, height, width, channels)`. Defaults to
            `None`.
        classes: Integer, how many the top tells apart. Defaults to `None`, which
            means 10 for CIFAR's depths and 1000 for ImageNet's.
        classifier_activation: The activation of the top; `None` for logits.
            Defaults to `"softmax"`.
        weights: The path of a weights file to load. Defaults to `None`, which means
            random weights.
        memory_mode: That of the stages, see `revkeras.ReversibleSequential`.
            Defaults to `"reversible"`.
        name: The model's name. Defaults to `None`, which means `"revnet38"` and so on.

    Returns:
        A `keras.Model`. Images are expected in a range around zero, for instance
        -1 to 1.

    Raises:
        ValueError: for a depth that is not in the table and for bad arguments.

    Example:

    >>> import keras, revkeras
    >>> model = revkeras.models.RevNet(38, classes=100)
    >>> model(keras.ops.ones((2, 32, 32, 3))).shape
    TensorShape([2, 100])
    """
    check_choice("depth", depth, ARCHITECTURES)
    a = ARCHITECTURES[depth]
    classes = a.classes if classes is None else classes
    check_top(include_top, classes, pooling)
    images = image_input(input_shape, a.input_shape)
    model = revnet(
        a,
        images,
        lambda x: add_top(x, include_top, classes, classifier_activation, pooling),
        memory_mode,
        name or f"revnet{depth}",
    )
    return with_weights(model, weights)


def revnet(
    a: RevNetArchitecture, images: Any, top: Any, memory_mode: str, name: str
) -> keras.Model:
    """A RevNet of any sizes; `top(features)` gives its output."""
    x = _stem(images, a)
    before = a.channels[0]
    for stage, (units, channels, stride) in enumerate(
        zip(a.units, a.channels[1:], a.strides, strict=True), start=1
    ):
        changes = channels != before or stride > 1
        if changes:
            x = _downsample(x, channels, stride, a.bottleneck, f"stage{stage}", first=stage == 1)
        functions = [
            # The stem has normalized what the first function gets.
            _residual_function(channels // 2, 1, a.bottleneck, activate=stage > 1 or changes or i)
            for i in range(2 * (units - changes))
        ]
        if functions:
            x = ReversibleSequential(functions, memory_mode=memory_mode, name=f"stage{stage}")(x)
        before = channels
    x = keras.layers.BatchNormalization(name="post_bn")(x)
    return keras.Model(images, top(keras.layers.ReLU(name="post_relu")(x)), name=name)


def _stem(images: Any, a: RevNetArchitecture) -> Any:
    large = a.is_for_imagenet
    convolution = _convolution(a.channels[0], 7 if large else 3, 2 if large else 1, "stem_conv")
    x = keras.layers.BatchNormalization(name="stem_bn")(convolution(images))
    x = keras.layers.ReLU(name="stem_relu")(x)
    if large:
        x = keras.layers.MaxPooling2D(3, 2, padding="same", name="stem_pool")(x)
    return x


def _downsample(
    x: Any, channels: int, stride: int, bottleneck: bool, name: str, first: bool
) -> Any:
    """A unit that changes the shape, which no coupling can undo."""
    x1, x2 = ops.split(x, 2, axis=-1)
    f = _residual_function(channels // 2, stride, bottleneck, activate=not first)
    g = _residual_function(channels // 2, 1, bottleneck)
    y1 = f(x2) + _shortcut(x1, channels // 2, stride, bottleneck, f"{name}_shortcut1")
    y2 = g(y1) + _shortcut(x2, channels // 2, stride, bottleneck, f"{name}_shortcut2")
    return keras.layers.Concatenate(name=f"{name}_streams")([y1, y2])


def _shortcut(x: Any, channels: int, stride: int, bottleneck: bool, name: str) -> Any:
    if bottleneck:
        return _convolution(channels, 1, stride, name)(x)
    if stride > 1:
        x = keras.layers.AveragePooling2D(stride, stride, padding="same", name=name)(x)
    more = channels - x.shape[-1]
    return ops.pad(x, [(0, 0), (0, 0), (0, 0), (more // 2, more - more // 2)])


def _residual_function(
    channels: int, stride: int, bottleneck: bool, activate: Any = True
) -> keras.Sequential:
    widths = [(channels // 4, 1), (channels // 4, 3), (channels, 1)]
    if not bottleneck:
        widths = [(channels, 3)] * 2
    layers = []
    for i, (width, size) in enumerate(widths):
        if i or activate:
            layers += [keras.layers.BatchNormalization(), keras.layers.ReLU()]
        layers.append(_convolution(width, size, 1 if i else stride))
    return keras.Sequential(layers)


def _convolution(
    channels: int, size: int, stride: int, name: str | None = None
) -> keras.layers.Conv2D:
    return keras.layers.Conv2D(
        channels,
        size,
        stride,
        padding="same",
        use_bias=False,
        kernel_initializer="he_normal",
        name=name,
    )
