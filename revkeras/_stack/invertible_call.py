"""One call in a stack of a layer with an inverse of its own, which acts on both streams."""

import dataclasses
import inspect
from typing import Any

import keras
from keras.ops import cast

from revkeras._engine.carry import Carry, Layout
from revkeras._engine.step import Step
from revkeras._stack.operands import Operands
from revkeras._stack.stateless import Packing, StatelessLayer, supports_jit


def is_invertible(layer: keras.layers.Layer) -> bool:
    """Whether the layer acts on both streams by itself, instead of through a coupling."""
    return callable(getattr(layer, "inverse", None)) and not getattr(layer, "is_block", False)


def takes_training(layer: keras.layers.Layer) -> bool:
    """Whether the layer's `inverse()` has an argument `training`."""
    return "training" in inspect.signature(layer.inverse).parameters


def invert(layer: keras.layers.Layer, outputs: Any, training: bool | None) -> Any:
    """Calls the layer's `inverse()`."""
    options = {"training": training} if takes_training(layer) else {}
    return layer.inverse(outputs, **options)


@dataclasses.dataclass(frozen=True)
class InvertibleCall:
    """A layer that defines `inverse()`, called on the whole that two streams make.

    Streams that do not come from one tensor have no whole: the layer is called on
    each of them.

    Attributes:
        layer: The layer.
        name: What errors call it.
        layout: From the streams to their whole and back.
        n_latents: How many tensors the layer returns beside the one that goes on.
            They leave the stack.
        training: `training` for the layer, or `None`.
        log_det: Whether the carry holds a log-determinant.
        jit_compile: Whether XLA compiles the step, if the layer supports it.
    """

    layer: keras.layers.Layer
    name: str
    layout: Layout
    n_latents: int
    training: bool | None
    log_det: bool
    jit_compile: bool = False

    def bound(self, masks: Any, arguments: Any) -> "InvertibleCall":
        """The call itself, which takes neither masks nor arguments."""
        return self

    def plain(self, carry: Carry) -> tuple[Carry, list]:
        """Calls the layer as any Keras layer: `(carry, extras)`."""
        return self._take_in(carry, self._apply(self._whole(carry))), []

    def step(self, weights: Operands, state: Operands) -> Step:
        """The call as a pure step, see `BlockCall.step`."""
        return self._step(
            weights,
            state,
            directions=(
                (self._whole, self._apply, self._take_in),
                (self._parts, self._unapply, self._give_back),
            ),
        )

    def inverse_step(self, weights: Operands, state: Operands) -> Step:
        """The call's inverse as a pure step."""
        # A layer whose inverse is the same in training starts nothing on the way back.
        training = self.training if takes_training(self.layer) else False
        call = dataclasses.replace(self, training=training)
        return call._step(
            weights,
            state,
            directions=(
                (call._parts, call._unapply, call._give_back),
                (call._whole, call._apply, call._take_in),
            ),
        )

    def _step(self, weights: Operands, state: Operands, directions: tuple) -> Step:
        (source, run, couple), (source_back, run_back, couple_back) = directions
        function = StatelessLayer.of(self.layer, self.training)
        packing = Packing()

        def block(source: list, weights: list, state: list) -> tuple[list, list, dict]:
            fx, losses, updates = function.run(lambda: run(source), weights, state)
            return fx, packing.pack(([], losses)), updates

        def recover(carry: Carry, weights: list, state: list) -> list:
            outputs = source_back(carry)
            fx, _, _ = function.run(lambda: run_back(outputs), weights, state)
            return fx[: len(fx) - self.log_det]

        def uncouple(carry: Carry, fx: list, source: list) -> Carry:
            return couple_back(carry, [*source, *fx[len(fx) - self.log_det :]])

        return Step(
            self.name,
            source,
            block,
            couple,
            recover,
            uncouple,
            weights.positions(function.trainable),
            state.positions(function.state),
            packing,
            owners=function.trainable,
            state_owners=function.state,
            settles=True,
            compiled=self.jit_compile and supports_jit(self.layer),
            inference=self.training is False,
        )

    # What goes one way: the whole, the layer's outputs and log-determinant, the next carry.

    def _whole(self, carry: Carry) -> list:
        return list(self.layout.join(carry.streams))

    def _apply(self, whole: list) -> list:
        outputs = [self.layer(x, training=self.training) for x in whole]
        outputs = [list(y) if isinstance(y, (tuple, list)) else [y] for y in outputs]
        latents = [z for y in outputs for z in y[1:]]
        return [*(y[0] for y in outputs), *latents, *self._log_det(whole)]

    def _take_in(self, carry: Carry, fx: list) -> Carry:
        n = self.layout.n_tensors
        heads, latents, delta = fx[:n], fx[n : len(fx) - self.log_det], fx[len(fx) - self.log_det :]
        log_det = [t + cast(d, t.dtype) for t, d in zip(carry.log_det, delta, strict=True)]
        return carry._replace(
            streams=tuple(self.layout.split(heads)),
            log_det=tuple(log_det),
            latents=(*carry.latents, *latents),
        )

    # And the other way.

    def _parts(self, carry: Carry) -> list:
        return [*self._whole(carry), *carry.latents[len(carry.latents) - self._n_leaving :]]

    def _unapply(self, parts: list) -> list:
        n, k = self.layout.n_tensors, self.n_latents
        latents = [parts[n + i * k : n + (i + 1) * k] for i in range(n)]
        whole = [
            invert(self.layer, (head, *z) if z else head, self.training)
            for head, z in zip(parts, latents)
        ]
        return [*whole, *self._log_det(whole)]

    def _give_back(self, carry: Carry, fx: list) -> Carry:
        n = self.layout.n_tensors
        log_det = [t - cast(d, t.dtype) for t, d in zip(carry.log_det, fx[n:], strict=True)]
        return carry._replace(
            streams=tuple(self.layout.split(fx[:n])),
            log_det=tuple(log_det),
            latents=carry.latents[: len(carry.latents) - self._n_leaving],
        )

    def _log_det(self, whole: list) -> list:
        return [sum(self.layer.log_det_jacobian(x) for x in whole)] if self.log_det else []

    @property
    def _n_leaving(self) -> int:
        return self.layout.n_tensors * self.n_latents
