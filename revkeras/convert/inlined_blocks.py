"""Residual blocks that a functional model's own operations make, as layers."""

import collections
import dataclasses
from collections.abc import Hashable, Iterator
from typing import Any

import keras
from keras.src.ops.numpy import Add  # what `x + y` calls


@dataclasses.dataclass(frozen=True)
class _Addition:
    """`end = start + f(start)`.

    Attributes:
        start: A `KerasTensor`.
        end: The sum, a `KerasTensor`.
        node: The call of the addition.
        inside: The calls that make up `f`, by their identities.
        kind: What is equal for additions of equal functions, as far as types and weights tell.
    """

    start: Any
    end: Any
    node: Any
    inside: dict[int, Any]
    kind: Hashable


def with_blocks(model: keras.Model) -> keras.Model | None:
    """A functional model with its residual blocks as models in it; they share its layers.

    A block goes on from the block before it and has the same types of layers, with weights of
    the same shapes, and their inputs and outputs are read nowhere else. What makes one up may
    be several additions, as attention and feed-forward are.

    Returns:
        A functional model of the same inputs and outputs, or `None` if there are no two such
        blocks in a row, or the model is not functional.
    """
    if isinstance(model, keras.Sequential) or not hasattr(model, "operations"):
        return None
    nodes = _nodes(model)
    blocks = [block for chain in _chains(model, nodes) for block in _repeated(chain)]
    if not blocks:
        return None
    ends, hidden = {}, set()
    for block in blocks:
        first, last = block[0], block[-1]
        name = f"{last.node.operation.name}_block"
        ends[id(last.node)] = keras.Model(first.start, last.end, name=name), first.start
        for addition in block:
            hidden.update(addition.inside, [id(addition.node)])
    values = {id(x): x for x in model.inputs}
    for node in nodes:
        if id(node) in ends:
            block, start = ends[id(node)]
            outputs = block(values[id(start)])
        elif node.is_input or id(node) in hidden:
            continue
        else:
            args, kwargs = node.arguments.fill_in(values)
            outputs = node.operation(*args, **kwargs)
        values.update(zip(map(id, node.outputs), keras.tree.flatten(outputs), strict=True))
    outputs = [values[id(x)] for x in model.outputs]
    outputs = keras.tree.pack_sequence_as(model._outputs_struct, outputs)
    return keras.Model(model._inputs_struct, outputs, name=model.name)


def _nodes(model: keras.Model) -> list:
    """The model's calls of operations, in order."""
    by_depth = model._nodes_by_depth
    return [node for depth in sorted(by_depth, reverse=True) for node in by_depth[depth]]


def _chains(model: keras.Model, nodes: list) -> list[list[_Addition]]:
    """The additions in chains: each goes on from the one before it, alone."""
    readers = collections.defaultdict(set)
    for node in nodes:
        for x in node.input_tensors:
            readers[id(x)].add(id(node))
    for x in model.outputs:
        readers[id(x)].add(None)  # the caller
    additions = list(_additions(nodes, readers))
    within = {i for a in additions for i in a.inside}
    additions = [a for a in additions if id(a.node) not in within]
    by_start = {id(a.start): a for a in additions}
    after = {}
    for a in additions:
        following = by_start.get(id(a.end))
        if following and readers[id(a.end)] <= {*following.inside, id(following.node)}:
            after[id(a)] = following
    firsts = {id(a): a for a in additions}
    for following in after.values():
        firsts.pop(id(following), None)
    chains = [[a] for a in firsts.values()]
    for chain in chains:
        while id(chain[-1]) in after:
            chain.append(after[id(chain[-1])])
    return chains


def _additions(nodes: list, readers: dict[int, set]) -> Iterator[_Addition]:
    makers = {id(x): node for node in nodes for x in node.outputs}
    numbers = {id(node): number for number, node in enumerate(nodes)}
    calls = collections.Counter(id(node.operation) for node in nodes)
    for node in nodes:
        if not isinstance(node.operation, (Add, keras.layers.Add)) or len(node.outputs) != 1:
            continue
        tensors = node.input_tensors
        for start, other in zip(tensors, reversed(tensors)) if len(tensors) == 2 else ():
            inside = _between(start, other, makers)
            if not inside or start.shape != node.outputs[0].shape:
                continue
            function = sorted(inside.values(), key=lambda n: numbers[id(n)])
            read = set().union(*(readers[id(y)] for n in function for y in n.outputs))
            alone = read <= {*inside, id(node)}
            once = all(calls[id(n.operation)] == 1 for n in (*function, node))
            kind = tuple(_kind(n.operation) for n in (*function, node))
            if alone and once and any(shapes for _, shapes in kind):
                yield _Addition(start, node.outputs[0], node, inside, kind)


def _between(start: Any, end: Any, makers: dict[int, Any]) -> dict[int, Any] | None:
    """The calls that make `end` of `start`, or `None` if another tensor goes in."""
    inside, waiting = {}, [end]
    while waiting:
        x = waiting.pop()
        if x is start:
            continue
        node = makers.get(id(x))
        if node is None or node.is_input:
            return None
        if id(node) not in inside:
            inside[id(node)] = node
            waiting.extend(node.input_tensors)
    return inside


def _kind(operation: Any) -> tuple:
    weights = getattr(operation, "weights", ())
    return type(operation), tuple((tuple(v.shape), v.dtype) for v in weights)


def _repeated(chain: list[_Addition]) -> Iterator[list[_Addition]]:
    """The parts of a chain that are followed or preceded by an equal one."""
    kinds, start = [a.kind for a in chain], 0
    while start < len(chain):
        repeats = {n: _repeats(kinds[start:], n) for n in range(1, len(chain) - start + 1)}
        length = max(repeats, key=lambda n: (n * repeats[n] * (repeats[n] > 1), -n))
        if repeats[length] > 1:
            for _ in range(repeats[length]):
                yield chain[start : start + length]
                start += length
        else:
            start += 1


def _repeats(kinds: list, length: int) -> int:
    """How many times the first `length` kinds stand there, one after the other."""
    times = 1
    while kinds[times * length : (times + 1) * length] == kinds[:length]:
        times += 1
    return times
