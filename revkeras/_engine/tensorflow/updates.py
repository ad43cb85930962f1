"""Gradients that an optimizer uses up inside the backward pass."""

import collections
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from revkeras._engine.tensorflow.graph import forgotten_by_graph, kept_by_graph


@dataclasses.dataclass
class Ledger:
    """What a training step's graph has done with variables so far.

    Attributes:
        reads: How many steps of stacks read each, by the variable's `id`.
        update: `update(gradients, variables)`, where an optimizer offers it.
        is_known: Whether that optimizer is to update a variable.
        updated: The variables that it has updated, by their `id`.
    """

    reads: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    update: Callable | None = None
    is_known: Callable | None = None
    updated: dict = dataclasses.field(default_factory=dict)


def ledger() -> Ledger | None:
    """The ledger of the graph that is being traced; eagerly there is none."""
    return None if tf.executing_eagerly() else kept_by_graph("ledger", Ledger)


def note_reads(variables: Sequence) -> None:
    """Notes that a step reads the variables."""
    own = ledger()
    if own is not None:
        own.reads.update(map(id, variables))


def offer_update(update: Callable, is_known: Callable) -> None:
    """From here on, the backward pass of the step that is being traced calls `update`."""
    strategy = tf.distribute.get_strategy()
    if strategy.num_replicas_in_sync > 1 or isinstance(strategy, tf.distribute.MirroredStrategy):
        raise ValueError(
            "FusedUpdate cannot update inside the backward pass under a tf.distribute strategy of "
            "replicas, whose gradients are summed at the end. Use the optimizer without it."
        )
    own = ledger()
    if own is None:
        return
    if own.update not in (None, update):
        raise ValueError(
            "Two FusedUpdate optimizers have scaled a loss in one step, so the backward pass would "
            "not know whose weights to update. Apply the first one's gradients before the second "
            "one's `scale_loss(loss)`."
        )
    own.update, own.is_known = update, is_known


def take_updated() -> dict | None:
    """Ends the step: the variables that were updated in it; `None` if no update was offered."""
    own = ledger()
    if own is None or own.update is None:
        return None
    forgotten_by_graph("ledger")
    return own.updated


def use_up(variables: Sequence, gradients: list, tensors: Any) -> tuple[list, Any]:
    """Updates those variables whose whole gradients these are, where an optimizer asked for it.

    Returns:
        `(gradients, tensors)`: `None` for each gradient that was used up, and the
        tensors, once that is done.
    """
    own = ledger()
    if own is None or own.update is None:
        return gradients, tensors
    # What several steps read has its gradient when all are added up.
    whole = [
        i
        for i, (v, d) in enumerate(zip(variables, gradients, strict=True))
        if d is not None and own.reads[id(v)] == 1 and own.is_known(v)
    ]
    if not whole:
        return gradients, tensors
    mine = [variables[i] for i in whole]
    if again := [v.path for v in mine if id(v) in own.updated]:
        raise ValueError(
            f"FusedUpdate updates variables inside the backward pass, and this step differentiates "
            f"them twice: {again}. Use the optimizer without it."
        )
    own.updated.update({id(v): v for v in mine})

    graph = tf.compat.v1.get_default_graph()
    n = len(graph.get_operations())
    # Where the weights are; else those on the host, and their slots, came to the device.
    with tf.device(mine[0].value.device):
        own.update([gradients[i] for i in whole], mine)
    # In a function of its own, as blocks are, each update took 0.1 s to trace. What it does
    # inside conditions, loops and functions is in the operation that calls them.
    done = [x for x in graph.get_operations()[n:] if x.op_def.is_stateful]
    # The gradients of many blocks would be there at a time otherwise.
    with tf.control_dependencies(done):
        tensors = tf.nest.map_structure(tf.identity, tensors)
    return [None if i in whole else d for i, d in enumerate(gradients)], tensors
