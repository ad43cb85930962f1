"""PyTorch's graph of a stack: what it keeps, what it replays, and what differentiates it."""

import keras
import pytest
import torch

import revkeras
from tests import blocks

L = keras.layers


def stack(mode="reversible", depth=3):
    keras.utils.set_random_seed(0)
    layers = [L.Dense(4, activation="tanh") for _ in range(depth)]
    layer = revkeras.ReversibleSequential(layers, memory_mode=mode)
    layer.build((None, 8))
    return layer


def x(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def weights(layer):
    return [v.value for v in layer.trainable_variables]


def in_both(compute):
    """What `compute` makes of the reversible stack is what it makes of the plain one."""
    found, expected = (compute(stack(mode)) for mode in ("reversible", "none"))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def kept(mode, depth):
    """Bytes of what the graph keeps of a call, without the weights."""
    sizes = {}

    def note(t):
        if not isinstance(t, torch.nn.Parameter):
            sizes[t.data_ptr()] = t.numel() * t.element_size()
        return t

    layer = stack(mode, depth)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        y = layer(x(16, 8), training=True)
    y.sum().backward()
    return sum(sizes.values())


def test_what_is_kept_does_not_grow_with_depth():
    assert kept("reversible", 12) == kept("reversible", 3) == 16 * 8 * 4
    assert kept("none", 12) > 3 * kept("none", 3)


def test_gradient_of_gradient():
    def compute(layer):
        source = x(2, 8).requires_grad_()
        y = (layer(source) ** 3).sum()
        first = torch.autograd.grad(y, [source, *weights(layer)], create_graph=True)
        penalty = sum((d**2).sum() for d in first)
        return torch.autograd.grad(penalty, [source, *weights(layer)])

    in_both(compute)


def test_two_backward_passes_of_one_graph():
    def compute(layer):
        y = layer(x(2, 8))
        a, b = y.sum(), (y**2).sum()
        first = torch.autograd.grad(a, weights(layer), retain_graph=True)
        return [*first, *torch.autograd.grad(b, weights(layer))]

    in_both(compute)


def test_a_loop_of_ones_own():
    def compute(layer):
        optimizer = torch.optim.AdamW(layer.parameters(), lr=0.01)
        losses = []
        for _ in range(4):
            optimizer.zero_grad()
            loss = (layer(x(4, 8), training=True) ** 2).mean()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        return losses

    in_both(compute)


@pytest.mark.parametrize("mode", ["reversible", "checkpoint"])
def test_replays_leave_the_global_generator_as_it_was(mode):
    """Keras's Dropout without a seed draws from it."""
    after = []
    for way in mode, "none":
        keras.utils.set_random_seed(0)
        layers = [blocks.dropout(4) for _ in range(3)]
        layer = revkeras.ReversibleSequential(layers, memory_mode=way)
        layer.build((None, 8))
        torch.manual_seed(1)
        source = x(4, 8).requires_grad_()
        layer(source, training=True).sum().backward()
        after.append((source.grad, torch.rand(3)))
    for a, b in zip(*after, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_weights_that_changed_before_the_backward_pass_are_refused():
    layer = stack()
    y = layer(x(2, 8)).sum()
    with torch.no_grad():
        weights(layer)[0].add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()
