"""What a Keras backend gives the engine: one folder for each, the same verbs in each.

The walk (`walk.py`) is written once, over these:

| verb | what it does |
| --- | --- |
| `custom_vjp(run, back, inputs, weights, state, place, keeps)` | runs, with a gradient of our own |
| `vjp(function, *arguments)` | the results, and a pull-back; arguments are told apart |
| `passes_of(step, carry, weights, state, known)` | its two passes, each of one piece; shared |
| `after(gate, values)` | the values, once the tensors of `gate` are there |
| `fetch(residence, step, weights, state, gate)` | a step's values, from where they live |
| `residence(offload)`, `place(offload)` | where values live; its own four verbs: `residence.py` |
| `finite(tensors, subject)`, `require(condition, message, tensors)` | checks in the run |
| `note_reads(variables)`, `use_up(variables, gradients, tensors)` | updates in the backward pass |

What else a backend has serves the layers around the walk: how variables are read (`snapshot`,
`read_late`, `are_initialized`), what is going on (`is_eager`, `eager_scope`, `may_be_replayed`),
what its compiler is to do (`joins_compile`, `compiles_by_default`), whether `has_float64`, what is
drawn again (`replaying`, `unchanged_draws`), where values and slots are (`keep_on_host`,
`on_device`, `slots_beside`), a `call_metric` that a layer updates in its call, and what conversions
look at (`operations_of`, `mark`, `is_read`, `is_same_tensor`).
"""

from collections.abc import Callable
from typing import Any

import keras

if keras.backend.backend() == "tensorflow":
    from revkeras._engine.tensorflow import *  # noqa: F403  its `__all__` lists the verbs
elif keras.backend.backend() == "jax":
    from revkeras._engine.jax import *  # noqa: F403
elif keras.backend.backend() == "torch":
    from revkeras._engine.torch import *  # noqa: F403


def __getattr__(verb: str) -> Callable:
    """A verb that the backend lacks, which raises when it is called: couplings need none."""
    if verb.startswith("_"):
        raise AttributeError(f"module '{__name__}' has no attribute '{verb}'")

    def refuse(*_: Any, **__: Any) -> None:
        raise NotImplementedError(
            "Reversible layers run on Keras's TensorFlow, JAX and PyTorch backends; sharded "
            "training on TensorFlow alone. Expected "
            "keras.backend.backend() == 'tensorflow', "
            f"received '{keras.backend.backend()}'. Set KERAS_BACKEND=tensorflow in the "
            "environment before Keras is imported."
        )

    return refuse
