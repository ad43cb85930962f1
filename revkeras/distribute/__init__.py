"""Training over many workers, each of which holds its part of the state (ZeRO)."""

from revkeras.distribute.membership import WorkerFailure
from revkeras.distribute.memory_plan import MemoryPlan as Plan
from revkeras.distribute.memory_plan import plan
from revkeras.distribute.resume import SaveAndResume
from revkeras.distribute.sharded_checkpoint import CheckpointError
from revkeras.distribute.strategy import ZeroStrategy

__all__ = ["CheckpointError", "Plan", "SaveAndResume", "WorkerFailure", "ZeroStrategy", "plan"]
