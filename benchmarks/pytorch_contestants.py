"""The contestants on PyTorch: the plain recurrence, checkpointing, RevLib and MemCNN.

Each library is used by its documented entry point, with its defaults. MemCNN rebuilds
blocks with dropout from other masks than it drew before; what that costs is the same.
"""

import math
from importlib.metadata import version

import torch
from measurement import Training
from torch import nn
from torch.utils.checkpoint import checkpoint
from workloads import HEADS, WORKLOADS

THREADS = 2
RATE = 1e-3
VERSIONS = {
    "torch": torch.__version__,
    "revlib": version("revlib"),
    "memcnn": version("memcnn"),
}


class Attention(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.normalization = nn.LayerNorm(channels)
        self.attention = nn.MultiheadAttention(channels, HEADS, bias=False, batch_first=True)

    def forward(self, x):
        h = self.normalization(x)
        return self.attention(h, h, h, need_weights=False)[0]


def feed_forward_modules(channels, dropout):
    modules = [nn.LayerNorm(channels), nn.Linear(channels, 4 * channels), nn.GELU()]
    if dropout:
        modules.append(nn.Dropout(dropout))
    return [*modules, nn.Linear(4 * channels, channels)]


def convolution_modules(channels):
    return [
        nn.Conv2d(channels, channels, 3, padding="same", bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
    ]


def build_block(workload, index):
    channels = workload.stream_channels
    if workload.name == "convolutional":
        return nn.Sequential(*convolution_modules(channels), *convolution_modules(channels))
    if workload.name == "transformer" and index % 2 == 0:
        return Attention(channels)
    return nn.Sequential(*feed_forward_modules(channels, workload.dropout))


class TwoStreams(nn.Module):
    """The recurrence y0 = x1, y1 = x0 + f(x1), left to autograd."""

    def __init__(self, blocks, axis, run):
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.axis = axis
        self.run = run

    def forward(self, x):
        x0, x1 = x.chunk(2, self.axis)
        for block in self.blocks:
            x0, x1 = x1, x0 + self.run(block, x1)
        return torch.cat([x0, x1], self.axis)


def plain(blocks, axis):
    return TwoStreams(blocks, axis, lambda block, x: block(x))


def checkpointed(blocks, axis):
    return TwoStreams(blocks, axis, lambda block, x: checkpoint(block, x, use_reentrant=False))


def revlib_stack(blocks, axis):
    import revlib

    return revlib.ReversibleSequential(*blocks, split_dim=axis)


def memcnn_stack(blocks, axis):
    import memcnn

    # Two blocks make one coupling. The first one keeps its input, which is the data.
    return nn.Sequential(
        *(
            memcnn.InvertibleModuleWrapper(
                memcnn.AdditiveCoupling(blocks[index], blocks[index + 1], split_dim=axis),
                keep_input=index == 0,
            )
            for index in range(0, len(blocks), 2)
        )
    )


STACKS = {
    "torch": plain,
    "torch-checkpoint": checkpointed,
    "revlib": revlib_stack,
    "memcnn": memcnn_stack,
}


def build(configuration):
    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    workload = WORKLOADS[configuration.workload]
    shape = (configuration.batch, *workload.input_shape[1:])
    x, y = torch.randn(shape), torch.randn(shape)
    # RevLib passes no weights to autograd: it needs an input that asks for a gradient.
    x.requires_grad_(configuration.contestant == "revlib")
    blocks = [build_block(workload, index) for index in range(configuration.depth)]
    axis = 1 if workload.name == "convolutional" else len(workload.input_shape) - 1
    model = STACKS[configuration.contestant](blocks, axis)
    optimizer = torch.optim.SGD(model.parameters(), RATE)
    loss = nn.MSELoss()

    def step():
        loss(model(x), y).backward()
        optimizer.step()
        # So that no gradients are in the level between steps.
        optimizer.zero_grad(set_to_none=True)
        x.grad = None

    weights = 4 * sum(math.prod(weight.shape) for weight in model.parameters())

    def apply_gradients_at_once():
        for weight in model.parameters():
            weight.register_post_accumulate_grad_hook(_apply_gradient)

    return Training(step, weights, apply_gradients_at_once)


def _apply_gradient(weight):
    """What the optimizer does, as soon as there is a gradient."""
    with torch.no_grad():
        weight.sub_(weight.grad, alpha=RATE)
    weight.grad = None
