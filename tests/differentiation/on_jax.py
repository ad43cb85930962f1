"""By a function of all values."""

import jax
import jax.numpy as jnp
import keras


def differentiated(layer, inputs, arguments, graph, jit_compile):
    """See `on_tensorflow`; `graph` compiles the whole, and `jit_compile` changes nothing."""
    tensors = {k: v for k, v in arguments.items() if keras.ops.is_tensor(v)}
    names = [k for k, v in tensors.items() if jnp.issubdtype(v.dtype, jnp.floating)]
    sources = [*inputs, *(arguments[k] for k in names)]
    trainable = [v.value for v in layer.trainable_variables]
    rest = [v.value for v in layer.non_trainable_variables]

    def total(sources, trainable):
        given = sources[: len(inputs)]
        feed = given[0] if len(given) == 1 else given
        own = {**arguments, **dict(zip(names, sources[len(inputs) :], strict=True))}
        outputs, state, losses = layer.stateless_call(
            trainable, rest, feed, return_losses=True, **own
        )
        outputs = jax.tree.leaves(outputs)
        y = sum(jnp.sum(_wide(y) ** 2 * 0.1) for y in outputs)
        return y + sum(_wide(loss) for loss in losses), (outputs, losses, state)

    step = jax.value_and_grad(total, argnums=(0, 1), has_aux=True)
    step = jax.jit(step) if graph else step
    (_, (outputs, losses, rest)), gradients = step(sources, trainable)
    after = {id(v): v.value for v in layer.variables}
    after.update(zip(map(id, layer.non_trainable_variables), rest, strict=True))
    return outputs, losses, [*gradients[0], *gradients[1]], list(after.values())


def _wide(x):
    return x.astype(jnp.promote_types(x.dtype, "float32"))
