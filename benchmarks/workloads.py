"""The stacks that are trained: their sizes, which both frameworks build blocks of.

A block works on one stream, half of the channels, and keeps its shape. Batches are large
and streams narrow, so that weights and gradients are small beside activations.
"""

import dataclasses
import math


@dataclasses.dataclass(frozen=True)
class Workload:
    """A kind of block, and the input of the stack.

    The convolutional input's shape reads the same with channels first and last.
    """

    name: str
    input_shape: tuple[int, ...]  # with the batch
    blocks: str
    dropout: float = 0.0
    kinds: int = 1  # of blocks, in turn; a network's block is one of each

    @property
    def stream_channels(self):
        return self.input_shape[-1] // 2

    @property
    def output_bytes(self):
        """Of the stack's output, in float32."""
        return 4 * math.prod(self.input_shape)


HEADS = 4

WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload(
            "dense",
            (2048, 128),
            "LayerNormalization, Dense(256), GELU, Dropout, Dense(64)",
            dropout=0.1,
        ),
        Workload(
            "dense-without-dropout",
            (2048, 128),
            "LayerNormalization, Dense(256), GELU, Dense(64)",
        ),
        Workload(
            "convolutional",
            (16, 32, 32, 32),
            "twice 3x3 convolution, BatchNormalization, ReLU",
        ),
        Workload(
            "transformer",
            (1, 1024, 256),
            "in turn LayerNormalization, self-attention of 4 heads, and LayerNormalization, "
            "Dense(512), GELU, Dense(128)",
            kinds=2,
        ),
    )
}
