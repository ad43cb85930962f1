"""By PyTorch's graph."""

import keras
import torch

FAILED_CHECK = ValueError


def value_and_gradients(function, sources, variables=(), graph=False, jit_compile=False):
    """See `on_tensorflow`; nothing is compiled."""
    places = [id(x) for x in sources]
    tensors = {
        place: keras.ops.convert_to_tensor(x).detach().requires_grad_()
        for place, x in zip(places, sources, strict=True)
    }
    with torch.enable_grad():
        outputs = function(*(tensors[place] for place in places))
        floating = [y for y in keras.tree.flatten(outputs) if y.is_floating_point()]
        total = sum(y.sum() for y in floating)
        wanted = [*tensors.values(), *(v.value for v in variables)]
        found = torch.autograd.grad(total, wanted, allow_unused=True)
    at_tensors = dict(zip(tensors, found))
    outputs = keras.tree.map_structure(lambda y: y.detach(), outputs)
    return outputs, [*(at_tensors[place] for place in places), *found[len(tensors) :]]


def in_graph(function, variables=(), jit_compile=False):
    """See `on_tensorflow`; nothing is compiled."""
    return function


def jacobian(function, x):
    """See `on_tensorflow`."""

    def joined(x):
        outputs = keras.tree.flatten(function(x))
        return torch.cat([y.reshape(len(y), -1) for y in outputs], -1).sum(0)

    sums = torch.autograd.functional.jacobian(joined, keras.ops.convert_to_tensor(x))
    return sums.reshape(*sums.shape[:2], -1).swapaxes(0, 1).numpy()


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
