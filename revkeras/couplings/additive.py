"""The coupling of RevNets."""

from typing import Any

import keras

from revkeras.couplings.coupling import Coupling


@keras.saving.register_keras_serializable("revkeras")
class Additive(Coupling):
    """`y = x + fx` ([Gomez et al., 2017](https://arxiv.org/abs/1707.04585))."""

    def forward(self, x: Any, fx: Any) -> Any:
        return x + fx

    def inverse(self, y: Any, fx: Any) -> Any:
        return y - fx
