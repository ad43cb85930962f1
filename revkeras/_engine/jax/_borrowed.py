"""Private names of JAX. Checked on JAX 0.10.

- `trace_state_clean`: whether any transformation is under way. Public names tell it of one value.
"""

from jax._src.core import trace_state_clean

__all__ = ["trace_state_clean"]
