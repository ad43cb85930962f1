"""What JAX is doing now, and how variables are read meanwhile."""

import contextlib
from collections.abc import Callable, Iterator, Sequence

import jax

from revkeras._engine.jax._borrowed import trace_state_clean
from revkeras._engine.step import Step
from revkeras._keras import raw

# Keras compiles a training step as one program. Outside of one it would run op by op.
joins_compile = True


def is_eager() -> bool:
    """Whether operations run when they are called, and nothing differentiates them."""
    return trace_state_clean()


def compiler() -> str:
    """The platform that programs are compiled for: `"cpu"`, `"gpu"` or `"tpu"`."""
    device = jax.config.jax_default_device  # set by `jax.default_device`, to one or its platform
    platform = getattr(device, "platform", device) or jax.default_backend()
    return {"cuda": "gpu", "rocm": "gpu"}.get(platform, platform)


def may_be_replayed() -> bool:
    """Whether anything could ask for the gradient of what is computed now."""
    return not is_eager()


@contextlib.contextmanager
def eager_scope() -> Iterator[None]:
    """Inside, operations run when they are called, and float64 has 64 bits."""
    with jax.ensure_compile_time_eval(), jax.enable_x64(True):
        yield


def has_float64() -> bool:
    """Whether float64 has 64 bits."""
    return jax.config.jax_enable_x64


def snapshot(variables: Sequence) -> list:
    """The variables' values as they are now."""
    return [v.value for v in variables]


def read_late(read: Callable[[list], list]) -> Callable[[list], list]:
    """`read`: what a program does not use costs it nothing."""
    return read


def are_initialized(variables: Sequence) -> bool:
    """Whether all variables have values; those made in a stateless scope get them later."""
    return all(raw(v) is not None for v in variables)


def compiles_by_default() -> bool:
    """Whether steps are to be compiled by themselves."""
    return False


def replaying(step: Step) -> Step:
    """The step: its random numbers come from its state alone."""
    return step


def unchanged_draws() -> contextlib.AbstractContextManager:
    """Nothing to keep: random numbers come from layers' states alone."""
    return contextlib.nullcontext()


def refusing_merges(block: str) -> contextlib.AbstractContextManager:
    """Nothing to refuse: JAX's replicas communicate inside one program."""
    return contextlib.nullcontext()
