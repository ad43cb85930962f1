"""What a coupling is."""

from typing import Any

from revkeras._stack.streams import same_shape


class Coupling:
    """How a stream takes in a block's output, and how it gives it back.

    A subclass defines `forward` and `inverse` for one stream; the streams then
    change places after each block. One whose recurrence needs both streams
    overrides `couple`, `source` and `uncouple` instead.

    Example:

    >>> import keras, revkeras
    >>> @keras.saving.register_keras_serializable("my_package")
    ... class Halving(revkeras.couplings.Coupling):
    ...     def forward(self, x, fx):
    ...         return x / 2 + fx
    ...     def inverse(self, y, fx):
    ...         return (y - fx) * 2
    >>> layer = revkeras.ReversibleSequential([keras.layers.Dense(2)], coupling=Halving())
    >>> layer(keras.ops.ones((1, 4))).shape
    TensorShape([1, 4])
    """

    n_updates = 1  # the tensors of the stream's shape that `fx` holds; a tuple if several
    swaps = True  # whether the streams change places
    exact = False  # whether the inverse is exact bit by bit, on the carry of `to_carry`
    determined = True  # whether the streams after a stack determine those before it

    def forward(self, x: Any, fx: Any) -> Any:
        """The stream `x` after it took in `fx`."""
        raise NotImplementedError(f"{type(self).__name__} does not define `forward(x, fx)`.")

    def inverse(self, y: Any, fx: Any) -> Any:
        """The stream that `forward` made `y` of."""
        raise NotImplementedError(f"{type(self).__name__} does not define `inverse(y, fx)`.")

    def couple(self, streams: list, fx: Any) -> list:
        """Both streams after the block, from both before it."""
        x0, x1 = streams
        return [x1, self.forward(x0, fx)]

    def source(self, outputs: list) -> Any:
        """What the block was called on, from the streams after it."""
        return outputs[0]

    def uncouple(self, outputs: list, fx: Any) -> list:
        """Undoes `couple`."""
        y0, y1 = outputs
        return [self.inverse(y1, fx), y0]

    # `pull_back(streams, fx, doutputs) -> (dstreams, dfx)`, if a class knows the gradients of its
    # `couple` by its two arguments: else they are found by evaluating it once more. Gradients are
    # `None` where there is none. With several updates, `(dstreams, dfx, ...)`.
    pull_back = None

    def separate(self, outputs: Any, stream: Any) -> tuple[Any, list]:
        """A block's output as `(fx, extras)`: what the coupling uses, and the rest.

        Raises:
            ValueError: if `fx` does not fit the stream.
        """
        several = isinstance(outputs, (tuple, list))
        fx, extras = (outputs[0], list(outputs[1:])) if several else (outputs, [])
        if not same_shape(fx.shape, stream.shape):
            raise ValueError(
                f"must keep the shape of its stream: expected {tuple(stream.shape)}, received "
                f"{tuple(fx.shape)}. A stream has half of the channels of the stack's input, "
                "unless `split_axis=None`. (A layer that changes it has to define `inverse()`)"
            )
        return fx, extras

    def log_det(self, fx: Any, stream: Any) -> Any:
        """The log-determinant of the block's Jacobian, of shape `(batch,)`.

        Args:
            fx: What the block returned for the coupling.
            stream: The stream before it took in `fx`.
        """
        raise NotImplementedError(
            f"{self.describe()[0]} comes without `log_det(fx, stream)`, which "
            "`return_log_det=True` asks for. Write a `revkeras.couplings.Coupling` that defines it."
        )

    def at(self, index: int, depth: int) -> "Coupling":
        """The coupling as it acts at block `index` of `depth`, counted from 0."""
        return self

    def to_carry(self, streams: list) -> list:
        """The two streams as the tensors that a stack of this coupling carries."""
        return streams

    def from_carry(self, carry: list, dtype: str) -> tuple[list, Any]:
        """Undoes `to_carry`.

        Returns:
            `(streams, saturated)`: the streams in `dtype`, and how many elements
            went beyond the coupling's range, or `None`.
        """
        return carry, None

    def start_shape(self, stream_shape: tuple) -> tuple | None:
        """The shape of the weight that `enter` takes, or `None`."""
        return None

    def enter(self, x: Any) -> list:
        """The two streams that one input starts, where the input is not split."""
        return [x, x]

    def leave(self, streams: list) -> Any:
        """The one output that two streams end in, where the input is not split."""
        return (streams[0] + streams[1]) / 2

    def depth_limit(self, dtype: str) -> int | None:
        """The number of blocks after which rounding spoils the rebuild, or `None`."""
        return None

    def describe(self) -> tuple[str, str]:
        """What an error calls the two directions."""
        name = type(self).__name__
        return f"`forward` of {name}", f"`inverse` of {name}"

    def get_config(self) -> dict:
        """The arguments of `__init__()`."""
        return {}

    @classmethod
    def from_config(cls, config: dict) -> "Coupling":
        return cls(**config)


def rule_of(coupling: Coupling) -> Any:
    """The coupling's `pull_back`, if it is the gradient of the `couple` that it has."""
    if coupling.exact or {"couple", "forward"} & vars(coupling).keys():
        return None
    for kind in type(coupling).__mro__:
        if "pull_back" in vars(kind):
            return coupling.pull_back
        if {"couple", "forward"} & vars(kind).keys():
            return None
    return None
