"""The coupling of momentum networks."""

import fractions
import math
import numbers
from typing import Any

import keras

from revkeras.couplings import fixed_point
from revkeras.couplings.coupling import Coupling

INITIAL_VELOCITIES = ("zeros", "learned")


@keras.saving.register_keras_serializable("revkeras")
class Momentum(Coupling):
    """A residual network with a velocity `v`.

    MomentumNet ([Sander et al., 2021](https://arxiv.org/abs/2102.07870)):

        v = beta * v + (1 - beta) * f(x)
        x = x + v

    The streams are `(v, x)`, and they do not change places. With
    `split_axis=None` the input is `x`, the velocity starts as
    `initial_velocity` says, and the output is the last `x`.

    Each block divides `v` by `beta` when it is rebuilt, which loses
    `log2(1 / beta)` bits of it. `depth_limit` tells how many blocks that leaves
    exact enough to train with; beyond it the layer warns when it is built.

    With `exact=True` there is no such limit: the inverse is exact bit by bit at
    any depth, if the block gives the same bits again. The streams are kept on a
    grid, as float64 multiples of `2**-32` (2.3e-10); blocks compute in the dtype
    of the layer as before. `beta` is taken as the nearest fraction `n / d` with
    `d <= 1000`, and what `v * n / d` loses to rounding goes into a buffer beside
    the streams, an idea of
    [Maclaurin et al., 2015](https://arxiv.org/abs/1502.03492). A full buffer is
    followed by a new one, so this takes a little memory for each block. Beside
    the 64 bits for each element of the two streams, once:

    | beta | blocks that fill a buffer | bits a block and element |
    | ---: | ---: | ---: |
    | 0.5 | 51 | 1.3 |
    | 0.9 | 298 | 0.21 |
    | 0.99 | 2659 | 0.024 |

    A kept float32 activation is 32 bits a block and element. Buffers are
    allocated whole, 64 bits for each element of a stream.

    The grid has an end. An input beyond `2**19` (524,288), and in a stack of
    `depth` blocks an initial velocity or a block's output beyond
    `2**19 / (depth + 1)`, is clipped to it. The inverse is exact there
    too, but the gradient of such elements is zero. What is infinite or not a
    number becomes NaN. Both are counted and reported by the layer as its metric
    `<name>_saturated`; with the checks of `revkeras.debugging` enabled they are an
    error. The buffers stay inside the stack, so `inverse()` is refused.

    Args:
        beta: Float between 0 and 1, what is kept of the velocity. Defaults to
            `0.9`.
        exact: Boolean, whether the inverse is exact bit by bit. Defaults to
            `False`.
        initial_velocity: `"zeros"`, or `"learned"`: one velocity for each channel
            (the last axis), broadcast over all others. It is a weight of the
            layer, trained with the others, and starts at zero. It counts where
            `split_axis=None`; elsewhere the velocity is half of the input.
            Defaults to `"zeros"`.

    Raises:
        ValueError: if `beta` is not between 0 and 1, or with `exact=True` not
            near a fraction between 0 and 1; for an unknown `initial_velocity`.

    Example:

    >>> import keras, revkeras
    >>> blocks = [keras.layers.Dense(4, activation="tanh") for _ in range(8)]
    >>> layer = revkeras.ReversibleSequential(
    ...     blocks, coupling=revkeras.couplings.Momentum(0.9), split_axis=None)
    >>> layer(keras.ops.ones((2, 4))).shape
    TensorShape([2, 4])
    """

    swaps = False
    index, depth = 0, 1

    def __init__(self, beta: float = 0.9, exact: bool = False, initial_velocity: str = "zeros"):
        if not isinstance(beta, numbers.Real) or not 0 < beta < 1:
            raise ValueError(
                "Invalid value for argument `beta`: expected a number between 0 and 1, both "
                f"excluded; received beta={beta!r}."
            )
        fraction = fractions.Fraction(float(beta)).limit_denominator(1000)
        if exact and not 0 < fraction < 1:
            raise ValueError(
                "Invalid value for argument `beta`: with `exact=True` expected a number between "
                f"0.001 and 0.999, received beta={beta!r}."
            )
        if initial_velocity not in INITIAL_VELOCITIES:
            raise ValueError(
                "Invalid value for argument `initial_velocity`: expected one of "
                f"{INITIAL_VELOCITIES}, received initial_velocity={initial_velocity!r}."
            )
        self.beta = beta
        self.exact = exact
        self.determined = not exact  # the way back needs the buffers too
        self.initial_velocity = initial_velocity
        self._fraction = fraction.numerator, fraction.denominator
        self.decay = float(fraction) if exact else beta

    def couple(self, streams: list, fx: Any) -> list:
        if self.exact:
            return self._couple_exactly(streams, fx)
        v, x = streams
        v = self.beta * v + (1 - self.beta) * fx
        return [v, x + v]

    def source(self, outputs: list) -> Any:
        return outputs[1] - outputs[0]

    def uncouple(self, outputs: list, fx: Any) -> list:
        if self.exact:
            return self._uncouple_exactly(outputs, fx)
        v, x = outputs
        return [(v - (1 - self.beta) * fx) / self.beta, x - v]

    def log_det(self, fx: Any, stream: Any) -> Any:
        batch, *sizes = keras.ops.shape(stream)
        size = keras.ops.cast(math.prod(sizes), stream.dtype)
        return keras.ops.zeros((batch,), dtype=stream.dtype) + size * math.log(self.decay)

    def at(self, index: int, depth: int) -> "Momentum":
        return fixed_point.located(self, index, depth) if self.exact else self

    def to_carry(self, streams: list) -> list:
        if not self.exact:
            return streams
        limits = [fixed_point.update_range(self.depth), fixed_point.RANGE]
        return fixed_point.to_fixed_point(streams, limits)

    def from_carry(self, carry: list, dtype: str) -> tuple[list, Any]:
        return (
            fixed_point.from_fixed_point(carry, dtype)
            if self.exact
            else super().from_carry(carry, dtype)
        )

    def start_shape(self, stream_shape: tuple) -> tuple | None:
        return (stream_shape[-1],) if self.initial_velocity == "learned" else None

    def enter(self, x: Any, velocity: Any = None) -> list:
        start = keras.ops.zeros_like(x)
        return [start if velocity is None else start + keras.ops.cast(velocity, x.dtype), x]

    def leave(self, streams: list) -> Any:
        return streams[1]

    def depth_limit(self, dtype: str) -> int | None:
        if self.exact:
            return None
        # `x` sums up the errors of the velocities, 1 / (1 - beta) times the last. Seven bits of
        # what is left keep the gradient within 1%, in the mean; three more, in bad cases too.
        bits = {"float64": 53, "float32": 24, "float16": 11, "bfloat16": 8}[dtype]
        left = bits - 10 - math.log2(1 / (1 - self.beta))
        return max(1, int(left / math.log2(1 / self.beta)))

    def get_config(self) -> dict:
        return {
            "beta": self.beta,
            "exact": self.exact,
            "initial_velocity": self.initial_velocity,
        }

    def _couple_exactly(self, carry: list, fx: Any) -> list:
        v, x, saturated, *buffers = carry
        if self._starts_buffer():
            buffers.append(keras.ops.zeros_like(v))
        fx, beyond, push = self._absorb(fx)
        units, buffer = fixed_point.rescale(
            fixed_point.in_units(v), keras.ops.stop_gradient(buffers[-1]), *self._fraction
        )
        tangent = self.decay * fixed_point.tangent(v) + (1 - self.decay) * fixed_point.tangent(fx)
        v = fixed_point.on_grid(units + push, tangent)
        return [v, x + v, saturated + beyond, *buffers[:-1], buffer]

    def _uncouple_exactly(self, carry: list, fx: Any) -> list:
        v, x, saturated, *buffers = carry
        fx, beyond, push = self._absorb(fx)
        units, buffer = fixed_point.rescale(
            fixed_point.in_units(v) - push,
            keras.ops.stop_gradient(buffers[-1]),
            *reversed(self._fraction),
        )
        tangent = fixed_point.tangent(v) - (1 - self.decay) * fixed_point.tangent(fx)
        buffers[-1:] = [] if self._starts_buffer() else [buffer]  # all zeros where it started
        return [
            fixed_point.on_grid(units, tangent / self.decay),
            x - v,
            saturated - beyond,
            *buffers,
        ]

    def _absorb(self, fx: Any) -> tuple[Any, Any, Any]:
        """The block's output on the grid, its saturated elements, and what it adds to `v`."""
        # On the grid before it is multiplied: compilers join a product with one inside the block,
        # which need not happen in both directions.
        fx, beyond = fixed_point.absorb(fx, fixed_point.update_range(self.depth))
        return fx, beyond, keras.ops.round(fixed_point.in_units(fx) * (1 - self.decay))

    def _starts_buffer(self) -> bool:
        return self.index % fixed_point.blocks_per_buffer(*self._fraction) == 0
