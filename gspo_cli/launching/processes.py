"""The ranks of a run on one machine, which start and end together; and signals passed to child processes.
Free of torch.

The first rank has the terminal; each of the others prints to a file. Signals go to the first rank alone,
which tells the others at the end of the iteration."""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from gspo_cli.config.extras import install
from gspo_cli.config.paths import PACKAGE
from gspo_cli.errors import UserError
from gspo_cli.signals import signals_handled_by

POLL = 0.1  # seconds
GRACE = 3.0  # seconds that the first rank has to record the failure of another rank
LEAVE = 10.0  # seconds that the other ranks have to exit after the first one
INTERRUPTED = 130  # the shell's code for a program ended by Ctrl-C


@dataclass(frozen=True)
class LaunchResult:
    """How the ranks ended: the exit code, and what went wrong where the first rank has not printed it."""

    code: int
    message: str | None = None


def importable() -> dict[str, str]:
    """What the environment of a child needs to find this package: it is started with -P, so that no file of
    the folder that it starts in takes the place of a library."""
    known = os.environ.get("PYTHONPATH")
    return {"PYTHONPATH": os.pathsep.join([str(PACKAGE.parent), *([known] if known else [])])}


def require_deepspeed() -> None:
    """Raise UserError if DeepSpeed is not installed."""
    if importlib.util.find_spec("deepspeed") is None:
        raise UserError(
            f"hardware.zero_stage: deepspeed is not installed; {install('deepspeed')}, or use "
            "hardware=single_gpu or hardware=cpu"
        )


Lock = tuple[Mapping[str, str], Sequence[int]]  # what a child needs to hold a lock: variables, descriptors


def launch(command: Sequence[str], processes: int, logs: Path, lock: Lock = ({}, ())) -> LaunchResult:
    """Run `command` as ranks 0 to `processes` - 1 of one process group, with RANK, WORLD_SIZE and so on in
    their environment; they hold `lock`, too.

    A rank that dies ends all others within seconds. Raises UserError if `logs` cannot be written."""
    try:
        logs.mkdir(parents=True, exist_ok=True)
        files = [log_file(logs, rank).open("wb") for rank in range(processes)]
    except OSError as error:
        raise UserError(f"{logs}: cannot be written ({error.strerror}); free space") from error
    variables, descriptors = lock
    shared = {**os.environ, **importable(), **shared_environment(processes), **variables}
    workers = [
        subprocess.Popen(
            command,
            env=shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdin=subprocess.DEVNULL,
            stdout=None if rank == 0 else file,
            stderr=None if rank == 0 else subprocess.STDOUT,
            pass_fds=descriptors,
            start_new_session=True,  # Ctrl-C reaches this process only, which forwards it
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


def shared_environment(processes: int) -> dict[str, str]:
    """The variables that all ranks of one machine get: where they meet, and their share of the cores."""
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
    """Wait until all have ended, or one has failed and the others had time to exit. Returns the rank that
    failed first; None if none did."""
    failed, deadline = None, float("inf")
    while any(worker.poll() is None for worker in workers) and time.monotonic() < deadline:
        time.sleep(POLL)
        codes = [worker.poll() for worker in workers]
        bad = [rank for rank, code in enumerate(codes) if code not in (None, 0, INTERRUPTED)]
        if failed is None and bad:
            failed = bad[-1]  # if two ranks fail at once, rank 0 failed because of the other
            deadline = time.monotonic() + GRACE
        elif codes[0] is not None and deadline == float("inf"):
            deadline = time.monotonic() + LEAVE
    bad = [rank for rank, worker in enumerate(workers) if worker.poll() not in (None, 0, INTERRUPTED)]
    return failed if failed is not None or not bad else bad[-1]


def ending(workers: Sequence[subprocess.Popen[bytes]], failed: int | None, logs: Path) -> LaunchResult:
    """The result of workers that have all ended."""
    first = workers[0].returncode
    if failed is None or first == INTERRUPTED:
        return LaunchResult(first)
    code = workers[failed].returncode
    if first == 2 and code > 0:  # bad input or a full disk: the message is already on the terminal
        return LaunchResult(2)
    log = log_file(logs, failed)
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    if code == 2 and lines:  # the message of a UserError
        return LaunchResult(2, lines[-1].removeprefix("gspo-train: "))
    last = f": {lines[-1].strip()}" if lines and code > 0 else ""
    return LaunchResult(1, f"rank {failed} of {len(workers)} {how_it_ended(code)}{last}; its log is {log}")


def how_it_ended(code: int) -> str:
    """An exit code, or the negative number of the signal that ended a process, in words."""
    if code >= 0:
        return f"ended with exit code {code}"
    name = signal.Signals(-code).name
    return f"was killed by {name}" + (", perhaps because memory ran out" if name == "SIGKILL" else "")


def log_file(logs: Path, rank: int) -> Path:
    """What a rank prints; of the first rank only the traceback of a failure."""
    return logs / f"rank-{rank}.log"


@contextmanager
def signals_passed_to(worker: subprocess.Popen[bytes]) -> Iterator[None]:
    """A block in which signals that end a command are sent on to `worker`, and this process waits."""

    def forward(number: int) -> None:
        if worker.poll() is None:
            worker.send_signal(number)

    with signals_handled_by(forward):
        yield
