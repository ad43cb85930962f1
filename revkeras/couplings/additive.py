"""The coupling of RevNets."""

from typing import Any

import keras

from revkeras.couplings import fixed_point
from revkeras.couplings.coupling import Coupling


@keras.saving.register_keras_serializable("revkeras")
class Additive(Coupling):
    """`y = x + fx` ([Gomez et al., 2017](https://arxiv.org/abs/1707.04585)).

    In floating point `(x + fx) - fx` is `x` but for rounding, and the error grows
    from block to block. With `exact=True` the streams are kept on a grid, as
    float64 multiples of `2**-32` (2.3e-10), where it is `x` bit by bit at any
    depth, if the block gives the same bits again. Blocks compute in the dtype
    of the layer as before. It costs 64 bits for each element of the two streams,
    once and not in every block.

    The grid has an end. An input beyond `2**20` (1,048,576), and in a stack of
    `depth` blocks an update beyond `2**19 / (depth + 1)`, is clipped to it. The
    rebuild is exact there too, but the gradient of such elements is zero.
    What is infinite or not a number becomes NaN. Both are counted and
    reported by the layer as its metric `<name>_saturated`; with the checks of
    `revkeras.debugging` enabled they are an error.

    What the stack returns has the dtype of the layer, so `inverse()`, which
    starts from it, is exact only up to that rounding. It takes what inputs up to
    `2**19` lead to.

    Args:
        exact: Boolean, whether the inverse is exact bit by bit. Defaults to
            `False`.

    Example:

    >>> import keras, revkeras
    >>> blocks = [keras.layers.Dense(2, activation="tanh") for _ in range(4)]
    >>> coupling = revkeras.couplings.Additive(exact=True)
    >>> layer = revkeras.ReversibleSequential(blocks, coupling=coupling)
    >>> layer(keras.ops.ones((3, 4))).shape
    TensorShape([3, 4])
    """

    index, depth = 0, 1

    def __init__(self, exact: bool = False):
        self.exact = exact

    def forward(self, x: Any, fx: Any) -> Any:
        return x + fx

    def inverse(self, y: Any, fx: Any) -> Any:
        return y - fx

    def couple(self, streams: list, fx: Any) -> list:
        if not self.exact:
            return super().couple(streams, fx)
        x0, x1, saturated = streams
        fx, beyond = self._absorb(fx)
        return [x1, x0 + fx, saturated + beyond]

    def pull_back(self, streams: tuple, fx: Any, doutputs: tuple) -> tuple[list, Any]:
        dy0, dy1 = doutputs
        return [dy1, dy0], dy1

    def uncouple(self, outputs: list, fx: Any) -> list:
        if not self.exact:
            return super().uncouple(outputs, fx)
        y0, y1, saturated = outputs
        fx, beyond = self._absorb(fx)
        return [y1 - fx, y0, saturated - beyond]

    def log_det(self, fx: Any, stream: Any) -> Any:
        return keras.ops.zeros((keras.ops.shape(stream)[0],), dtype=stream.dtype)

    def at(self, index: int, depth: int) -> "Additive":
        return fixed_point.located(self, index, depth) if self.exact else self

    def to_carry(self, streams: list) -> list:
        return (
            fixed_point.to_fixed_point(streams, [2 * fixed_point.RANGE] * 2)
            if self.exact
            else streams
        )

    def from_carry(self, carry: list, dtype: str) -> tuple[list, Any]:
        return (
            fixed_point.from_fixed_point(carry, dtype)
            if self.exact
            else super().from_carry(carry, dtype)
        )

    def get_config(self) -> dict:
        return {"exact": self.exact}

    def _absorb(self, fx: Any) -> tuple[Any, Any]:
        return fixed_point.absorb(fx, fixed_point.update_range(self.depth))
