"""Many runs on one machine: each in its own process, as many at once as there are slots. Free of torch.

A run is started in a folder that is prepared (`gspo_cli.run.identity`), by the command that trains in it. A
failed job does not stop the others. When the queue is killed, Linux kills its jobs (PR_SET_PDEATHSIG); on
other systems they run to their end."""

from __future__ import annotations

import ctypes
import os
import shlex
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Protocol

from gspo_cli.config.checks import require
from gspo_cli.config.choices import Device
from gspo_cli.config.typed import override
from gspo_cli.console.words import clean
from gspo_cli.errors import UserError
from gspo_cli.launching.processes import (
    INTERRUPTED,
    POLL,
    how_it_ended,
    importable,
)
from gspo_cli.launching.start import require_gpus
from gspo_cli.signals import signals_handled_by

LAST = 1 << 16  # bytes at the end of a log in which its last line is looked for
AT_ONCE = "GSPO_RUNS_AT_ONCE"  # in the environment of a queue's jobs: how many run at once, at most
DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of Linux's prctl


@dataclass(frozen=True)
class Job:
    """A command and the file for its output. `folder` is its run folder, from which a table reads how many of
    `iterations` are done."""

    name: str
    command: Sequence[str]
    log: Path
    folder: Path | None = None
    iterations: int | None = None


def training_job(name: str, folder: Path, log: Path, iterations: int) -> Job:
    """The job that starts or continues the run of a prepared folder."""
    resume = shlex.split(override("resume", folder))
    return Job(
        name, [sys.executable, "-P", "-m", "gspo_cli.commands.train", *resume], log, folder, iterations
    )


@dataclass(frozen=True)
class Slot:
    """Room for one job at a time: its name, and what is added to the environment of its jobs."""

    name: str
    environment: Mapping[str, str]


class Status(Enum):
    """The state of a job."""

    waiting = "waiting"
    running = "running"
    done = "done"
    failed = "failed"
    interrupted = "interrupted"
    not_started = "not started"


@dataclass
class QueuedJob:
    """A job in the queue and its state. Once it has ended, `code` is its exit code, `seconds` how long it
    took, and `why` how it failed, with the last line of its log. One that did not start has none of them."""

    job: Job
    status: Status = Status.waiting
    slot: Slot | None = None
    started: float = 0.0  # time.monotonic()
    seconds: float | None = None
    code: int | None = None
    why: str = ""
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)
    log_start: int = 0  # bytes of the log that are from an earlier attempt

    def start(self, slot: Slot) -> None:
        """Start the job in `slot`. Raises UserError if its log cannot be written."""
        try:
            self.job.log.parent.mkdir(parents=True, exist_ok=True)
            log = self.job.log.open("ab")
        except OSError as error:
            raise UserError(f"{self.job.log}: cannot be written ({error.strerror}); free space") from error
        self.log_start = log.seek(0, os.SEEK_END)
        with log:
            self.process = subprocess.Popen(
                self.job.command,
                env={**os.environ, **importable(), **slot.environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C reaches this process only, which forwards it
                preexec_fn=killed_with(os.getpid()),
            )
        self.status, self.slot, self.started = Status.running, slot, time.monotonic()

    def poll(self) -> Slot | None:
        """The slot that becomes free where the job's process has ended since the last call."""
        code = self.process.poll() if self.process is not None and self.status is Status.running else None
        if code is None:
            return None
        self.code, self.seconds = code, time.monotonic() - self.started
        if code in (INTERRUPTED, -signal.SIGINT, -signal.SIGTERM):
            self.status = Status.interrupted
        elif code == 0:
            self.status = Status.done
        else:
            self.status, self.why = Status.failed, failure(code, last_line(self.job.log, self.log_start))
        return self.slot

    def send_signal(self, number: int) -> None:
        """Send a signal to the job's process; SIGKILL to the processes that it started, too."""
        if self.process is None or self.process.poll() is not None:
            return
        with suppress(ProcessLookupError):
            if number == signal.SIGKILL:
                os.killpg(self.process.pid, number)
            else:
                self.process.send_signal(number)


class QueueTable(Protocol):
    """Shows the queue; called several times a second."""

    def show(self, jobs: Sequence[QueuedJob]) -> None:
        """The queue as it is now."""

    def close(self, jobs: Sequence[QueuedJob]) -> None:
        """The queue as it ended."""


def run_queue(jobs: Sequence[Job], slots: Sequence[Slot], table: QueueTable) -> list[QueuedJob]:
    """Run `jobs` in their order, at most one per slot. Returns how they ended, in the same order.

    The first signal that ends a command (Ctrl-C, SIGTERM, SIGHUP) is sent to all running jobs (gspo-train
    then finishes its iteration with a checkpoint) and no further job starts; the second kills them."""
    if not jobs:
        return []
    queue = [QueuedJob(job) for job in jobs]
    waiting, free = deque(queue), deque(slots)
    with signals_to(queue) as received:
        try:
            while True:
                while waiting and free and not received:
                    waiting.popleft().start(free.popleft())
                free += filter(None, [each.poll() for each in queue])
                table.show(queue)
                if not any(each.status is Status.running for each in queue) and (received or not waiting):
                    break
                time.sleep(POLL)
        finally:
            for each in queue:
                each.send_signal(signal.SIGKILL)
                if each.process is not None:
                    each.process.wait()
    for each in waiting:
        each.status = Status.not_started
    table.close(queue)
    return queue


@contextmanager
def signals_to(queue: Sequence[QueuedJob]) -> Iterator[list[int]]:
    """A block in which signals that end a command are sent on to running jobs. Yields a list of those
    received."""
    received: list[int] = []

    def forward(number: int) -> None:
        received.append(number)
        for each in queue:
            each.send_signal(number if len(received) == 1 else signal.SIGKILL)

    with signals_handled_by(forward):
        yield received


def killed_with(parent: int) -> Callable[[], None] | None:
    """What a child process runs first: it asks the kernel to kill it when `parent` dies. None if the
    kernel cannot do that."""
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None).prctl  # looked up here, to do as little as possible between fork and exec

    def ask() -> None:
        prctl(DEATH_SIGNAL, signal.SIGKILL)
        if os.getppid() != parent:  # the parent died before the request
            os._exit(1)

    return ask


def failure(code: int, last: str) -> str:
    """Why a job failed: its exit code and the last line of its log."""
    if code == 2 and last:  # the message of a UserError
        return last.removeprefix("gspo-train: ")
    return f"{how_it_ended(code)}{f': {last}' if last and code > 0 else ''}"


def last_line(log: Path, start: int) -> str:
    """The last line that is not blank and was written after `start` bytes; "" where there is none."""
    with log.open("rb") as file:
        file.seek(max(start, file.seek(0, os.SEEK_END) - LAST))
        lines = file.read().decode(errors="replace").splitlines()
    return next((clean(line) for line in reversed(lines) if line.strip()), "")


def make_slots(device: Device, parallel: int | None, gpus_each: int = 1) -> list[Slot]:
    """`parallel` slots for runs on `device`. None means one on a CPU, and on GPUs as many as there are groups
    of `gpus_each`. Slots of a CPU share its cores.

    Raises UserError if there are not enough GPUs."""
    if device is Device.cpu:
        count = parallel or 1
        threads = os.environ.get("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
        return [Slot("CPU", {"OMP_NUM_THREADS": threads, AT_ONCE: str(count)})] * count
    gpus = require_gpus()
    groups = [gpus[i : i + gpus_each] for i in range(0, len(gpus) - gpus_each + 1, gpus_each)]
    require(
        (parallel or 1) <= len(groups),
        f"parallel={parallel or 1}: {len(gpus)} GPUs are visible, and each run needs {gpus_each}; use "
        "at most "
        f"{len(groups)}, or check CUDA_VISIBLE_DEVICES",
    )
    used = groups[:parallel]
    return [
        Slot(f"GPU {','.join(group)}", {"CUDA_VISIBLE_DEVICES": ",".join(group), AT_ONCE: str(len(used))})
        for group in used
    ]


def runs_at_once() -> int:
    """How many runs at most the queue that started this process runs at once; 1 without a queue."""
    return int(os.environ.get(AT_ONCE, "1"))
