"""Models people know, on reversible stacks."""

from revkeras.models.irevnet import InvertibleModel, IRevNet
from revkeras.models.momentum_net import MomentumNet
from revkeras.models.rev_vit import RevViT
from revkeras.models.revnet import RevNet
from revkeras.models.transformer import GenerativeModel, ReversibleTransformer

__all__ = [
    "GenerativeModel",
    "IRevNet",
    "InvertibleModel",
    "MomentumNet",
    "RevNet",
    "RevViT",
    "ReversibleTransformer",
]
