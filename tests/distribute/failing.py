"""Run in every worker: `kill:1` says what happens to which rank; see below for what may."""

import os
import signal
import subprocess
import sys
import time

from revkeras.distribute import engines, membership

how, rank = sys.argv[1].split(":")
membership.HUNG_AFTER, membership.GRACE, membership.LEFT_AFTER = 4.0, 4.0, 2.0
os.environ[membership.HANG_TIMEOUT] = "4"

engine = engines.choose()
assert membership.exchange(engine.rank) == list(range(engine.size))
membership.agree({"stage": 3, "shapes": [[8, 3], [8]]})
try:
    membership.agree(
        {"stage": 3 if engine.rank == 0 else 2, "versions": ["2.21", engine.rank // 2]}
    )
except ValueError as error:
    print(error)
engine.barrier()
if engine.rank == int(rank):
    if how == "raise":
        raise ValueError("no such file")
    if how == "exit":
        sys.exit(3)
    while how == "loop":
        time.sleep(1)
    if how == "stop":  # and is no more when the test is over
        code = f"import os, time; time.sleep(15); os.kill({os.getpid()}, 9)"
        devnull = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        subprocess.Popen([sys.executable, "-c", code], **devnull)
    os.kill(os.getpid(), signal.SIGKILL if how == "kill" else signal.SIGSTOP)
engine.barrier()
print("went on")
