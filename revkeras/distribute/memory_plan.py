"""How many bytes a worker needs, by arithmetic."""

import dataclasses
import math
from collections.abc import Iterator, Sequence

import keras
import ml_dtypes  # noqa: F401  makes NumPy know "bfloat16"
import numpy as np

from revkeras._keras import flatten_layers, learning_rate_variable, stored_dtype
from revkeras._stack.reversible_sequential import ReversibleSequential
from revkeras.checkpoint import Checkpoint
from revkeras.distribute import sharded_layers
from revkeras.distribute.partition import grouped
from revkeras.distribute.zero_optimizer import ELEMENTWISE

_MASTER = 4  # bytes of a float32


@dataclasses.dataclass(frozen=True)
class MemoryPlan:
    """The bytes of training state that one worker holds, and those that it sends.

    Activations are not among them. `print` shows it as a table.

    Attributes:
        stage: 0 without sharding (one worker), 1, 2 or 3.
        workers: Integer, how many workers there are.
        parameters: What is kept of the parameters between steps. In bytes.
        masters: Float32 masters of this worker's slice, beside the parameters. In bytes.
        slots: The optimizer's slots of this worker's slice. In bytes.
        gradients: What is kept of the gradients until the update. In bytes.
        in_flight: What exists for a moment: at stage 3 the whole parameters of the block that
            computes and of the next, which is on its way, and the whole gradients of one;
            at stages 1 and 2 the largest bucket, which has at least one whole variable
            where the optimizer is elementwise. In bytes.
        sent: What a worker sends in one step. In bytes.
    """

    stage: int
    workers: int
    parameters: int
    masters: int
    slots: int
    gradients: int
    in_flight: int
    sent: int

    @property
    def kept(self) -> int:
        """What is held between steps: parameters, masters and slots. In bytes."""
        return self.parameters + self.masters + self.slots

    @property
    def total(self) -> int:
        """What is held at the peak of a step, without activations. In bytes."""
        return self.kept + self.gradients + self.in_flight

    def __str__(self) -> str:
        names = ("parameters", "masters", "slots", "gradients", "in_flight", "total", "sent")
        rows = [(name.replace("_", " "), _readable(getattr(self, name))) for name in names]
        width = max(len(text) for _, text in rows)
        plural = "worker" if self.workers == 1 else "workers"
        how = f"stage {self.stage}, " if self.stage else ""
        lines = [f"Bytes a worker, {how}{self.workers} {plural}"]
        lines += [f"  {name:<12}{text:>{width}}" for name, text in rows[:-1]]
        return "\n".join([*lines, f"  {'sent a step':<12}{rows[-1][1]:>{width}}"])


@dataclasses.dataclass(frozen=True)
class Unit:
    """Parameters that are fetched at once at stage 3: those of one block, or one layer.

    Attributes:
        sizes: The parameters' sizes. In elements.
        itemsize: Bytes of an element as it is kept.
        read: Bytes of an element as it is gathered.
        slots: Bytes of optimizer slots, of all of them.
        stays_whole: Whether every worker keeps them whole at stage 3.
    """

    sizes: tuple[int, ...]
    itemsize: int = 4
    read: int = 4
    slots: int = 0
    stays_whole: bool = False

    @property
    def elements(self) -> int:
        return sum(self.sizes)


def plan(
    model: keras.Model | Sequence[int],
    *,
    stage: int = 3,
    workers: int,
    optimizer: keras.optimizers.Optimizer | None = None,
    bucket_bytes: int = 2**25,
    shard_bytes: int = 2**16,
    compute_bytes: int = 4,
) -> MemoryPlan:
    """Computes what each of `workers` needs to train a model at a stage of ZeRO.

    For optimizers that look at whole variables, such as Muon, a worker's part is as even
    as the variables can be dealt out; here it counts as even, in what is held and what is sent.

    Args:
        model: A built Keras model; or, for one that does not exist yet, a sequence of integers,
            how many parameters each of its blocks has, which count as one variable.
        stage: 1, 2 or 3. Defaults to `3`.
        workers: Integer, how many workers there are.
        optimizer: A Keras optimizer. Defaults to what the model is compiled with, and else
            to AdamW.
        bucket_bytes: As in `ZeroStrategy`. In bytes. Defaults to `2**25`.
        shard_bytes: As in `ZeroStrategy`. In bytes. Defaults to `2**16`.
        compute_bytes: Bytes of a number in which blocks compute that are given as integers: 2
            for mixed precision. Defaults to `4`.

    Returns:
        A `revkeras.distribute.Plan`.

    Raises:
        ValueError: if an argument is out of range, or the model is not built.

    Example:

    >>> import revkeras
    >>> blocks = [12 * 4096**2] * 32  # a transformer of 6 billion parameters
    >>> print(revkeras.distribute.plan(blocks, workers=64, compute_bytes=2))
    Bytes a worker, stage 3, 64 workers
      parameters  384.0 MiB
      masters           0 B
      slots       768.0 MiB
      gradients   384.0 MiB
      in flight     1.5 GiB
      total         3.0 GiB
      sent a step  47.2 GiB
    """
    if stage not in (1, 2, 3):
        raise ValueError(
            f"Invalid value for argument `stage`: expected 1, 2 or 3, received stage={stage!r}."
        )
    if not isinstance(workers, int) or workers < 1:
        raise ValueError(
            "Invalid value for argument `workers`: expected at least 1, received "
            f"workers={workers!r}."
        )
    optimizer = optimizer or getattr(model, "optimizer", None) or keras.optimizers.AdamW()
    optimizer = optimizer.wrapped() if hasattr(optimizer, "wrapped") else optimizer
    deals_whole = not _is_elementwise(optimizer)
    if not isinstance(model, keras.Model):
        per_element = _slot_bytes(optimizer, (8, 8)) // 64
        units = [Unit((n,), 4, compute_bytes, n * per_element) for n in model]
        return _planned(units, 0, stage, workers, bucket_bytes, deals_whole)
    if not model.built:
        raise ValueError(
            "Invalid value for argument `model`: expected a model that is built, as its variables "
            f"do not exist before; received {model!r}. Call it on a batch or give it an Input."
        )
    units = list(_units_of(model, optimizer, shard_bytes))
    fixed = sum(_bytes(v) for v in model.non_trainable_variables)
    return _planned(units, fixed, stage, workers, bucket_bytes, deals_whole)


def _planned(
    units: Sequence[Unit],
    fixed: int,
    stage: int,
    workers: int,
    bucket_bytes: int,
    deals_whole: bool = False,
) -> MemoryPlan:
    """The arithmetic.

    Args:
        units: All trainable parameters.
        fixed: What every worker holds, whatever the stage. In bytes.
        stage: As in `plan`.
        workers: As in `plan`.
        bucket_bytes: As in `plan`.
        deals_whole: Whether the optimizer looks at whole variables. At stage 3 its workers
            keep masters of whole variables, and bring gradients and values to and fro.
    """
    whole = sum(u.elements * u.itemsize for u in units)
    slots = sum(u.slots for u in units)
    gradients = sum(u.elements for u in units) * _MASTER
    if workers == 1:
        return MemoryPlan(0, 1, whole + fixed, 0, slots, gradients, 0, 0)
    share = (workers - 1) / workers
    reads = sum(u.elements * u.read for u in units)
    if stage < 3:
        return MemoryPlan(
            stage,
            workers,
            parameters=whole + fixed,
            masters=-(-gradients // workers),
            slots=-(-slots // workers),
            gradients=gradients if stage == 1 else -(-gradients // workers),
            in_flight=_largest_bucket(units, bucket_bytes, deals_whole),
            sent=round(share * (gradients + reads)),
        )
    sharded = [u for u in units if not u.stays_whole]
    kept = [u for u in units if u.stays_whole]
    small = sum(u.elements for u in kept)
    pairs = zip(sharded, sharded[1:] or sharded)
    reads = sum(u.elements * u.read for u in sharded)
    scattered = sum(u.elements for u in sharded) * _MASTER
    to_and_fro = 2 * scattered if deals_whole else 0
    return MemoryPlan(
        stage,
        workers,
        parameters=fixed
        + sum(u.elements * u.itemsize for u in kept)
        + sum(math.ceil(n / workers) * u.itemsize for u in sharded for n in u.sizes),
        masters=-(-(gradients if deals_whole else small * _MASTER) // workers),
        slots=-(-slots // workers),
        gradients=-(-gradients // workers),
        in_flight=max((a.elements * a.read + b.elements * b.read for a, b in pairs), default=0)
        + max((u.elements * _MASTER for u in sharded), default=0),
        sent=round(
            share
            * (
                2 * reads
                + scattered
                + to_and_fro
                + sum(u.elements * (u.read + _MASTER) for u in kept)
            )
        ),
    )


def _largest_bucket(units: Sequence[Unit], bucket_bytes: int, deals_whole: bool) -> int:
    """The bytes of gradients in it; whole variables are cut, others fill a bucket together."""
    sizes = [size for u in units for size in u.sizes]
    if deals_whole:
        return min(bucket_bytes, sum(sizes) * _MASTER)
    groups = grouped(sizes, bucket_bytes // _MASTER)
    return max((sum(sizes[i] for i in group) for group in groups), default=0) * _MASTER


def _units_of(
    model: keras.Model, optimizer: keras.optimizers.Optimizer, shard_bytes: int
) -> Iterator[Unit]:
    reads = sharded_layers.dtypes_of_reads(flatten_layers(model))
    seen: set[int] = set()
    for layer in sharded_layers.units(model):
        is_stack = isinstance(layer, ReversibleSequential)
        for part in layer.layers if is_stack else [layer]:
            own = [v for v in part.trainable_variables if id(v) not in seen]
            seen.update(id(v) for v in own)
            matrices = [v for v in own if len(v.shape) > 0]
            scalars = [v for v in own if len(v.shape) == 0]
            fetches = is_stack or isinstance(layer, Checkpoint)
            is_small = not fetches and sum(_bytes(v) for v in matrices) < shard_bytes
            for variables, whole in (matrices, is_small), (scalars, True):
                if variables:
                    yield _unit(variables, optimizer, reads, whole)


def _unit(
    variables: Sequence, optimizer: keras.optimizers.Optimizer, reads: dict, stays_whole: bool
) -> Unit:
    sizes = tuple(math.prod(v.shape) for v in variables)
    return Unit(
        sizes,
        itemsize=sum(_bytes(v) for v in variables) // sum(sizes),
        read=max(_itemsize(reads.get(id(v), v.dtype)) for v in variables),
        slots=sum(_slots_of(v, optimizer) for v in variables),
        stays_whole=stays_whole,
    )


def _is_elementwise(optimizer: keras.optimizers.Optimizer) -> bool:
    return type(getattr(optimizer, "inner_optimizer", optimizer)) in ELEMENTWISE


def _slots_of(variable: keras.Variable, optimizer: keras.optimizers.Optimizer) -> int:
    size = math.prod(variable.shape)
    if _is_elementwise(optimizer):
        return size * _slot_bytes(optimizer, (8, 8)) // 64
    return _slot_bytes(optimizer, tuple(variable.shape), variable.path)


def _slot_bytes(
    optimizer: keras.optimizers.Optimizer, shape: tuple[int, ...], name: str = "kernel"
) -> int:
    """What the optimizer keeps for a variable of this shape: it is built for one to see."""
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    copy = type(inner).from_config(inner.get_config())
    copy.build([keras.Variable("zeros", shape=shape, dtype="float32", name=name.replace("/", "_"))])
    shared = (copy.iterations, learning_rate_variable(copy))
    return sum(_bytes(v) for v in copy.variables if not any(v is s for s in shared))


def _bytes(variable: keras.Variable) -> int:
    return math.prod(variable.shape) * _itemsize(stored_dtype(variable))


def _itemsize(dtype: str) -> int:
    return np.dtype(dtype).itemsize


def _readable(count: int) -> str:
    for unit, size in ("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} B"
