"""Which software a run used, and on which processor: versions of packages, and the commit of a checkout."""

from __future__ import annotations

import platform
import subprocess
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from gspo_cli.config.paths import PACKAGE

CPUS = Path("/proc/cpuinfo")
PACKAGES = ("gspo-cli", "torch", "transformers", "peft", "hydra-core")


def versions() -> dict[str, str | None]:
    """Versions of Python and of PACKAGES; None for one that runs from a folder without being installed."""
    return {"python": platform.python_version(), **{name: _installed(name) for name in PACKAGES}}


def _installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def processor() -> str:
    """Name of the CPU, as the system gives it."""
    with suppress(OSError):
        for line in CPUS.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def git_commit() -> str | None:
    """Commit of the checkout this package runs from, `-dirty` with local changes; None in an installed
    copy."""
    checkout = PACKAGE.parent
    if not (checkout / ".git").exists():
        return None
    command = ["git", "-C", str(checkout), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=True, timeout=5)
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip() or None
