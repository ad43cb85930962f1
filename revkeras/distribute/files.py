"""Ordinary files of sharded models, written by rank 0: Keras's, one variable at a time; exports."""

import functools
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from revkeras._keras import H5IOStore, save_state, saving_to_disk
from revkeras.distribute.parameters import whole_on_rank_0


class Nowhere(H5IOStore):
    """A file that keeps nothing: its ranks help to gather what rank 0 writes."""

    def __init__(self) -> None:
        pass

    def __bool__(self) -> bool:
        return True

    def make(self, path: str, metadata: dict | None = None) -> "Nowhere":
        return self

    def __setitem__(self, key: str, value: Any) -> None:
        np.asarray(value)


def saving_together(model: keras.Model, name: str, strategy: Any) -> Callable:
    """`model.save` or `model.save_weights` of all ranks, which writes on rank 0."""
    method = getattr(type(model), name)

    @functools.wraps(method)
    def save(filepath: Any, *args: Any, **kwargs: Any) -> None:
        if name == "save" and not str(filepath).endswith(".keras") and kwargs.get("zipped", True):
            raise ValueError(
                "Invalid value for argument `filepath`: expected one that ends in '.keras', as the "
                f"older formats hold the whole model in memory, received filepath={filepath!r}."
            )
        strategy.publish_exactly(model)
        if strategy.rank == 0:
            with saving_to_disk():
                method(model, filepath, *args, **kwargs)
        else:
            save_state(model, Nowhere())
        strategy.engine.barrier()

    return save


def exporting_together(model: keras.Model, strategy: Any, initialize: Callable) -> Callable:
    """`model.export` of all ranks, which writes on rank 0.

    That rank holds the whole model meanwhile, since what is exported has variables of its own.
    """
    method = type(model).export

    @functools.wraps(method)
    def export(filepath: Any, *args: Any, **kwargs: Any) -> None:
        strategy.publish_exactly(model)
        with whole_on_rank_0(model.variables, initialize):
            if strategy.rank == 0:
                method(model, filepath, *args, **kwargs)
        strategy.engine.barrier()

    return export
