"""Training over many workers, each of which holds its part of the state (ZeRO)."""

from revkeras.distribute.checkpoint import CheckpointError
from revkeras.distribute.membership import WorkerFailure
from revkeras.distribute.plan import Plan, plan
from revkeras.distribute.resume import SaveAndResume
from revkeras.distribute.strategy import ZeroStrategy

__all__ = ["CheckpointError", "Plan", "SaveAndResume", "WorkerFailure", "ZeroStrategy", "plan"]
