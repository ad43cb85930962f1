"""What a block may not do where it is replayed for the gradient."""

import contextlib
from collections.abc import Iterable, Iterator, Sequence

import tensorflow as tf

from revkeras._engine.refusals import untracked
from revkeras._engine.tensorflow._private import is_stateful


def refuse_untracked(variables: Sequence[tf.Variable]) -> None:
    """Raises if a block read a variable that is none of the engine's arguments."""
    if variables:
        raise untracked([v.name for v in variables])


@contextlib.contextmanager
def refusing_merges(block: str) -> Iterator[None]:
    """Raises by name where a block's replicas communicate while a pass of it is traced.

    `MirroredStrategy` lets them do so in the graph of the whole step alone, and eagerly.
    """
    try:
        yield
    except RuntimeError as error:
        if "`merge_call` called while" not in str(error):
            raise
        raise ValueError(
            f"{block} communicates between the replicas of a `tf.distribute` strategy "
            "(`merge_call`), as `keras.layers.BatchNormalization(synchronized=True)` does. "
            "Expected a block that each replica can replay for itself: TensorFlow cannot trace "
            "communication where a block is replayed in the backward pass. Take it out of the "
            "block, as with `synchronized=False`, or leave the block out of what is recomputed, "
            "as `memory_mode='none'` does."
        ) from error


# TensorFlow calls these stateful, and a replay may repeat them.
_READS = {"ReadVariableOp", "VarHandleOp", "VarIsInitializedOp", "VariableShape"} | {
    "ResourceGather",
    "ResourceGatherNd",
    "DeviceIndex",
    "IsTensorFloat32Enabled",
    "HashTableV2",
    "LookupTableFindV2",
    "LookupTableSizeV2",
    "StatelessRandomGetAlg",
}
_CHECKS = {"Assert", "CheckNumerics", "CheckNumericsV2", "Print", "PrintV2"}
_CALLS = {"Case", "If", "RemoteCall", "StatefulPartitionedCall", "While"}  # looked into themselves
_PURE = {"CudnnRNN", "CudnnRNNV2", "CudnnRNNV3", "Empty", "Placeholder", "XlaCallModule"}
_REPEATABLE = _READS | _CHECKS | _CALLS | _PURE
# These draw random numbers, and TensorFlow does not call them stateful.
_UNREPEATABLE = {"FractionalAvgPool", "FractionalMaxPool"}


def refuse_changing(name: str, operations: Iterable[str]) -> None:
    """Raises for a step that traces to another graph each time."""
    if "PyFuncStateless" in operations:
        return  # it has another number each time
    raise ValueError(
        f"{name} does not trace to the same graph twice, so its replay in the backward pass would "
        "compute something else. Its `call()` depends on Python values that change, such as "
        "random numbers of NumPy, a counter or the time. Draw random numbers by `keras.random` "
        "with `seed=self.seed_generator`, a `keras.random.SeedGenerator` made in the block's "
        "`__init__()`, keep what changes in `self.add_weight(..., trainable=False)`, or leave the "
        "block out of what is recomputed, as `memory_mode='none'` does."
    )


def refuse_unreplayable(name: str, operations: Iterable[str]) -> None:
    """Raises if a step does what would not be the same when it is done again."""
    if found := sorted(filter(_is_unrepeatable, operations)):
        raise ValueError(
            f"{name} runs TensorFlow's {', '.join(found)}, which need not give the same when the "
            "block is replayed in the backward pass. Draw random numbers by `keras.random` with "
            "`seed=self.seed_generator`, a `keras.random.SeedGenerator` made in the block's "
            "`__init__()`; call a Python function that always computes the same by "
            "`tf.numpy_function(..., stateful=False)`; or leave the block out of what is "
            "recomputed, as `memory_mode='none'` does."
        )


def _is_unrepeatable(operation: str) -> bool:
    return operation in _UNREPEATABLE or (
        is_stateful(operation)
        and operation not in _REPEATABLE
        and not operation.startswith("TensorArray")
    )
