"""MomentumNet: the blocks of iRevNet, joined by a coupling of one's own.

Each block moves a running average of its stream instead of adding to it. A coupling is
a pair of plain functions, and registering them lets Keras save the model.

    python examples/momentumnet.py --batch 2 --size 32 --channels 16 --depth 4 --classes 10

Sizes and defaults are those of `irevnet.py`: without arguments it takes tens of GB.
"""

import keras
from irevnet import parse_arguments, run

BETA = 0.99


@keras.saving.register_keras_serializable(package="momentumnet")
def momentum_forward(x, fx):
    return x * BETA + fx * (1 - BETA)


# `y / BETA - fx * (1 - BETA)`, which is often printed, is not the inverse: it is off by
# `fx * (1 - BETA) * (1 / BETA - 1)` in each block, and the layer refuses it when built.
@keras.saving.register_keras_serializable(package="momentumnet")
def momentum_inverse(y, fx):
    return (y - fx * (1 - BETA)) / BETA


def main(argv=None):
    arguments = parse_arguments(argv, __doc__.splitlines()[0])
    return run(arguments, coupling_forward=momentum_forward, coupling_inverse=momentum_inverse)


if __name__ == "__main__":
    main()
