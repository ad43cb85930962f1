"""Residual blocks that a functional model's own operations make, as layers."""

import collections
import dataclasses
from collections.abc import Hashable, Iterator
from typing import Any

import keras

from revkeras._keras import AddOperation, inputs_structure, nodes_of, outputs_structure


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
    outputs = keras.tree.pack_sequence_as(outputs_structure(model), outputs)
    return keras.Model(inputs_structure(model), outputs, name=model.name)


def additions_passed_over(model: keras.Model) -> list[str]:
    """The additions of a functional model that has no such blocks, each with the reason."""
    nodes = _nodes(model)
    readers, calls = _readers(model, nodes), _calls(nodes)
    lines = []
    for node in filter(_is_addition, nodes):
        reasons = {_obstacle(a, readers, calls) for a in _of_addition(node, nodes)}
        if not reasons:
            reason = "adds no two tensors of which one is computed from the other alone"
        else:
            reason = "; ".join(sorted(reasons - {None})) or (
                "does not go on from another one that adds a function of the same layers, or "
                "something else reads what is between them"
            )
        lines.append(f"'{node.operation.name}' (an addition): {reason}")
    return lines


def _nodes(model: keras.Model) -> list:
    """The calls of operations of a functional model, in order; of others none."""
    if isinstance(model, keras.Sequential) or not hasattr(model, "operations"):
        return []
    return nodes_of(model)


def _chains(model: keras.Model, nodes: list) -> list[list[_Addition]]:
    """The additions in chains: each goes on from the one before it, alone."""
    readers, calls = _readers(model, nodes), _calls(nodes)
    candidates = (a for node in filter(_is_addition, nodes) for a in _of_addition(node, nodes))
    additions = [a for a in candidates if not _obstacle(a, readers, calls)]
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


def _readers(model: keras.Model, nodes: list) -> dict[int, set]:
    """Of each tensor, by its identity, the calls that read it, by theirs."""
    readers = collections.defaultdict(set)
    for node in nodes:
        for x in node.input_tensors:
            readers[id(x)].add(id(node))
    for x in model.outputs if nodes else ():
        readers[id(x)].add(None)  # the caller
    return readers


def _calls(nodes: list) -> collections.Counter:
    """How often each operation is called, by its identity."""
    return collections.Counter(id(node.operation) for node in nodes)


def _is_addition(node: Any) -> bool:
    return (
        isinstance(node.operation, (AddOperation, keras.layers.Add))
        and len(node.outputs) == 1
        and len(node.input_tensors) == 2
    )


def _of_addition(node: Any, nodes: list) -> Iterator[_Addition]:
    """An addition as `start + f(start)`, from each of what it adds that can be the start."""
    makers = {id(x): node for node in nodes for x in node.outputs}
    numbers = {id(node): number for number, node in enumerate(nodes)}
    for start, other in zip(node.input_tensors, reversed(node.input_tensors)):
        inside = _between(start, other, makers)
        if inside:
            function = sorted(inside.values(), key=lambda n: numbers[id(n)])
            kind = tuple(_kind(n.operation) for n in (*function, node))
            yield _Addition(start, node.outputs[0], node, inside, kind)


def _obstacle(a: _Addition, readers: dict[int, set], calls: collections.Counter) -> str | None:
    """Why an addition cannot be a block."""
    function = a.inside.values()
    if a.start.shape != a.end.shape:
        return f"changes the shape {a.start.shape} to {a.end.shape}"
    if any(calls[id(n.operation)] > 1 for n in (*function, a.node)):
        return "calls a layer that is called elsewhere too"
    read = set().union(*(readers[id(y)] for n in function for y in n.outputs))
    if not read <= {*a.inside, id(a.node)}:
        return "something else reads what is inside it"
    if not any(shapes for _, shapes in a.kind):
        return "adds a function without weights"
    return None


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
