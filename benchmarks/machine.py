"""The machine that the benchmark runs on."""

import os
import platform
from pathlib import Path


def _field(path, name):
    for line in Path(path).read_text().splitlines():
        if line.startswith(name):
            return line.split(":", 1)[1].strip()
    return None


def describe():
    """CPU, cores that this process may use, memory in bytes, and the system."""
    if Path("/proc/cpuinfo").exists():
        cpu = _field("/proc/cpuinfo", "model name")
        memory = int(_field("/proc/meminfo", "MemTotal").split()[0]) * 1024
        cores = len(os.sched_getaffinity(0))
    else:
        cpu, memory, cores = None, None, os.cpu_count()
    return {
        "cpu": cpu or platform.machine(),
        "cores": cores,
        "memory_bytes": memory,
        "system": platform.system(),
        "python": platform.python_version(),
    }
