"""Many runs on one machine: each in a process of its own, as many at once as there are slots. Free of torch.

A run of this kind is a folder that is prepared (`gspo_cli.run.identity`) and the command that trains in it.
A job that fails ends no other. A queue that is killed takes its jobs with it: on Linux the kernel kills them
(PR_SET_PDEATHSIG); elsewhere they go on to their end."""

from __future__ import annotations

import ctypes
import os
import shlex
import shutil
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
from types import FrameType
from typing import Protocol

from gspo_cli.config.choices import Device
from gspo_cli.console.words import clean, override
from gspo_cli.errors import UserError
from gspo_cli.launching.processes import INTERRUPTED, POLL, how_it_ended

LAST = 1 << 16  # bytes at the end of a log in which its last line is looked for
DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of Linux's prctl


@dataclass(frozen=True)
class Job:
    """A command and the file that takes what it prints. `folder` is its run folder, from which a table reads
    how far it is of `iterations`."""

    name: str
    command: Sequence[str]
    log: Path
    folder: Path | None = None
    iterations: int | None = None


def training_job(name: str, folder: Path, log: Path, iterations: int) -> Job:
    """The job that starts or continues the run of a prepared folder."""
    resume = shlex.split(override("resume", str(folder)))
    return Job(name, [sys.executable, "-m", "gspo_cli.commands.train", *resume], log, folder, iterations)


@dataclass(frozen=True)
class Slot:
    """Where one job runs at a time: its name, and what its jobs find in their environment."""

    name: str
    environment: Mapping[str, str]


class Status(Enum):
    """What has become of a job."""

    waiting = "waiting"
    running = "running"
    done = "done"
    failed = "failed"
    interrupted = "interrupted"
    not_started = "not started"


@dataclass(frozen=True)
class Ended:
    """A job's end: `code` is None where it was not started; `why` says how it failed, with the last line of
    its log."""

    job: Job
    status: Status
    code: int | None = None
    why: str = ""
    seconds: float = 0.0


@dataclass
class Place:
    """A job in the queue: what a table shows of it."""

    job: Job
    status: Status = Status.waiting
    slot: Slot | None = None
    began: float | None = None
    ended: Ended | None = None
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)
    log_start: int = 0  # bytes of the log that are of an earlier attempt


class QueueTable(Protocol):
    """Shows the queue; called several times a second."""

    def show(self, places: Sequence[Place]) -> None:
        """The queue as it is now."""

    def close(self, places: Sequence[Place]) -> None:
        """The queue as it ended."""


def run_queue(jobs: Sequence[Job], slots: Sequence[Slot], table: QueueTable) -> list[Ended]:
    """Run `jobs` in their order, at most one per slot. Returns their ends, in the same order.

    The first Ctrl-C or SIGTERM goes on to all jobs that run (gspo-train then ends its iteration with a
    checkpoint) and nothing new starts; the second kills them."""
    if not jobs:
        return []
    places = [Place(job) for job in jobs]
    waiting, free = deque(places), deque(slots)
    with signals_to(places) as heard:
        try:
            while True:
                while waiting and free and not heard:
                    start(waiting.popleft(), free.popleft())
                running = [place for place in places if place.status is Status.running]
                free += [place.slot for place in running if has_ended(place)]
                table.show(places)
                if not any(place.status is Status.running for place in places) and (heard or not waiting):
                    break
                time.sleep(POLL)
        finally:
            kill(places)
    for place in waiting:
        place.status, place.ended = Status.not_started, Ended(place.job, Status.not_started)
    table.close(places)
    return [place.ended for place in places]


def start(place: Place, slot: Slot) -> None:
    """Start a job in `slot`. Raises UserError where its log cannot be written."""
    job = place.job
    try:
        job.log.parent.mkdir(parents=True, exist_ok=True)
        log = job.log.open("ab")
    except OSError as error:
        raise UserError(f"{job.log}: cannot be written ({error.strerror}); free space") from error
    place.log_start = log.seek(0, os.SEEK_END)
    with log:
        place.process = subprocess.Popen(
            job.command,
            env=os.environ | slot.environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C reaches this process alone, which passes it on
            preexec_fn=dies_with(os.getpid()),
        )
    place.status, place.slot, place.began = Status.running, slot, time.monotonic()


def dies_with(parent: int) -> Callable[[], None] | None:
    """What a child does before its program: ask the kernel to kill it when `parent` dies. None where the
    kernel knows no such thing."""
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None).prctl  # found here: between fork and exec as little as possible happens

    def ask() -> None:
        prctl(DEATH_SIGNAL, signal.SIGKILL)
        if os.getppid() != parent:  # it died before the question
            os._exit(1)

    return ask


def has_ended(place: Place) -> bool:
    """Whether a running job's process is gone; its end is then written down."""
    code = place.process.poll()
    if code is None:
        return False
    stopped = code in (INTERRUPTED, -signal.SIGINT, -signal.SIGTERM)
    place.status = Status.interrupted if stopped else Status.failed if code else Status.done
    why = reason(code, last_line(place.job.log, place.log_start)) if place.status is Status.failed else ""
    place.ended = Ended(place.job, place.status, code, why, time.monotonic() - place.began)
    return True


def reason(code: int, said: str) -> str:
    """Why a job failed, from its exit code and its last words."""
    if code == 2 and said:  # bad input: a sentence already
        return said.removeprefix("gspo-train: ")
    return f"{how_it_ended(code)}{f': {said}' if said and code > 0 else ''}"


def last_line(log: Path, start: int) -> str:
    """The last line with something in it that was written after `start` bytes; "" where there is none."""
    with log.open("rb") as file:
        file.seek(max(start, file.seek(0, os.SEEK_END) - LAST))
        lines = file.read().decode(errors="replace").splitlines()
    return next((clean(line) for line in reversed(lines) if line.strip()), "")


def kill(places: Sequence[Place]) -> None:
    """End what still runs, with the processes that it started."""
    for place in places:
        if place.process is not None and place.process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(place.process.pid, signal.SIGKILL)
            place.process.wait()


@contextmanager
def signals_to(places: Sequence[Place]) -> Iterator[list[int]]:
    """Ctrl-C and SIGTERM go on to the jobs that run. Yields the list of signals that were heard."""
    heard: list[int] = []

    def forward(number: int, frame: FrameType | None) -> None:
        heard.append(number)
        for place in places:
            if place.process is not None and place.process.poll() is None:
                if len(heard) == 1:
                    place.process.send_signal(number)
                else:
                    os.killpg(place.process.pid, signal.SIGKILL)

    previous = {number: signal.signal(number, forward) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield heard
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def make_slots(device: Device, parallel: int | None, gpus_each: int = 1) -> list[Slot]:
    """Places for runs on `device`, `parallel` of them: on a CPU one where that is None, each with its part of
    the cores; on GPUs as many as they make in groups of `gpus_each`.

    Raises UserError where there are not so many GPUs."""
    if device is Device.cpu:
        count = parallel or 1
        threads = os.environ.get("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
        return [Slot("CPU", {"OMP_NUM_THREADS": threads})] * count
    gpus = visible_gpus()
    if not gpus:
        raise UserError(
            "hardware.device=cuda: no GPU is visible; use hardware=cpu, or check CUDA_VISIBLE_DEVICES"
        )
    groups = [gpus[i : i + gpus_each] for i in range(0, len(gpus) - gpus_each + 1, gpus_each)]
    if (parallel or 1) > len(groups):
        raise UserError(
            f"parallel={parallel or 1}: {len(gpus)} GPUs are visible, and a run takes {gpus_each}; use "
            f"{len(groups)} at most, or check CUDA_VISIBLE_DEVICES"
        )
    return [
        Slot(f"GPU {','.join(group)}", {"CUDA_VISIBLE_DEVICES": ",".join(group)})
        for group in groups[:parallel]
    ]


def visible_gpus() -> list[str]:
    """The GPUs that runs may use: of CUDA_VISIBLE_DEVICES, or all that nvidia-smi finds."""
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if listed is not None:
        found = [name.strip() for name in listed.split(",")]
        # as CUDA reads it: what follows a name that is none is hidden
        hidden = next((i for i, name in enumerate(found) if not name or name.startswith("-")), len(found))
        return found[:hidden]
    if shutil.which("nvidia-smi") is None:
        return []
    told = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True)
    gpus = [line for line in told.stdout.splitlines() if line.startswith("GPU ")]
    return [str(i) for i in range(len(gpus))]
