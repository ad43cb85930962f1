"""All private names of TensorFlow that the package uses, so that a new TensorFlow breaks one file.

Checked on TensorFlow 2.21.0. Each function says why TensorFlow's public API does not do.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import tensorflow as tf
from tensorflow.python.eager import context

# `tf.custom_gradient` records an operation too, but leaks its gradient in graphs.
from tensorflow.python.eager import record as record
from tensorflow.python.framework import op_def_registry

# `tf.config.experimental` has a way to enable this, and none to ask.
from tensorflow.python.framework.config import (
    is_op_determinism_enabled as is_op_determinism_enabled,
)
from tensorflow.python.ops import gradients_util
from tensorflow.python.ops.parallel_for import pfor

# The graph that `tf.function` traces to; `tf.Graph` does not capture what is read from outside.
FuncGraph = tf.__internal__.FuncGraph

# Attributes of a graph's nodes, which have no public names.
NOT_INLINED = {"_noinline": True}
COLOCATION = "_class"
CUSTOM_GRADIENT = "_gradient_op_type"


# Operations.


def may_be_differentiated(tensors: Sequence[tf.Tensor]) -> bool:
    """Whether a tape watches any of the tensors. No public way to ask."""
    kinds = gradients_util.PossibleTapeGradientTypes(tensors)
    return kinds != gradients_util.POSSIBLE_GRADIENT_TYPES_NONE


def is_stateful(operation: str) -> bool:
    """Whether a type of operation is marked stateful: no function is one. No public registry."""
    definition = op_def_registry.get(operation)
    return definition is not None and definition.is_stateful


def take_gradient(copy: tf.Operation, operation: tf.Operation) -> None:
    """Gives a copy the gradient of a `tf.function`'s call, which is not among its attributes."""
    copy._gradient_function = operation._gradient_function


def set_attribute(operation: tf.Operation, name: str, value: tf.compat.v1.AttrValue) -> None:
    """Sets an attribute of an operation; publicly it can only be read."""
    operation._set_attr(name, value)


def vectorize_by(operation: tf.Operation, converter: Callable[[Any], list]) -> None:
    """Has `tf.vectorized_map` and the like convert an operation so. No public registry."""
    operation.pfor_converter = converter


def default_conversion(operation: Any) -> list:
    """What TensorFlow's own converter makes of an operation in a vectorized loop."""
    return list(pfor._pfor_converter_registry[operation.op_type](operation))


def same_in_all_rounds(x: tf.Tensor) -> Any:
    """An output of a converter that does not depend on the loop's round."""
    return pfor.wrap(x, False)


# Datasets.


def parts(dataset: tf.data.Dataset) -> Iterator[tf.data.Dataset]:
    """The dataset, and all that it is made of. No public way to ask."""
    yield dataset
    for part in dataset._inputs():
        yield from parts(part)


def shuffle_seeds(dataset: tf.data.Dataset) -> list[list[int]]:
    """The seeds of the shuffles in it, two for each; both zero where it is left to chance."""
    shuffles = [part for part in parts(dataset) if type(part).__name__ == "_ShuffleDataset"]
    return [[int(part._seed), int(part._seed2)] for part in shuffles]


def batch_sizes(dataset: tf.data.Dataset) -> list[int]:
    """What it was batched by, the last first. Its element's specification need not tell."""
    batches = [part for part in parts(dataset) if type(part).__name__ == "_BatchDataset"]
    return [int(part._batch_size) for part in batches]


def dataset_of(iterator: tf.data.Iterator) -> tf.data.Dataset:
    """The dataset that an iterator goes through. No public way to ask."""
    return iterator._dataset


# The runtime. `tf.distribute.MultiWorkerMirroredStrategy` starts it publicly, with its replicas.


def runtime() -> Any:
    """TensorFlow's runtime in this process."""
    return context.context()


def runtime_has_started() -> bool:
    """Whether the runtime has begun; asking publicly for devices would begin it."""
    return context.context()._initialized
