"""Ordinary files of sharded models, written by rank 0: Keras's, one variable at a time; exports."""

import functools
from collections.abc import Callable
from typing import Any
from unittest import mock

import keras
import numpy as np
from keras.src.saving import saving_lib

from revkeras.distribute.parameters import whole_on_rank_0


class Nowhere(saving_lib.H5IOStore):
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
            # Keras would write the weights in memory first, where it takes that to be enough.
            with mock.patch.object(saving_lib, "is_memory_sufficient", return_value=False):
                method(model, filepath, *args, **kwargs)
        else:
            saving_lib._save_state(model, Nowhere(), None, "", set())
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
