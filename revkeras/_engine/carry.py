"""What a stack carries from layer to layer, and how fewer tensors hold it."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import keras


class Carry(NamedTuple):
    """What goes from step to step.

    Attributes:
        streams: The two streams.
        log_det: The log-determinant, if it is asked for: none or one.
        kept: What an exact coupling keeps.
        latents: The tensors that have left the stack on the way.
    """

    streams: tuple
    log_det: tuple = ()
    kept: tuple = ()
    latents: tuple = ()


@dataclasses.dataclass(frozen=True)
class Layout:
    """How tensors hold the two streams. `split` and `join` undo each other.

    Attributes:
        split: From the tensors to the two streams.
        join: From two streams back to the tensors.
        n_tensors: How many tensors hold the streams: one, or two.
    """

    split: Callable[[Sequence], Sequence]
    join: Callable[[Sequence], Sequence]
    n_tensors: int

    def unpack(self, held: Carry) -> Carry:
        """The carry, from one with the tensors in the streams' place."""
        return held._replace(streams=tuple(self.split(held.streams)))

    def pack(self, carry: Carry) -> Carry:
        """Undoes `unpack`."""
        return carry._replace(streams=tuple(self.join(carry.streams)))

    def unpack_gradient(self, held: Carry) -> Carry:
        """`unpack` of a carry of gradients, which are `None` where there is none."""
        if held.streams[0] is None and self.n_tensors == 1:
            return held._replace(streams=(None, None))
        return self.unpack(held)

    def pack_gradient(self, gradient: Carry, carry: Carry) -> Carry:
        """Undoes `unpack_gradient`, for the gradient at `carry`."""
        streams = gradient.streams
        if self.n_tensors == 1:
            if all(d is None for d in streams):
                return gradient._replace(streams=(None,))
            streams = [
                keras.ops.zeros_like(x) if d is None else d
                for x, d in zip(carry.streams, streams, strict=True)
            ]
        return self.pack(gradient._replace(streams=tuple(streams)))


APART = Layout(split=tuple, join=tuple, n_tensors=2)
