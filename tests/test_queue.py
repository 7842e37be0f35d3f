"""A queue of processes: as many at once as there are slots, each GPU to one, and an end for everybody."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import pytest
from rich.console import Console

from gspo_cli.config.auto_hardware import visible_gpus
from gspo_cli.config.choices import Device
from gspo_cli.errors import UserError
from gspo_cli.launching import queue
from gspo_cli.launching.queue import AT_ONCE, Job, QueuedJob, Slot, Status, make_slots, run_queue
from gspo_cli.launching.queue_table import LiveTable, PlainTable, Tail
from tests.support.command_line import alive

ROOT = Path(__file__).resolve().parent.parent
HERE = Slot("CPU", {})


class Blank:
    """A table of which nothing is seen."""

    def show(self, places):
        self.places = places

    def close(self, places):
        self.places = places


def python(tmp_path: Path, name: str, *lines: str) -> Job:
    """A job of a few lines, whose process writes to a log of its name."""
    code = "\n".join(["import os, signal, sys, time", *lines])
    return Job(name, [sys.executable, "-c", code], tmp_path / f"{name}.log")


def run(jobs, slots, table=None) -> dict[str, QueuedJob]:
    return {ended.job.name: ended for ended in run_queue(jobs, slots, table or Blank())}


def told(job: Job) -> list[str]:
    return job.log.read_text().splitlines()


@pytest.mark.long
def test_two_slots_run_two_jobs_at_once_and_no_more(tmp_path):
    clock = ("print(time.time(), flush=True)", "time.sleep(0.4)", "print(time.time())")
    jobs = [python(tmp_path, f"job {i}", *clock) for i in range(5)]
    ends = run(jobs, [HERE] * 2)
    assert [ended.status for ended in ends.values()] == [Status.done] * 5
    spans = [[float(line) for line in told(job)] for job in jobs]
    at_once = [sum(began <= moment < ended for began, ended in spans) for moment, _ in spans]
    assert max(at_once) == 2


def test_each_gpu_has_one_job_at_a_time_and_all_gpus_are_used(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5, GPU-ab1,3")
    say = "print(os.environ['CUDA_VISIBLE_DEVICES'], time.time(), flush=True)"
    jobs = [python(tmp_path, f"job {i}", say, "time.sleep(0.3)", say) for i in range(6)]
    run(jobs, make_slots(Device.cuda, None))
    spans = [[line.split() for line in told(job)] for job in jobs]
    assert {gpu for (gpu, _), _ in spans} == {"5", "GPU-ab1", "3"}
    for gpu in ("5", "GPU-ab1", "3"):
        times = sorted((float(a), float(b)) for (name, a), (_, b) in spans if name == gpu)
        assert all(ended < began for (_, ended), (began, _) in pairwise(times))


def test_gpus_are_assigned_in_groups_and_too_many_runs_are_refused(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7,8")
    groups = [slot.environment["CUDA_VISIBLE_DEVICES"] for slot in make_slots(Device.cuda, None, 2)]
    assert groups == ["4,5", "6,7"]
    assert len(make_slots(Device.cuda, 1, 2)) == 1
    with pytest.raises(
        UserError, match=r"parallel=3: 5 GPUs are visible, and each run needs 2; use at most 2"
    ):
        make_slots(Device.cuda, 3, 2)


@pytest.mark.parametrize(
    ("value", "gpus"),
    [("", []), ("-1", []), ("2,-1,3", ["2"]), ("0", ["0"]), ("1,none,2", ["1"]), ("0,1,0", [])],
)
def test_hidden_gpus_are_not_assigned(monkeypatch, value, gpus):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
    assert visible_gpus() == gpus
    if not gpus:
        with pytest.raises(UserError, match="no GPU is visible"):
            make_slots(Device.cuda, None)


def test_without_the_variable_nvidia_smi_says_what_gpus_there_are(tmp_path, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("gspo_cli.config.auto_hardware.DEVICES", tmp_path)
    assert visible_gpus() == []
    for name in ("nvidia0", "nvidia1", "nvidia2", "nvidiactl", "nvidia-uvm"):
        (tmp_path / name).touch()
    assert visible_gpus() == ["0", "1", "2"]  # without the tool, the device files
    tool = tmp_path / "nvidia-smi"
    tool.write_text(
        "#!/bin/sh\necho 'GPU 0: A (UUID: GPU-a)'\necho '  MIG 1g'\necho 'GPU 1: A (UUID: GPU-b)'\n"
    )
    tool.chmod(0o755)
    assert visible_gpus() == ["0", "1"]


def test_slots_of_a_cpu_share_its_cores_unless_the_user_has_said_how(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    assert [slot.environment for slot in make_slots(Device.cpu, 3)] == [
        {"OMP_NUM_THREADS": "2", AT_ONCE: "3"}
    ] * 3
    assert make_slots(Device.cpu, None)[0].environment == {"OMP_NUM_THREADS": "8", AT_ONCE: "1"}
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert make_slots(Device.cpu, 3)[0].environment == {"OMP_NUM_THREADS": "5", AT_ONCE: "3"}


def test_a_job_that_fails_ends_no_other_and_its_last_words_are_kept(tmp_path):
    jobs = [
        python(tmp_path, "bug", "raise RuntimeError('a shape is wrong')"),
        python(tmp_path, "input", "print('gspo-train: task.path: is gone'); sys.exit(2)"),
        python(tmp_path, "memory", "os.kill(os.getpid(), signal.SIGKILL)"),
        python(tmp_path, "good", "print('fine')"),
    ]
    ends = run(jobs, [HERE])
    assert {name: (ended.code, ended.why) for name, ended in ends.items()} == {
        "bug": (1, "ended with exit code 1: RuntimeError: a shape is wrong"),
        "input": (2, "task.path: is gone"),
        "memory": (-9, "was killed by SIGKILL, perhaps because memory ran out"),
        "good": (0, ""),
    }


def test_the_last_words_are_those_of_this_attempt(tmp_path):
    job = python(tmp_path, "again", "sys.exit(1)")
    job.log.write_text("of the attempt before\n")
    assert run([job], [HERE])["again"].why == "ended with exit code 1"
    assert told(job) == ["of the attempt before"]


# the first of two jobs leaves its slot while the other one still runs
HEARS = "signal.signal(signal.{0}, lambda *_: (time.sleep(float('0.6' if {{0}} else '0')), sys.exit(130)))"


def queue_process(tmp_path: Path, *heard: str) -> subprocess.Popen[str]:
    """A process with a queue of two slots and three jobs, two of which run. It prints how they ended."""
    ready = [f"open({str(tmp_path / 'ready')!r} + '{i}', 'w').close()" for i in range(3)]
    jobs = [
        python(tmp_path, f"job{i}", *(line.format(i) for line in heard), ready[i], "time.sleep(60)")
        for i in range(3)
    ]
    code = (
        "import sys\nfrom pathlib import Path, PosixPath\n"
        "from gspo_cli.launching.queue import Job, Slot, run_queue\n"
        "from gspo_cli.launching.queue_table import make_table\n"
        f"ends = run_queue({jobs!r}, [Slot('CPU', {{}})] * 2, make_table(stays=False))\n"
        "print('ends', *(ended.status.name for ended in ends))\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    until(lambda: (tmp_path / "ready0").exists() and (tmp_path / "ready1").exists())
    return process


def until(condition) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_goes_on_to_running_jobs_and_nothing_new_starts(tmp_path, number):
    process = queue_process(tmp_path, HEARS.format("SIGINT"), HEARS.format("SIGTERM"))
    process.send_signal(number)
    out, _ = process.communicate(timeout=20)
    assert out.splitlines()[-1] == "ends interrupted interrupted not_started"
    assert not (tmp_path / "ready2").exists()


def test_a_second_signal_kills(tmp_path):
    process = queue_process(tmp_path, "signal.signal(signal.SIGINT, signal.SIG_IGN)")
    process.send_signal(signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.5)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=20)
    assert out.splitlines()[-1] == "ends failed failed not_started"


@pytest.mark.skipif(
    sys.platform != "linux", reason="other kernels do not end the children of a killed process"
)
def test_a_killed_queue_leaves_no_job_behind(tmp_path):
    process = queue_process(tmp_path, f"open({str(tmp_path)!r} + f'/pid-{{{{os.getpid()}}}}', 'w').close()")
    children = [int(path.name.removeprefix("pid-")) for path in tmp_path.glob("pid-*")]
    assert len(children) == 2
    process.kill()
    process.communicate()
    until(lambda: not any(alive(pid) for pid in children))


def test_an_error_in_the_queue_ends_its_jobs(tmp_path):
    class Breaks(Blank):
        def show(self, places):
            super().show(places)
            raise RuntimeError("no terminal")

    table = Breaks()
    with pytest.raises(RuntimeError, match="no terminal"):
        run([python(tmp_path, "job", "time.sleep(60)")], [HERE], table)
    assert table.places[0].process.poll() == -signal.SIGKILL


def test_no_jobs_are_no_queue():
    assert run_queue([], [HERE], Blank()) == []


def test_a_log_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    job = Job("job", [sys.executable, "-c", ""], tmp_path / "file" / "log.txt")
    with pytest.raises(UserError, match=r"log\.txt: cannot be written"):
        run([job], [HERE])


def test_a_tail_reads_what_is_new_and_starts_again_with_a_new_file(tmp_path):
    path = tmp_path / "metrics.jsonl"
    tail = Tail(path)
    assert tail.look() == {}
    path.write_text('{"iteration": 1}\n{"iteration": 2}\n{"iter')
    assert tail.look() == {"iteration": 2}
    with path.open("r+") as file:  # what was read is not looked at again
        file.write("x" * 10)
    with path.open("a") as file:
        file.write('ation": 3}\n')
    assert tail.look() == {"iteration": 3}
    (tmp_path / "new").write_text('{"iteration": 1}\n')
    (tmp_path / "new").replace(path)
    assert tail.look() == {"iteration": 1}
    with path.open("a") as file:
        file.write("damaged\n")
    assert tail.look() == {"iteration": 1}


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def followed(tmp_path: Path, name: str, iteration: int | None, score: float) -> QueuedJob:
    """A running place with a run folder."""
    folder = tmp_path / name
    folder.mkdir()
    write(folder, iteration, score)
    place = QueuedJob(Job(name, [], folder / "log.txt", folder, 20), Status.running, Slot("GPU 3", {}))
    return place


def write(folder: Path, iteration: int | None, score: float) -> None:
    if iteration is not None:
        with (folder / "metrics.jsonl").open("a") as file:
            file.write(json.dumps({"iteration": iteration, "reward": 0.25}) + "\n")
    with (folder / "evals.jsonl").open("a") as file:
        file.write(json.dumps({"iteration": 0, "score": score}) + "\n")


def shown(table: LiveTable, places: list[QueuedJob], height: int = 24) -> list[str]:
    console = Console(width=80, file=io.StringIO())
    console.print(table.frame(places, height))
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


def test_the_live_table_shows_each_job_with_its_place_numbers_and_time_left(tmp_path):
    clock = Clock()
    place = followed(tmp_path, "gspo-s0", None, 0.5)
    waiting = QueuedJob(Job("grpo-s0", [], tmp_path / "none", tmp_path / "none", 20))
    table = LiveTable(Console(file=io.StringIO()), clock=clock)
    shown(table, [place])
    clock.now = 30.0
    write(place.job.folder, 3, 0.625)
    lines = shown(table, [place, waiting])
    assert lines[1].split("  ")[0] == "gspo-s0"
    assert lines[1].split()[1:] == ["running", "on", "GPU", "3", "3/20", "0.250", "0.625", "30s", "2m", "50s"]
    assert lines[2].split() == ["grpo-s0", "waiting", "0/20", "–", "–", "–", "–"]
    assert lines[3] == "1 running, 1 waiting"


def test_the_live_table_fits_its_terminal_and_says_why_jobs_failed(tmp_path):
    places = [QueuedJob(Job(f"run-{i:02}", [], tmp_path / str(i))) for i in range(40)]
    places[37].status, places[37].seconds, places[37].code = Status.failed, 2.0, 1
    places[37].why = "ended with exit code 1: OSError: disk"
    places[39].status, places[39].slot = Status.running, HERE
    lines = shown(LiveTable(Console(file=io.StringIO())), places, 12)
    assert len(lines) < 12
    assert [line.split()[0] for line in lines if "failed" in line or "running on" in line][:2] == [
        "run-37",
        "run-39",
    ]
    assert lines[-2:] == ["38 waiting, 1 failed, 1 running", "run-37: ended with exit code 1: OSError: disk"]


def test_lines_are_printed_where_something_changed(tmp_path):
    out = io.StringIO()
    place, table = followed(tmp_path, "gspo-s0", 2, 0.5), PlainTable(out)
    for _ in range(3):
        table.show([place])
    write(place.job.folder, 3, 0.5)  # 3 of 20 is the same tenth as 2
    table.show([place])
    write(place.job.folder, 4, 0.5)
    table.show([place])
    lines = out.getvalue().splitlines()
    assert [line.split("  ")[2] for line in lines] == ["2/20", "4/20"]


def test_the_queue_does_not_import_torch():
    code = (
        "import sys, gspo_cli.launching.queue, gspo_cli.launching.queue_table; print('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.stdout == "False\n"
    assert queue.POLL <= 0.5  # seconds until a free GPU has its next job
