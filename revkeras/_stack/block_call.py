"""One call of one block in a stack: on one stream, taken into the other by a coupling."""

import dataclasses
from collections.abc import Hashable, Sequence
from typing import Any

import keras

from revkeras._engine import verbs
from revkeras._engine.carry import Carry
from revkeras._engine.step import Step
from revkeras._stack.masks import attach_mask
from revkeras._stack.operands import Operands
from revkeras._stack.stateless import (
    Packing,
    StatelessLayer,
    separate_tensors,
    spec_of,
    supports_jit,
)
from revkeras._stack.streams import in_dtype
from revkeras._stack.structure import structure_of
from revkeras.couplings import Coupling, rule_of
from revkeras.debugging import checks_enabled


@dataclasses.dataclass(frozen=True)
class BlockCall:
    """A block with all that one call of it takes beside the stream.

    Attributes:
        layer: The block.
        name: What errors call it.
        coupling: How the streams take in its output.
        dtype: The dtype that it is called on.
        training: `training` for the block, or `None`.
        accepts: The further arguments that the block's `call()` names.
        reads: Which of the input's streams is the one that it is called on, 0 or 1, or
            `None` if masks of the input do not fit it.
        jit_compile: Whether XLA compiles the step, if the layer supports it.
        mask: The stream's mask, or `None`.
        arguments: Further arguments of the block's `call()`.
    """

    layer: keras.layers.Layer
    name: str
    coupling: Coupling
    dtype: str
    training: bool | None
    accepts: frozenset[str]
    reads: int | None
    jit_compile: bool = False
    mask: Any = None
    arguments: dict[str, Any] = dataclasses.field(default_factory=dict)

    def bound(self, masks: Sequence, arguments: dict[str, Any]) -> "BlockCall":
        """The call with what it takes of the input's masks and of the stack's arguments."""
        mask = None if self.reads is None else masks[self.reads]
        own = {k: value for k, value in arguments.items() if k in self.accepts}
        if mask is not None and "mask" in self.accepts:
            own["mask"] = mask
        return dataclasses.replace(self, mask=mask, arguments=own)

    def plain(self, carry: Carry) -> tuple[Carry, list]:
        """Calls the block as any Keras layer: `(carry, extras)`."""
        (x,) = self._source(carry)
        outputs = self.layer(attach_mask(x, self.mask), **self.arguments, training=self.training)
        fx, extras = self.separate(outputs, x)
        return self._couple(carry, fx), extras

    def step(self, weights: Operands, state: Operands) -> Step:
        """The call as a pure step; its operands join `weights` and `state`.

        Once it has run, its packing finds `(extras, losses)` in the sides: what the block
        returned beside its update, and what it added as losses.
        """
        function = StatelessLayer.of(self.layer, self.training)
        floats, others, rebuild = separate_tensors((self.arguments, self.mask))
        n_weights, n_state = len(function.trainable), len(function.state)
        packing = Packing()

        def block(source: list, weights: list, state: list) -> tuple[list, list, dict]:
            arguments, mask = rebuild(weights[n_weights:], state[n_state:])
            x = attach_mask(source[0], mask)
            outputs, losses, updates = function(
                weights[:n_weights], state[:n_state], x, **arguments
            )
            fx, extras = self.separate(outputs, x)
            return fx, packing.pack((extras, losses)), updates

        return Step(
            self.name,
            self._source,
            block,
            self._couple,
            lambda carry, weights, state: self._recover(carry),
            lambda carry, fx, source: self._uncouple(carry, fx),
            weights.positions([*function.trainable, *floats]),
            state.positions([*function.state, *others]),
            packing,
            self._structure([*function.trainable, *function.state]),
            owners=(*function.trainable, *floats),
            state_owners=(*function.state, *others),
            pull_back=self._pull_back if rule_of(self.coupling) else None,
            exact=self.coupling.exact,
            compiled=self.jit_compile and supports_jit(self.layer),
            inference=self.training is False,
        )

    def inverse_step(self, weights: Operands, state: Operands) -> Step:
        """The call's inverse as a step: the same, with its two directions exchanged."""
        step = self.step(weights, state)
        return dataclasses.replace(
            step,
            structure=step.structure and ("inverse", step.structure),
            source=self._recover,
            couple=self._uncouple,
            recover=lambda carry, weights, state: self._source(carry),
            uncouple=lambda carry, fx, source: self._couple(carry, fx),
            pull_back=None,
        )

    def _structure(self, variables: list) -> Hashable | None:
        """What is equal for calls that trace to the same graph, where that can be told."""
        if verbs.is_eager():  # nothing is traced
            return None
        layer, coupling = structure_of(self.layer, variables), structure_of(self.coupling)
        arguments = structure_of(spec_of((self.arguments, self.mask)))
        if layer is None or coupling is None or arguments is None:
            return None
        return layer, coupling, arguments, self.dtype, self.training

    def separate(self, outputs: Any, stream: Any) -> tuple[list, list]:
        """The block's output as `(fx, extras)`: lists of what it is for, and of the rest."""
        try:
            fx, extras = self.coupling.separate(outputs, stream)
        except ValueError as error:
            raise ValueError(f"{self.name} {error}.") from None
        return list(fx) if isinstance(fx, tuple) else [fx], extras

    def _source(self, carry: Carry) -> list:
        return [in_dtype(carry.streams[1], self.dtype)]

    def _recover(self, carry: Carry) -> list:
        return [in_dtype(self.coupling.source([*carry.streams, *carry.kept]), self.dtype)]

    def _couple(self, carry: Carry, fx: list) -> Carry:
        fx, own = self._update(fx), [*carry.streams, *carry.kept]
        log_det = [t + self._log_det(fx, own[0], t.dtype) for t in carry.log_det]
        x0, x1, *kept = self._checked(self.coupling.couple(own, fx), own)
        return carry._replace(streams=(x0, x1), log_det=tuple(log_det), kept=tuple(kept))

    def _uncouple(self, carry: Carry, fx: list) -> Carry:
        fx, own = self._update(fx), [*carry.streams, *carry.kept]
        x0, x1, *kept = self.coupling.uncouple(own, fx)
        log_det = [t - self._log_det(fx, x0, t.dtype) for t in carry.log_det]
        return carry._replace(streams=(x0, x1), log_det=tuple(log_det), kept=tuple(kept))

    def _pull_back(self, carry: Carry, fx: list, dcarry: Carry) -> tuple[Carry, list]:
        if carry.log_det:
            return verbs.vjp(self._couple, carry, fx)[1](dcarry)
        dstreams, *dfx = self.coupling.pull_back(carry.streams, self._update(fx), dcarry.streams)
        dfx = [d if d is None else in_dtype(d, t.dtype) for d, t in zip(dfx, fx, strict=True)]
        return dcarry._replace(streams=tuple(dstreams)), dfx

    def _log_det(self, fx: Any, stream: Any, dtype: Any) -> Any:
        return keras.ops.cast(self.coupling.log_det(fx, stream), dtype)

    def _update(self, fx: list) -> Any:
        # A block may compute in 16 bits beside streams of 32.
        fx = [in_dtype(t, self.dtype) for t in fx]
        return fx[0] if len(fx) == 1 else tuple(fx)

    def _checked(self, after: list, before: list) -> list:
        if not (self.coupling.exact and checks_enabled()):
            return after
        message = f"{self.name} returned values beyond the range of {self.coupling.describe()[0]}"
        return verbs.require(after[2] <= before[2], message, after)
