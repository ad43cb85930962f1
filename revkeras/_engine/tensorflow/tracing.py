"""A function of tensors as the graph that it traces to."""

import dataclasses
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from revkeras._engine.tensorflow._private import FuncGraph


@dataclasses.dataclass(frozen=True)
class TracedFunction:
    """A traced function.

    Attributes:
        definition: Its graph, as a `GraphDef`.
        arguments: The tensors of the graph that stand for its arguments, in order.
        reads: Pairs of a tensor that it read from outside, and what stands for it.
        results: The structure that it returned, of tensors of the graph and `None`.
        graph: What owns the functions that the definition calls.
        is_used: Whether anything reads each of the arguments.
    """

    definition: Any
    arguments: list[tf.Tensor]
    reads: list[tuple[tf.Tensor, tf.Tensor]]
    results: Any
    graph: tf.Graph
    is_used: list[bool]


def trace_function(function: Callable, arguments: Any) -> TracedFunction:
    """Traces `function(*arguments)`, for tensors of the arguments' shapes and dtypes."""
    graph = FuncGraph("trace")
    with graph.as_default():
        placeholders = tf.nest.map_structure(
            lambda x: None if x is None else tf.compat.v1.placeholder(x.dtype, x.shape), arguments
        )
        # The identity takes what came from outside, such as an eager constant, into the graph.
        results = tf.nest.map_structure(
            lambda y: None if y is None else tf.identity(y), function(*placeholders)
        )
        arguments = tensors_of(placeholders)
        is_used = [bool(x.consumers()) for x in arguments]
    # Small eager tensors become constants, whose values the definition has.
    reads = [(outside, x) for outside, x in graph.captures if x.op.type == "Placeholder"]
    return TracedFunction(graph.as_graph_def(), arguments, reads, results, graph, is_used)


def tensors_of(structure: Any) -> list[tf.Tensor]:
    """The tensors of a structure, without the `None`s."""
    return [x for x in tf.nest.flatten(structure) if x is not None]
