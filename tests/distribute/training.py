"""A worker that trains many small models in one process group, and writes their weights.

`python training.py OUT CASE...`; rank 0 writes OUT/CASE.npz.
"""

import sys
import traceback
from pathlib import Path

import numpy as np

from revkeras.distribute import ZeroStrategy

if __name__ == "__main__":
    out, names = Path(sys.argv[1]), sys.argv[2:]
    strategy = ZeroStrategy()
    from tests.distribute import cases

    every = cases.CASES | cases.MORE
    for name in names:
        case = every[name]
        strategy = ZeroStrategy(
            case.stage,
            bucket_bytes=600,
            shard_bytes=case.options.get("shard_bytes", 400),
            **{k: v for k, v in case.options.items() if k != "shard_bytes"},
        )
        weights = cases.train(case, strategy)
        if strategy.rank == 0:
            np.savez(out / f"{name}.npz", *weights)
    strategy.engine.close()
