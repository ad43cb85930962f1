"""Metrics over the batches of all workers."""

from collections.abc import Callable
from typing import Any

import keras
from keras import ops


def result_of_all_ranks(model: keras.Model, engine: Any) -> Callable[[], dict]:
    """A `get_metrics_result` that sums up the metrics' states over the ranks before."""

    def get_metrics_result() -> dict:
        own = {id(v): v for metric in model.metrics for v in metric.variables}
        with keras.StatelessScope(summed([*own.values()], engine)):
            return type(model).get_metrics_result(model)

    return get_metrics_result


def summed(variables: list, engine: Any) -> list[tuple[keras.Variable, Any]]:
    """Each variable with its value over all ranks, as its `aggregation` says."""
    pairs = []
    for dtype in dict.fromkeys(v.dtype for v in variables):
        mine = [v for v in variables if v.dtype == dtype]
        numbers = "int32" if dtype == "bool" else dtype
        flat = ops.concatenate([ops.cast(ops.reshape(v.value, (-1,)), numbers) for v in mine])
        total = engine.all_reduce(flat)
        start = 0
        for v in mine:
            size = v.value.shape.num_elements() if v.shape else 1
            value = ops.reshape(total[start : start + size], v.shape)
            start += size
            if v.aggregation == "mean":
                value = value / engine.size
            pairs.append((v, ops.cast(value, dtype)))
    return pairs
