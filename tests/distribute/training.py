"""A worker that trains many small models in one process group, and writes their weights.

`python training.py OUT CASE...`; rank 0 writes OUT/CASE.npz, and each rank OUT/costs-RANK.json.
"""

import json
import sys
from pathlib import Path

import numpy as np

from revkeras.distribute import ZeroStrategy

if __name__ == "__main__":
    out, names = Path(sys.argv[1]), sys.argv[2:]
    first = ZeroStrategy()
    from tests.distribute import cases

    costs = {}
    for name in names:
        case = (cases.CASES | cases.MORE)[name]
        options = {"bucket_bytes": 600, "shard_bytes": 400, **case.options}
        strategy = ZeroStrategy(case.stage, **options)
        weights, costs[name] = cases.train(case, strategy)
        if first.rank == 0:
            np.savez(out / f"{name}.npz", *weights)
    (out / f"costs-{first.rank}.json").write_text(json.dumps(costs))
    first.engine.close()
