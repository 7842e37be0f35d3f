"""Damaged logs and summaries, refused starts, leftovers of kills, and code that ends the process: nothing is
lost, nothing is left behind, and each is one sentence."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from gspo_cli.diagnosis.examination import examine
from gspo_cli.errors import UserError
from gspo_cli.manifest import damage
from gspo_cli.run.folder import RunFolder
from gspo_cli.run.identity import prepare
from gspo_cli.run.summary import known_summary, read_summary
from gspo_cli.user_cache import cache_folder
from tests.support.command_line import call, environment, gspo_train
from tests.support.whole_runs import SMALL, assert_same_run, run

pytestmark = pytest.mark.long

QUICK = [*SMALL, "training.num_outer_iterations=2"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """Four iterations, saved after the second and the fourth."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    done = gspo_train(*SMALL, "training.num_outer_iterations=4", f"hydra.run.dir={folder}")
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def stopped(whole, tmp_path) -> Path:
    """The same run as if it had been killed in the fourth iteration."""
    folder = tmp_path / "run"
    shutil.copytree(whole, folder, symlinks=True)
    shutil.rmtree(folder / "checkpoints" / "iteration-000004")
    for link in ("last", "best"):
        (folder / "checkpoints" / link).unlink()
        (folder / "checkpoints" / link).symlink_to("iteration-000002")
    (folder / "summary.json").unlink()
    return folder


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_what_a_resume_cuts_off_a_log_is_kept_beside_it(stopped, whole):
    before = (stopped / "metrics.jsonl").read_bytes()
    done = gspo_train(f"resume={stopped}")
    assert done.returncode == 0, done.stderr
    assert_same_run(stopped, whole)
    aside = (stopped / "metrics.jsonl.rewound").read_bytes()
    assert [json.loads(line)["iteration"] for line in aside.splitlines()] == [3, 4]
    assert before.endswith(aside)


def test_a_line_that_a_kill_cut_is_normal(stopped, whole):
    with (stopped / "samples.jsonl").open("ab") as file:
        file.write(b'{"iteration": 4, "text": "he')
    assert gspo_train(f"resume={stopped}").returncode == 0
    assert_same_run(stopped, whole)
    assert (stopped / "samples.jsonl.rewound").read_bytes().endswith(b'"he\n')


@pytest.mark.parametrize("log", ["metrics.jsonl", "evals.jsonl", "samples.jsonl", "heldout.jsonl"])
@pytest.mark.parametrize("garbage", [b"garbage", b"\xff\xfe", b"[" * 100_000, b'{"iteration": "2"}', b"{}"])
def test_a_line_in_the_middle_that_cannot_be_read_stops_a_resume_and_loses_nothing(stopped, log, garbage):
    lines = (stopped / log).read_bytes().split(b"\n")
    (stopped / log).write_bytes(b"\n".join([lines[0], garbage, *lines[1:]]))
    before = content(stopped)
    done = gspo_train(f"resume={stopped}", "logging.report_to=none")
    assert done.returncode == 2
    assert done.stderr == (
        f"gspo-train: {stopped / log}: line 2 cannot be read; restore the file, or move what cannot be read "
        f"to {log}.rewound with: gspo-train resume={stopped} --repair\n"
    )
    assert content(stopped) == before


def test_a_repair_moves_only_what_cannot_be_read(stopped, whole):
    path = stopped / "metrics.jsonl"
    lines = path.read_bytes().split(b"\n")
    path.write_bytes(b"\n".join([lines[0], b"garbage", *lines[1:]]))
    done = gspo_train(f"resume={stopped}", "--repair")
    assert done.returncode == 0, done.stderr
    assert f"{path}: 1 lines that cannot be read were moved to metrics.jsonl.rewound" in done.stdout
    assert_same_run(stopped, whole)
    assert (stopped / "metrics.jsonl.rewound").read_bytes().splitlines()[0] == b"garbage"
    assert gspo_train(f"resume={stopped}", "training.num_outer_iterations=5").returncode == 0


DAMAGED = [
    *("", "{}", "[]", "null", "garbage", '{"status": "completed"}', '{"status": "done", "iterations": 4}'),
    '{"status": "completed", "iterations": "4", "total_iterations": 4}',
]


@pytest.mark.parametrize("text", DAMAGED)
def test_a_damaged_summary_is_written_again_or_refused_in_one_sentence(stopped, whole, text):
    (stopped / "summary.json").write_text(text)
    with pytest.raises(UserError, match=r"summary\.json: "):
        read_summary(stopped)
    assert known_summary(stopped) is None
    done = gspo_train(f"resume={stopped}")
    assert done.returncode == 0, done.stderr
    assert read_summary(stopped)["iterations"] == read_summary(whole)["iterations"] == 4


HOLDER = """
import sys
from pathlib import Path
from gspo_cli.run.folder import RunFolder
with RunFolder(Path(sys.argv[1])).locked():
    print("held", flush=True)
    sys.stdin.readline()
"""


def test_a_second_command_on_a_running_run_writes_nothing(stopped, configure):
    command = [sys.executable, "-c", HOLDER, str(stopped)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=environment(), **pipes) as holder:
        assert holder.stdout.readline() == "held\n"
        before = content(stopped)
        done = gspo_train(f"resume={stopped}", "training.num_outer_iterations=77")
        assert (done.returncode, "another process trains in this folder" in done.stderr) == (2, True)
        with pytest.raises(UserError, match="another process trains in this folder"):
            prepare(stopped, (stopped / "config.yaml").read_text())
        assert content(stopped) == before
        holder.stdin.write("\n")
        holder.stdin.close()


def test_what_is_refused_leaves_nothing_behind(tmp_path, monkeypatch):
    folder = tmp_path / "run"
    monkeypatch.setitem(sys.modules, "wandb", None)  # as if it were not installed
    done = gspo_train(*QUICK, f"hydra.run.dir={folder}", "logging=wandb")
    assert (done.returncode, "wandb is not installed" in done.stderr) == (2, True)
    assert not folder.exists()
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    assert gspo_train(*QUICK, f"hydra.run.dir={folder}", "logging=wandb").returncode == 2
    assert content(folder) == {"notes.txt": b"mine"}
    assert gspo_train(*QUICK, f"hydra.run.dir={folder}").returncode == 0


def test_leftovers_of_a_kill_are_removed_at_the_next_start(stopped, tmp_path):
    left = [stopped / ".writing-initial_model-4242", stopped / "checkpoints" / ".writing-iteration-000004-9"]
    for folder in left:
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(b"half")
    (stopped / ".writing-config.yaml").write_text("half")
    assert gspo_train(f"resume={stopped}").returncode == 0
    assert not list(stopped.rglob(".writing*"))


def test_leftovers_in_the_cache_are_removed_by_who_makes_the_same(configure, tmp_path, reporter, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    run(configure("seed=0"), tmp_path / "first", reporter)
    (cached,) = [path for path in cache_folder("cold_start").iterdir() if path.is_dir()]
    mine, other = cached.with_name(f".writing-{cached.name}-4242"), cached.with_name(".writing-other-4242")
    mine.mkdir()
    other.mkdir()
    run(configure("seed=1"), tmp_path / "second", reporter)
    assert not mine.exists()
    assert other.exists(), "another process may be writing it"


def test_a_run_folder_that_is_removed_ends_the_run_with_a_sentence(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.create("seed: 0\n")
    shutil.rmtree(folder.path)
    for write in (
        lambda: folder.append("metrics.jsonl", {"iteration": 1}),
        lambda: folder.write_summary({"status": "failed"}),
    ):
        with pytest.raises(UserError, match=f"^{folder.path}: was removed"):
            write()


def test_a_last_line_without_its_end_is_kept_whole(stopped, whole):
    for log in ("metrics.jsonl", "evals.jsonl"):
        lines = (stopped / log).read_bytes().splitlines()
        (stopped / log).write_bytes(b"\n".join(lines[:2]))  # no later line, and no end
    done = gspo_train(f"resume={stopped}")
    assert done.returncode == 0, done.stderr
    assert_same_run(stopped, whole)


def test_a_damaged_initial_model_is_named_and_built_anew(stopped, whole):
    flip(stopped / "initial_model" / "model.safetensors")
    done = gspo_train(f"resume={stopped}")
    assert done.returncode == 2
    assert "initial_model: is damaged (model.safetensors is not what was written); remove it, " in done.stderr
    shutil.rmtree(stopped / "initial_model")
    done = gspo_train(f"resume={stopped}")
    assert done.returncode == 0, done.stderr
    assert_same_run(stopped, whole)


@pytest.mark.parametrize("name", ["config.yaml", ".config.yaml"])
@pytest.mark.parametrize("content", ["", "model: [", None])
def test_one_damaged_copy_of_the_settings_is_replaced_by_the_other(stopped, whole, name, content):
    (stopped / name).unlink() if content is None else (stopped / name).write_text(content)
    done = gspo_train(f"resume={stopped}")
    assert done.returncode == 0, done.stderr
    assert (done.stdout + done.stderr).count("was edited") <= 5
    assert_same_run(stopped, whole)


def test_lost_links_cost_nothing(stopped):
    for link in ("last", "best"):
        (stopped / "checkpoints" / link).unlink()
    assert call("gspo-eval", str(stopped)).returncode == 0


@pytest.mark.parametrize("checkpoint", ["../../run", "", "iteration-000009", "x"])
def test_a_checkpoint_is_one_of_the_run(stopped, checkpoint):
    done = call("gspo-eval", str(stopped), "--checkpoint", checkpoint)
    assert done.returncode == 2
    assert f"--checkpoint {checkpoint}: does not exist; choose one of initial, last, best" in done.stderr


def test_a_sweep_without_jobs_is_no_success(tmp_path):
    done = gspo_train("-m", *QUICK, "seed=range(0,0)", cwd=tmp_path)
    assert (done.returncode, "the sweep has no jobs" in done.stderr) == (2, True)


@pytest.mark.parametrize("name", ["../../x", "a/b", "", ".hidden"])
@pytest.mark.parametrize("key", ["task.name", "model.label", "algorithm.name"])
def test_a_name_is_no_path(tmp_path, key, name):
    home = tmp_path / "home"
    home.mkdir()
    done = gspo_train(*QUICK, f"{key}={json.dumps(name)}", cwd=home)
    assert done.returncode == 2
    assert f"{key}={name}: cannot be part of a folder's name; use letters" in done.stderr
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


DAMAGES = {
    "a bit of the weights": lambda folder: flip(folder / "model.safetensors"),
    "a bit of the optimizer": lambda folder: flip(folder / "trainer.pt"),
    "a cut optimizer": lambda folder: cut(folder / "trainer.pt"),
    "an empty file": lambda folder: (folder / "tokenizer.json").write_bytes(b""),
    "a missing file": lambda folder: (folder / "config.json").unlink(),
    "a manifest of garbage": lambda folder: (folder / "manifest.json").write_text("garbage"),
    "a cut file without a manifest": lambda folder: (
        (folder / "manifest.json").unlink(), cut(folder / "model.safetensors")
    ),
    "a cut optimizer without a manifest": lambda folder: (
        (folder / "manifest.json").unlink(), cut(folder / "trainer.pt")
    ),
}  # fmt: skip


REASONS = {
    "a bit of the weights": "model.safetensors is not what was written)",
    "a bit of the optimizer": "trainer.pt is not what was written)",
    "a cut optimizer": "trainer.pt has ",
    "an empty file": "tokenizer.json has 0 bytes in place of ",
    "a missing file": "config.json is missing)",
    "a manifest of garbage": "manifest.json cannot be read)",
    "a cut file without a manifest": "model.safetensors is cut)",
    "a cut optimizer without a manifest": "trainer.pt is missing or cut)",
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_newest_checkpoint_is_reported_and_the_whole_one_before_it_taken(whole, tmp_path, name):
    folder = tmp_path / "run"
    shutil.copytree(whole, folder, symlinks=True)
    checkpoints = folder / "checkpoints"
    (folder / "summary.json").unlink()  # it was killed
    (checkpoints / "iteration-backup").mkdir()  # not ours
    DAMAGES[name](checkpoints / "iteration-000004")
    assert f"checkpoint iteration-000004 is damaged ({REASONS[name]}" in examine(folder).unread
    evaluated = call("gspo-eval", str(folder), "--checkpoint", "last")
    trains_only = "optimizer" in name  # an evaluation does not need it
    assert evaluated.returncode == (0 if trains_only else 2), evaluated.stderr
    assert trains_only or "is damaged (" in evaluated.stderr
    done = gspo_train(f"resume={folder}")
    assert done.returncode == 0, done.stderr
    shown = done.stdout + done.stderr
    assert "iteration-000004: is damaged (" in shown
    assert "iteration-backup is no checkpoint of this run; ignored" in shown
    assert (checkpoints / "damaged-iteration-000004").is_dir()
    assert damage(checkpoints / "iteration-000004") is None
    shutil.rmtree(checkpoints / "damaged-iteration-000004")
    shutil.rmtree(checkpoints / "iteration-backup")
    assert_same_run(folder, whole)


def test_a_run_whose_checkpoints_are_all_damaged_begins_again_and_keeps_its_logs(whole, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(whole, folder, symlinks=True)
    (folder / "summary.json").unlink()
    for checkpoint in (folder / "checkpoints").glob("iteration-*"):
        flip(checkpoint / "trainer.pt")
    done = gspo_train(f"resume={folder}")
    assert done.returncode == 0, done.stderr
    assert_same_run(folder, whole)
    assert len((folder / "metrics.jsonl.rewound").read_text().splitlines()) == 4
