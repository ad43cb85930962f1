"""By functions of all values."""

import contextlib

import jax
import jax.numpy as jnp
import keras
import numpy as np

FAILED_CHECK = (ValueError, jax.errors.JaxRuntimeError)  # when a program runs
_given = []  # by each function that is being differentiated, for those inside it


def value_and_gradients(function, sources, variables=(), graph=False, jit_compile=False):
    """See `on_tensorflow`. What `function` assigns to variables is lost.

    A tensor that is given twice is one for `function` too.
    """
    places = [id(x) for x in sources]
    tensors = {place: jnp.asarray(x) for place, x in zip(places, sources, strict=True)}

    def total(tensors, values):
        with _values_of(variables, values):
            outputs = function(*(tensors[place] for place in places))
        floating = [y for y in jax.tree.leaves(outputs) if jnp.issubdtype(y.dtype, jnp.floating)]
        return sum(map(jnp.sum, floating)), outputs

    step = jax.value_and_grad(total, argnums=(0, 1), has_aux=True)
    step = jax.jit(step) if graph else step
    values = [v.value for v in variables]
    (_, outputs), gradients = step(tensors, values)
    return outputs, [*(gradients[0][place] for place in places), *gradients[1]]


def in_graph(function, variables=(), jit_compile=False):
    """See `on_tensorflow`."""

    @jax.jit
    def run(values, *arguments):
        with _values_of(variables, values) as scope:
            outputs = function(*arguments)
        return outputs, [scope.get_current_value(v) for v in variables]

    def call(*arguments):
        outputs, values = run([v.value for v in variables], *arguments)
        for variable, value in zip(variables, values, strict=True):
            variable.assign(value)
        return outputs

    return call


def jacobian(function, x):
    """See `on_tensorflow`."""

    def joined(x):
        with _values_of((), ()):
            outputs = function(x)
        return jnp.concatenate([y.reshape(len(y), -1) for y in jax.tree.leaves(outputs)], -1)

    # A row's outputs depend on that row alone, so that their sum has the gradients of each.
    sums = jax.jit(jax.jacrev(lambda x: jnp.sum(joined(x), 0)))(jnp.asarray(x))
    return np.swapaxes(sums.reshape(*sums.shape[:2], -1), 0, 1)


def differentiated(layer, inputs, arguments, graph, jit_compile):
    """See `on_tensorflow`; `graph` compiles the whole, and `jit_compile` changes nothing."""
    tensors = {k: v for k, v in arguments.items() if keras.ops.is_tensor(v)}
    names = [k for k, v in tensors.items() if jnp.issubdtype(v.dtype, jnp.floating)]
    sources = [*inputs, *(arguments[k] for k in names)]
    trainable = [v.value for v in layer.trainable_variables]
    leaves, structure = jax.tree.flatten(sources)
    floating = [jnp.issubdtype(x.dtype, jnp.floating) for x in leaves]

    def total(floats, trainable):
        floats = iter(floats)
        own = [next(floats) if f else x for x, f in zip(leaves, floating, strict=True)]
        sources = jax.tree.unflatten(structure, own)
        given = sources[: len(inputs)]
        feed = given[0] if len(given) == 1 else given
        own = {**arguments, **dict(zip(names, sources[len(inputs) :], strict=True))}
        with _values_of(layer.trainable_variables, trainable, collect_losses=True) as scope:
            outputs, losses = layer(feed, **own), list(layer.losses)
        state = [scope.get_current_value(v) for v in layer.variables]
        state = [v.value if x is None else x for x, v in zip(state, layer.variables, strict=True)]
        outputs = jax.tree.leaves(outputs)
        y = sum(jnp.sum(_wide(y) ** 2 * 0.1) for y in outputs)
        return y + sum(_wide(loss) for loss in losses), (outputs, losses, state)

    step = jax.value_and_grad(total, argnums=(0, 1), has_aux=True)
    step = jax.jit(step) if graph else step
    floats = [x for x, f in zip(leaves, floating, strict=True) if f]
    (_, (outputs, losses, state)), (at_floats, at_weights) = step(floats, trainable)
    at_floats = iter(at_floats)
    at_sources = [next(at_floats) if f else None for f in floating]
    return outputs, losses, [*at_sources, *at_weights], state


@contextlib.contextmanager
def _values_of(variables, values, **options):
    outside = _given[-1] if _given else []
    _given.append([*outside, *zip(variables, values, strict=True)])
    try:
        with keras.StatelessScope(_given[-1], **options) as scope:
            yield scope
    finally:
        _given.pop()


def _wide(x):
    return x.astype(jnp.promote_types(x.dtype, "float32"))
