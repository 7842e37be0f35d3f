"""The processes of a run on one machine: started together, ended together. Free of torch.

The first rank has the terminal; what the others print goes to a file each. Signals go to the first rank
alone, which tells the others at the end of the iteration."""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from gspo_cli.errors import UserError

POLL = 0.1  # seconds
GRACE = 3.0  # seconds that the first rank gets to write down a failure of another one
LEAVE = 10.0  # seconds that the others get to end after the first one
INTERRUPTED = 130  # the shell's code for a program ended by Ctrl-C


@dataclass(frozen=True)
class Ending:
    """How a run of many processes ended: exit code, and what went wrong where the first rank has not said
    so."""

    code: int
    message: str | None = None


def require_deepspeed() -> None:
    """Raise UserError where DeepSpeed is not installed."""
    if importlib.util.find_spec("deepspeed") is None:
        raise UserError(
            "hardware.zero_stage: deepspeed is not installed; pip install 'gspo-cli[deepspeed]', or use "
            "hardware=single_gpu or hardware=cpu"
        )


def launch(command: Sequence[str], processes: int, logs: Path) -> Ending:
    """Run `command` as ranks 0 to `processes` - 1 of one world, told by RANK, WORLD_SIZE and their like.

    A rank that dies ends all others within seconds. Raises UserError where `logs` cannot be written."""
    try:
        logs.mkdir(parents=True, exist_ok=True)
        files = [log_file(logs, rank).open("wb") for rank in range(processes)]
    except OSError as error:
        raise UserError(f"{logs}: cannot be written ({error.strerror}); free space") from error
    shared = os.environ | world_of(processes)
    workers = [
        subprocess.Popen(
            command,
            env=shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdin=subprocess.DEVNULL,
            stdout=None if rank == 0 else file,
            stderr=None if rank == 0 else subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C reaches this process alone, which passes it on
        )
        for rank, file in enumerate(files)
    ]
    for file in files:
        file.close()
    try:
        with signals_passed_to(workers[0]):
            failed = wait(workers)
    finally:
        for worker in workers:
            if worker.poll() is None:
                worker.kill()
            worker.wait()
    return ending(workers, failed, logs)


def world_of(processes: int) -> dict[str, str]:
    """What the ranks of one machine share: a port to meet at, and cores."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    threads = max(1, (os.cpu_count() or 1) // processes)
    return {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(processes),
        "GSPO_LAUNCHER": str(os.getpid()),
        "LOCAL_WORLD_SIZE": str(processes),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads)),
    }


def wait(workers: Sequence[subprocess.Popen[bytes]]) -> int | None:
    """Until all have ended, or one has failed and the others had their time. Returns the rank that failed
    first, None where none did."""
    failed, deadline = None, float("inf")
    while any(worker.poll() is None for worker in workers) and time.monotonic() < deadline:
        time.sleep(POLL)
        codes = [worker.poll() for worker in workers]
        bad = [rank for rank, code in enumerate(codes) if code not in (None, 0, INTERRUPTED)]
        if failed is None and bad:
            failed = bad[-1]  # of two in one moment the first rank is the one that noticed the other
            deadline = time.monotonic() + GRACE
        elif codes[0] is not None and deadline == float("inf"):
            deadline = time.monotonic() + LEAVE
    bad = [rank for rank, worker in enumerate(workers) if worker.poll() not in (None, 0, INTERRUPTED)]
    return failed if failed is not None or not bad else bad[-1]


def ending(workers: Sequence[subprocess.Popen[bytes]], failed: int | None, logs: Path) -> Ending:
    """What to tell of workers that have all ended."""
    first = workers[0].returncode
    if failed is None or first == INTERRUPTED:
        return Ending(first)
    code = workers[failed].returncode
    if first == 2 and code > 0:  # bad input or a full disk: its sentence is on the terminal
        return Ending(2)
    log = log_file(logs, failed)
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    if code == 2 and lines:  # a sentence already
        return Ending(2, lines[-1].removeprefix("gspo-train: "))
    last = f": {lines[-1].strip()}" if lines and code > 0 else ""
    return Ending(1, f"rank {failed} of {len(workers)} {how_it_ended(code)}{last}; its log is {log}")


def how_it_ended(code: int) -> str:
    """A process's exit code, or the negative number of the signal that ended it, in words."""
    if code >= 0:
        return f"ended with exit code {code}"
    name = signal.Signals(-code).name
    return f"was ended by {name}" + (", perhaps for want of memory" if name == "SIGKILL" else "")


def log_file(logs: Path, rank: int) -> Path:
    """Where a rank's words go; those of the first one only when it fails."""
    return logs / f"rank-{rank}.log"


@contextmanager
def signals_passed_to(worker: subprocess.Popen[bytes]) -> Iterator[None]:
    """Ctrl-C and SIGTERM go on to `worker`; this process waits."""

    def forward(number: int, frame: FrameType | None) -> None:
        if worker.poll() is None:
            worker.send_signal(number)

    previous = {number: signal.signal(number, forward) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
