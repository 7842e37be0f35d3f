"""Processes that are started together end together, and the one that failed is named."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gspo_cli.config.compose import build_config, composed
from gspo_cli.errors import UserError
from gspo_cli.launching import processes
from gspo_cli.launching.processes import LaunchResult, launch
from gspo_cli.launching.start import process_count

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def _short_grace(monkeypatch):
    monkeypatch.setattr(processes, "GRACE", 0.5)


def script(*lines: str) -> list[str]:
    return [
        sys.executable,
        "-c",
        "\n".join(["import os, sys, time, signal", "rank = int(os.environ['RANK'])", *lines]),
    ]


def test_every_rank_is_told_who_it_is_and_the_others_write_to_a_file(tmp_path, capfd):
    told = "[os.environ[k] for k in ('RANK', 'LOCAL_RANK', 'WORLD_SIZE', 'LOCAL_WORLD_SIZE', 'MASTER_ADDR')]"
    assert launch(script(f"print({told})"), 3, tmp_path / "logs") == LaunchResult(0)
    assert capfd.readouterr().out == "['0', '0', '3', '3', '127.0.0.1']\n"
    for rank in (1, 2):
        expected = f"['{rank}', '{rank}', '3', '3', '127.0.0.1']\n"
        assert (tmp_path / "logs" / f"rank-{rank}.log").read_text() == expected


def test_a_failing_rank_ends_the_others_and_its_last_words_are_told(tmp_path):
    began = time.monotonic()
    ended = launch(
        script("if rank == 1: raise RuntimeError('a shape is wrong')", "time.sleep(60)"), 3, tmp_path
    )
    assert time.monotonic() - began < 20
    assert ended.code == 1
    log = tmp_path / "rank-1.log"
    assert ended.message == (
        f"rank 1 of 3 ended with exit code 1: RuntimeError: a shape is wrong; its log is {log}"
    )
    assert "Traceback" in log.read_text()


def test_a_rank_that_the_system_kills_is_told_from_one_that_failed(tmp_path):
    began = time.monotonic()
    ended = launch(
        script("if rank == 1: os.kill(os.getpid(), signal.SIGKILL)", "time.sleep(60)"), 2, tmp_path
    )
    assert time.monotonic() - began < 20
    assert ended.code == 1
    reason = "rank 1 of 2 was killed by SIGKILL, perhaps because memory ran out; its log"
    assert ended.message.startswith(reason)


def test_bad_input_that_another_rank_found_is_a_sentence_with_exit_code_2(tmp_path):
    ended = launch(
        script("if rank == 1: print('gspo-train: task.path: is gone'); sys.exit(2)", "time.sleep(9)"),
        2,
        tmp_path,
    )
    assert ended == LaunchResult(2, "task.path: is gone")


def test_bad_input_that_the_first_rank_told_is_not_told_again(tmp_path):
    assert launch(script("time.sleep(rank)", "sys.exit(2)"), 2, tmp_path) == LaunchResult(2)


def test_an_interrupted_run_is_no_failure(tmp_path):
    assert launch(script("sys.exit(130)"), 2, tmp_path) == LaunchResult(130)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_reach_the_first_rank_alone(tmp_path, number):
    worker = script(
        "def heard(number, frame): open(f'{sys.argv[1]}/heard-{rank}', 'w').close(); sys.exit(0)",
        "signal.signal(signal.SIGINT, heard); signal.signal(signal.SIGTERM, heard)",
        "open(f'{sys.argv[1]}/ready-{rank}', 'w').close()",
        "while not os.path.exists(f'{sys.argv[1]}/heard-0'): time.sleep(0.05)",
    )
    parent = (
        "import sys; from pathlib import Path; from gspo_cli.launching.processes import launch\n"
        f"print(launch({[*worker, str(tmp_path)]!r}, 2, Path({str(tmp_path)!r})))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", parent], cwd=ROOT, stdout=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    while not all((tmp_path / f"ready-{rank}").exists() for rank in (0, 1)):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(number)
    said, _ = process.communicate(timeout=30)
    assert said == "LaunchResult(code=0, message=None)\n"
    assert (tmp_path / "heard-0").exists()
    assert not (tmp_path / "heard-1").exists()


def test_cores_are_divided_unless_told_otherwise(tmp_path, capfd, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    launch(script("print(os.environ['OMP_NUM_THREADS'])"), 2, tmp_path)
    assert capfd.readouterr().out == f"{max(1, os.cpu_count() // 2)}\n"
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    launch(script("print(os.environ['OMP_NUM_THREADS'])"), 2, tmp_path)
    assert capfd.readouterr().out == "7\n"


@pytest.mark.parametrize(
    ("found", "asked", "message"),
    [
        (0, "null", "finds none of the GPUs that are visible; use hardware=cpu"),
        (2, "3", "hardware.processes=3: 2 GPUs are visible; use at most 2"),
    ],
)
def test_processes_are_counted_by_the_gpus_that_there_are(monkeypatch, found, asked, message):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")  # more than this machine has
    config = build_config(composed(["model=large", "hardware=zero2", f"hardware.processes={asked}"]))
    with pytest.raises(UserError, match=message):
        process_count(config, lambda: found)
