"""How much memory there is."""

from pathlib import Path


def available_memory() -> int | None:
    """Bytes that a new process can take without swapping; None where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text("utf-8").splitlines()
    except OSError:
        return None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")), None)
