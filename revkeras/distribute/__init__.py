"""Training over many workers, each of which holds its part of the state (ZeRO)."""
