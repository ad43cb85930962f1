"""Metrics and logs over the batches of all workers."""

import dataclasses
from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from revkeras._engine import verbs


def over_ranks(values: list, aggregations: list[str], engine: Any) -> list:
    """One tensor for each of the ranks' tensors, the same on all ranks.

    Keras's `aggregation` says which: their sum for `"sum"`, rank 0's for `"only_first_replica"`,
    and their mean for `"mean"` and for `"none"`, which says nothing. Integers are divided
    without a remainder. Tensors of one dtype share an all-reduce.

    Args:
        values: This rank's tensors.
        aggregations: The `aggregation` of each.
        engine: The engine that the ranks communicate by.
    """
    results: list = [None] * len(values)
    dtypes = [keras.backend.standardize_dtype(x.dtype) for x in values]
    for dtype in dict.fromkeys(dtypes):
        chosen = [i for i, d in enumerate(dtypes) if d == dtype]
        numbers = "int32" if dtype == "bool" else dtype
        flat = []
        for i in chosen:
            mine = ops.cast(ops.reshape(values[i], (-1,)), numbers)
            leaves_out = engine.rank and aggregations[i] == "only_first_replica"
            flat.append(ops.zeros_like(mine) if leaves_out else mine)
        total = engine.all_reduce(ops.concatenate(flat))
        start = 0
        for i, mine in zip(chosen, flat):
            stop = start + ops.size(mine)
            value = ops.reshape(total[start:stop], ops.shape(values[i]))
            start = stop
            if aggregations[i] in ("mean", "none"):
                is_float = keras.backend.is_float_dtype(dtype)
                value = value / engine.size if is_float else value // engine.size
            results[i] = ops.cast(value, dtype)
    return results


@dataclasses.dataclass(frozen=True)
class _Result:
    """What a metric's `result()` returned, and from what.

    Attributes:
        again: Calls `result()` again.
        returned: What it returned.
        variables: The metric's variables.
        state: Their values at that time.
    """

    again: Callable[[], Any]
    returned: Any
    variables: list
    state: list


class LogsOfAllRanks:
    """Turns the logs of one worker's steps into those of all workers.

    The result of a metric of the model is computed again from the states of all ranks. Every
    other number is averaged.

    Args:
        model: A compiled model.
        engine: The engine that the ranks communicate by.
    """

    def __init__(self, model: keras.Model, engine: Any):
        self._model, self._engine = model, engine
        self._results: list[_Result] | None = None  # those that a step has asked for so far
        self._watched: dict[int, keras.Metric] = {}

    def get_metrics_result(self) -> dict:
        """The model's `get_metrics_result`; inside of a step, this rank's."""
        own = type(self._model).get_metrics_result
        if self._results is None:
            return self.of(lambda: own(self._model))
        self._watch()  # metrics that the first step has made
        return own(self._model)

    def of(self, step: Callable, *args: Any) -> Any:
        """The logs that `step(*args)` returns, over all ranks."""
        self._results = []
        self._watch()
        try:
            logs, results = step(*args), self._results
        finally:
            self._results = None
            for metric in self._watched.values():
                del metric.result
            self._watched = {}
        return self._reduced(logs, results)

    def _watch(self) -> None:
        """Notes what the model's metrics return from here on."""
        for metric in self._model.metrics:
            if id(metric) not in self._watched:
                self._watched[id(metric)] = metric
                metric.result = self._noting(metric, metric.result)

    def _noting(self, metric: keras.Metric, result: Callable) -> Callable:
        def noted() -> Any:
            variables = list(metric.variables)
            state = verbs.snapshot(variables)
            returned = result()
            self._results.append(_Result(result, returned, variables, state))
            return returned

        return noted

    def _reduced(self, logs: Any, results: list[_Result]) -> Any:
        leaves = keras.tree.flatten(logs)
        found = _places(results)
        used = {id(r): r for r in (found[id(x)][0] for x in leaves if id(x) in found)}
        numbers = [None if id(x) in found else _as_number(x) for x in leaves]
        plain = [x for x in numbers if x is not None]
        values = [x for r in used.values() for x in r.state] + plain
        aggregations = [v.aggregation for r in used.values() for v in r.variables]
        aggregations += ["mean"] * len(plain)
        reduced = iter(over_ranks(values, aggregations, self._engine))
        again = {key: _result_of(r, [next(reduced) for _ in r.state]) for key, r in used.items()}
        for i, (x, number) in enumerate(zip(leaves, numbers)):
            if id(x) in found:
                result, place = found[id(x)]
                leaves[i] = again[id(result)][place]
            elif number is not None:
                leaves[i] = next(reduced)
        return keras.tree.pack_sequence_as(logs, leaves)


def _places(results: list[_Result]) -> dict[int, tuple[_Result, int]]:
    """By the `id` of a tensor, the result that it was returned in, and its place there."""
    return {
        id(x): (result, place)
        for result in results
        for place, x in enumerate(keras.tree.flatten(result.returned))
        if ops.is_tensor(x) or isinstance(x, keras.Variable)
    }


def _result_of(result: _Result, state: list) -> list:
    """What the metric returns for a state, flattened."""
    with keras.StatelessScope(list(zip(result.variables, state))):
        # A metric may return a variable, which is this rank's outside of the scope.
        return [_value(x) for x in keras.tree.flatten(result.again())]


def _as_number(x: Any) -> Any:
    """A tensor to be averaged; `None` for what is no number, such as a string."""
    if x is None or isinstance(x, str):
        return None
    x = _value(x)
    dtype = keras.backend.standardize_dtype(x.dtype)
    if dtype == "string":
        return None
    return ops.cast(x, "float64" if dtype == "float64" else "float32")


def _value(x: Any) -> Any:
    return ops.convert_to_tensor(x.value if isinstance(x, keras.Variable) else x)
