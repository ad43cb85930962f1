"""What a training step costs: activation bytes and seconds, measured in this process."""

import dataclasses
import os
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path

# With these in a process's environment, freed tensors go back to the system: glibc keeps
# smaller blocks, and TensorFlow has a pool of its own on processors where it uses oneDNN.
ENVIRONMENT = {"MALLOC_MMAP_THRESHOLD_": "65536", "TF_ONEDNN_USE_SYSTEM_ALLOCATOR": "true"}

_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")


@dataclasses.dataclass(frozen=True)
class StepCost:
    """The cost of one training step.

    Attributes:
        activation_bytes: Peak of a step over the level between steps, in bytes.
            Gradients that wait for the optimizer count with the activations.
        step_seconds: Median duration of a step. In seconds.
    """

    activation_bytes: int
    step_seconds: float


def measure_steps(step: Callable[[], object], steps: int = 5) -> StepCost:
    """Measures what a training step holds beyond the model's and the optimizer's state.

    The first two steps are taken before anything is noted, so that compilers,
    optimizer slots and caches are in the level and not in the peak. Linux only,
    and for the whole process: measure one configuration per fresh process, with
    `revkeras.memory.ENVIRONMENT` in its environment (`MALLOC_MMAP_THRESHOLD_=65536
    TF_ONEDNN_USE_SYSTEM_ALLOCATOR=true`), so that freed tensors go back to the
    system. Without it there is a warning, and activations may not be seen.

    Args:
        step: Takes one training step when called.
        steps: Integer, how many steps are measured. Defaults to `5`.

    Returns:
        A `StepCost`.

    Raises:
        OSError: if the kernel does not offer `/proc/self/clear_refs`.

    Example:

    >>> import keras
    >>> from revkeras.memory import measure_steps
    >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(8)])
    >>> model.compile("sgd", "mse")
    >>> x = keras.ops.ones((4, 8))
    >>> cost = measure_steps(lambda: model.train_on_batch(x, x))
    >>> cost.step_seconds > 0
    True
    """
    if missing := [f"{k}={v}" for k, v in ENVIRONMENT.items() if os.environ.get(k) != v]:
        warnings.warn(
            "Memory that freed tensors leave in a pool is not seen to be freed, so activation "
            f"bytes may be far too low. Start the process with {' '.join(missing)} in its "
            "environment.",
            stacklevel=2,
        )
    for _ in range(2):
        step()
    _CLEAR_REFS.write_text("5")  # resets the high-water mark
    level = _status_bytes("VmRSS")
    seconds = []
    for _ in range(steps):
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    peak = _status_bytes("VmHWM")
    return StepCost(peak - level, statistics.median(seconds))


def _status_bytes(field: str) -> int:
    for line in _STATUS.read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"{_STATUS} has no field {field}")
