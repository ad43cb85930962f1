"""The machine that the benchmark runs on, and the commit of the code that it runs."""

import os
import platform
import subprocess
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


def commit():
    """The commit of this code, with `-dirty` where it was changed since; `None` if not known."""
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--exclude", "*"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return described.stdout.strip()
