"""Is what a user gave a stack what it can take?"""

import contextlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np

from revkeras._engine import verbs
from revkeras._keras import flatten_layers, own_seed_generators
from revkeras._round_trip import TOLERANCES, worst_error
from revkeras._stack.block_call import BlockCall
from revkeras._stack.call_arguments import argument_names, required_arguments
from revkeras._stack.invertible_call import InvertibleCall, invert, is_invertible
from revkeras.couplings import Coupling
from revkeras.couplings.depth import DepthLimit, known_limit, tried_limit


def check_layers(layers: Any, argument: str = "layers") -> None:
    """Raises unless the value of an argument is a list of Keras layers."""
    if not isinstance(layers, (list, tuple)):
        raise TypeError(
            f"Invalid value for argument `{argument}`: expected a list of Keras layers, received "
            f"{argument}={layers!r} (of type {type(layers).__name__})."
        )
    if not layers:
        raise ValueError(
            f"Invalid value for argument `{argument}`: expected at least one Keras layer, received "
            "an empty list."
        )
    for index, layer in enumerate(layers):
        if not isinstance(layer, keras.layers.Layer):
            raise TypeError(
                f"Invalid value for argument `{argument}`: expected Keras layers, received "
                f"{argument}[{index}]={layer!r} (of type {type(layer).__name__}). Wrap a function "
                "in `keras.layers.Lambda`, or write a layer."
            )


def stream_dtype(dtype: Any) -> str:
    """The dtype of the streams; raises unless it is a floating-point one."""
    if dtype is None:
        return keras.config.dtype_policy().variable_dtype
    name = keras.dtype_policies.get(dtype).compute_dtype
    if "float" not in name:
        raise ValueError(
            "Invalid value for argument `dtype`: expected a floating-point dtype for the two "
            f"streams, received dtype={dtype!r}."
        )
    if name == "float64":
        require_float64(f"dtype={dtype!r}")
    return name


def require_float64(reason: str) -> None:
    """Raises if the backend would silently take 32 bits for float64."""
    if not verbs.has_float64():
        raise ValueError(
            f"ReversibleSequential needs numbers of 64 bits for {reason}, and JAX has 32 unless it "
            "is told otherwise. Call `jax.config.update('jax_enable_x64', True)` before anything "
            "else."
        )


def check_exact(couplings: Sequence[Coupling], layers: Sequence[keras.layers.Layer]) -> None:
    """Raises if an exact coupling stands beside what is not exact."""
    exact = [c for c in couplings if c.exact]
    if not exact:
        return
    name = type(exact[0]).__name__
    require_float64(f"{name}(exact=True)")
    if len(couplings) > 1:
        raise ValueError(
            "Invalid value for argument `coupling`: an exact coupling must be the only one of its "
            f"stack, received {[type(c).__name__ for c in couplings]}."
        )
    for index, layer in enumerate(layers):
        if is_invertible(layer) and not (
            exact[0].determined and getattr(layer, "rearranges", False)
        ):
            raise ValueError(
                f"Layer {index} ('{layer.name}', of type {type(layer).__name__}) has an inverse "
                f"of its own, which does not keep every bit that {name}(exact=True) needs. Use "
                "another coupling, or put the layer between two stacks."
            )


def check_jit_compile(jit_compile: Any, couplings: Sequence[Coupling]) -> None:
    """Raises if `jit_compile` is neither a boolean nor "auto", or cannot be had."""
    if jit_compile != "auto" and not isinstance(jit_compile, bool):
        raise ValueError(
            "Invalid value for argument `jit_compile`: expected True, False or 'auto', received "
            f"jit_compile={jit_compile!r}."
        )
    if jit_compile is True and couplings[0].exact:
        raise ValueError(
            "Invalid value for argument `jit_compile`: expected False or 'auto' beside "
            f"{type(couplings[0]).__name__}(exact=True), received jit_compile=True. XLA does not "
            "compute the same bits in the forward and in the backward pass."
        )


def check_offload(offload: Any, memory_mode: str) -> None:
    """Raises unless `offload` is one of its values and the memory mode can do it."""
    if offload not in (None, "host"):
        raise ValueError(
            "Invalid value for argument `offload`: expected None or 'host', received "
            f"offload={offload!r}."
        )
    if offload and memory_mode != "reversible":
        raise ValueError(
            "Invalid value for argument `offload`: expected None beside "
            f"memory_mode={memory_mode!r}, which keeps all weights on the device for the backward "
            f"pass, received offload={offload!r}. Use memory_mode='reversible'."
        )


def keep_weights_on_host(layers: Sequence[keras.layers.Layer]) -> None:
    """Has the layers' weights on the host, or raises if one was built where they would not be."""
    for index, layer in enumerate(layers):
        if away := [v.path for v in layer.weights if not verbs.keep_on_host(v)]:
            raise ValueError(
                f"Layer {index} ('{layer.name}', of type {type(layer).__name__}) was built on a "
                f"device before it came into a stack with offload='host': {away}. Leave it to the "
                "stack to build it, or build it under `tf.device('CPU:0')`."
            )


def find_depth_limit(
    stack: Any, shape: tuple, start: Callable[[Any], list] | None
) -> DepthLimit | None:
    """The limit that a stack on streams of `shape` has passed, or `None`."""
    couplings, dtype = stack.block_couplings, stack.compute_dtype
    known = known_limit(couplings, dtype)
    if known or not stack.check_inverse or any(c.exact for c in couplings):
        return known
    with verbs.eager_scope():
        return tried_limit(couplings, shape, dtype, start)


def warn_of_depth(stack: Any, limit: DepthLimit | None) -> None:
    """Warns if couplings lose too many digits for the number of blocks."""
    if limit is not None:
        names = dict.fromkeys(c.describe()[0] for c in limit.couplings)
        warnings.warn(
            f"{' or '.join(names)} loses digits in each block that it rebuilds: in "
            f"{stack.compute_dtype} it holds up to about {limit.blocks} blocks, and "
            f"ReversibleSequential '{stack.name}' has {stack.depth} with it, so what is rebuilt "
            "will be wrong, and gradients with it. Use fewer blocks, an exact coupling such as "
            "`revkeras.couplings.Additive(exact=True)`, dtype='float64', or "
            "memory_mode='checkpoint'.",
            stacklevel=4,
        )


def check_start(couplings: Sequence[Coupling], split_axis: int | None) -> None:
    """Raises if a coupling would learn a start that the stack never takes."""
    for index, coupling in enumerate(couplings):
        if coupling.start_shape((None, 1)) and (index or split_axis is not None):
            raise ValueError(
                f"{type(coupling).__name__} learns how a stream starts, which only the first "
                "coupling of a stack with `split_axis=None` does; received it as coupling "
                f"{index} beside split_axis={split_axis}."
            )


def check_layer_inverse(call: InvertibleCall, source: keras.KerasTensor) -> None:
    """Raises if a layer does not undo itself on random values.

    A wrong formula is told from rounding by a wide margin: what is passed here
    may still be too inexact for a deep stack.
    """
    shape = [d or n for d, n in zip(source.shape, [2, *[4] * len(source.shape)])]
    x = np.random.default_rng(0).standard_normal(shape)
    for training in False, True:
        try:
            # Nothing that the layer does here is to last: updates, losses, ActNorm's start.
            with keras.StatelessScope(collect_losses=True):
                tensor = keras.ops.convert_to_tensor(x, source.dtype)
                found = invert(call.layer, call.layer(tensor, training=training), training)
        except Exception:  # sizes that are not known may have to be others than four
            if None in source.shape[1:]:
                return
            raise
        error, relative, _ = worst_error([found], [x])
        tolerance = TOLERANCES[source.dtype].wrong
        if relative > tolerance:
            raise ValueError(
                f"{call.name} does not undo itself: with training={training}, inverse(call(x)), "
                f"of shape {found.shape}, differs from x, of shape {x.shape}, by {error:.3g} on "
                f"random values; expected at most about {tolerance:g}. Correct its `inverse()`, "
                "which has to undo `call()` on the state that `call()` left, and gets `training` "
                "if it names it; or pass `check_inverse=False` if it is right and random values "
                "are outside its domain."
            )


def check_call_arguments(stack: Any, arguments: dict) -> None:
    """Raises if no block takes one of the arguments."""
    if not arguments:
        return
    names = [argument_names(layer) for layer in stack.layers if not is_invertible(layer)]
    unknown = set(arguments).difference(*names)
    if unknown:
        raise TypeError(
            f"ReversibleSequential '{stack.name}' received the arguments {sorted(unknown)}, "
            "which the `call()` of none of its blocks takes. The blocks take: "
            f"{sorted(set().union(*names) - {'mask'})}."
        )


@contextlib.contextmanager
def noted(note: str) -> Iterator[None]:
    """Adds a note to an exception that is raised inside."""
    try:
        yield
    except Exception as error:
        error.add_note(note)
        raise


def check_required(calls: list) -> None:
    """Raises if a block lacks an argument that it cannot do without."""
    for call in calls:
        if isinstance(call, BlockCall):
            missing = required_arguments(call.layer) - set(call.arguments)
            if missing:
                raise TypeError(
                    f"{call.name} takes {sorted(missing)} beside its stream in `call()`, and got "
                    "nothing for it. Pass it to the stack by keyword, or wrap the block in a layer "
                    "of one input."
                )


def check_determined(stack: Any, training: bool | None) -> None:
    """Raises if a stack's outputs do not determine its inputs."""
    this = f"ReversibleSequential '{stack.name}'"
    if not stack.built:
        raise ValueError(
            f"{this} has no weights yet, so it has no inverse: call it once, or `build()` it, "
            "before `inverse()`."
        )
    for coupling in stack.couplings:
        if not coupling.determined:
            raise ValueError(
                f"{this} has no inverse from its outputs alone: {type(coupling).__name__}"
                "(exact=True) needs its remainders too, which stay inside. Use exact=False."
            )
    for index, layer in enumerate(stack.layers):
        if training and any(map(own_seed_generators, flatten_layers(layer))):
            raise ValueError(
                f"Block {index} ('{layer.name}', of type {type(layer).__name__}) draws random "
                "numbers in training, so the inverse of one call is not that of another. Expected "
                f"training=False in `inverse()` of {this}, received training={training!r}."
            )


def separate_latents(stack: Any, outputs: Any, n: int) -> tuple[Any, list]:
    """The outputs without the tensors that left the stack on the way, and those."""
    this = f"`inverse()` of ReversibleSequential '{stack.name}'"
    latents = []
    if any(isinstance(x, keras.KerasTensor) for x in keras.tree.flatten(outputs)):
        raise ValueError(
            f"Invalid value for argument `outputs` of {this}: expected tensors, received symbolic "
            "ones. In a functional model use the layer `as_inverse()`."
        )
    if n:
        if not isinstance(outputs, (list, tuple)) or len(outputs) != 1 + n:
            raise ValueError(
                f"Invalid value for argument `outputs` of {this}: expected what a call returns, a "
                f"tuple of the output and {n} tensors that left the stack on the way; received "
                f"{keras.tree.map_structure(lambda x: tuple(getattr(x, 'shape', ())), outputs)}."
            )
        outputs, *latents = outputs
    elif isinstance(outputs, (list, tuple)) and not (stack.takes_pair or stack.split_axis is None):
        raise ValueError(
            f"Invalid value for argument `outputs` of {this}: expected one tensor, received "
            f"{len(outputs)}. Leave out the log-determinant and what blocks return beside their "
            "update."
        )
    if stack.split_axis is None and not isinstance(outputs, (list, tuple)):
        raise ValueError(
            f"Invalid value for argument `outputs` of {this}: one tensor does not determine two "
            "streams where `split_axis` is None. Build a stack on a list or tuple of two tensors, "
            "and give its inverse the two that it returns."
        )
    return outputs, list(latents)
