"""A worker that trains many small models in one process group, and writes their weights.

`python training.py OUT CASE...`, each case a name of `cases.CASES`; rank 0 writes OUT/CASE.npz.
"""

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

import keras

from revkeras.distribute import ZeroStrategy
from tests.distribute import cases

if __name__ == "__main__":
    out, names = Path(sys.argv[1]), sys.argv[2:]
    strategy = ZeroStrategy()
    for name in names:
        case = cases.CASES[name]
        strategy = ZeroStrategy(**case.options)
        weights = cases.train(case, strategy)
        if strategy.rank == 0:
            np.savez(out / f"{name}.npz", *weights)
        keras.backend.clear_session()
    strategy.engine.close()
