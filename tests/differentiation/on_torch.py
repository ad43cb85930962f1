"""By PyTorch's graph."""

import keras
import torch


def differentiated(layer, inputs, arguments, graph, jit_compile):
    """See `on_tensorflow`; `graph` and `jit_compile` change nothing."""
    names = [k for k, v in arguments.items() if torch.is_tensor(v) and v.is_floating_point()]
    inputs = [x.detach().requires_grad_() for x in inputs]
    own = {k: arguments[k].detach().requires_grad_() for k in names}
    before = [keras.ops.convert_to_numpy(v.value).copy() for v in layer.variables]
    torch.manual_seed(0)  # Keras's Dropout draws from the global generator
    feed = inputs[0] if len(inputs) == 1 else inputs
    outputs = keras.tree.flatten(layer(feed, **{**arguments, **own}))
    losses = list(layer.losses)
    total = sum((y.double() ** 2 * 0.1).sum() for y in outputs)
    total = total + sum(loss.double() for loss in losses)
    sources = [*inputs, *own.values(), *(v.value for v in layer.trainable_variables)]
    gradients = torch.autograd.grad(total, sources, allow_unused=True)
    state = [keras.ops.convert_to_numpy(v.value).copy() for v in layer.variables]
    for variable, value in zip(layer.variables, before, strict=True):
        variable.assign(value)
    outputs, losses = ([x.detach() for x in xs] for xs in (outputs, losses))
    return outputs, losses, list(gradients), state
