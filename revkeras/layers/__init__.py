"""Keras layers with an exact inverse."""

from revkeras.layers.act_norm import ActNorm
from revkeras.layers.invertible_dense import InvertibleDense
from revkeras.layers.permute import Permute, Reverse
from revkeras.layers.space_to_depth import DepthToSpace, SpaceToDepth
from revkeras.layers.split import Split

__all__ = [
    "ActNorm",
    "DepthToSpace",
    "InvertibleDense",
    "Permute",
    "Reverse",
    "SpaceToDepth",
    "Split",
]
