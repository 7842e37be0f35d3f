"""A run continues on the data that it began with: changed files are refused, and one flag accepts them."""

from __future__ import annotations

import json
import pickle

import pytest

from gspo_cli.errors import UserError
from gspo_cli.run.folder import RunFolder
from gspo_cli.tasks import problem_index
from gspo_cli.tasks.arithmetic import Arithmetic
from gspo_cli.tasks.scenarios.task import Scenarios
from gspo_cli.tasks.tau.files import stamp_of_folder
from gspo_cli.training.session import run_training
from tests.support.command_line import gspo_train
from tests.support.data import ROWS, dataset, parquet
from tests.support.tasks import write
from tests.support.whole_runs import SMALL

PROBLEMS = [{"prompt": f"{n}+1=", "answer": str(n + 1)} for n in range(30)]
OTHERS = {
    "other rows": [{"prompt": f"{n}+2=", "answer": str(n + 2)} for n in range(30)],
    "more rows at the end": [*PROBLEMS, {"prompt": "50+1=", "answer": "51"}],
    "a row less": PROBLEMS[:-1],
    "another answer": [*PROBLEMS[:-1], {**PROBLEMS[-1], "answer": "5"}],
    "another order": PROBLEMS[::-1],
}


def contents(folder):
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A run of one iteration, and the file that it reads."""
    place = tmp_path_factory.mktemp("begun")
    path, folder = write(place / "a.jsonl", *PROBLEMS), place / "run"
    settings = [each for each in SMALL if not each.startswith("task")]
    done = gspo_train(
        *settings, "task=jsonl", f"task.path={path}", "task.heldout=8", "model.cold_start.steps=0",
        "training.num_outer_iterations=1", f"hydra.run.dir={folder}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return place / "a.jsonl", folder


@pytest.mark.parametrize("rows", OTHERS.values(), ids=OTHERS)
def test_changed_rows_are_refused_before_anything_is_written(rows, begun, configure, reporter):
    path, folder = begun
    write(path, *rows)
    before = contents(folder)
    done = gspo_train(f"resume={folder}", "training.num_outer_iterations=2")
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "the data of task=jsonl has changed since this run began" in done.stderr
    assert f"gspo-train resume={folder} --changed-data" in done.stderr
    assert contents(folder) == before


def test_a_call_from_python_is_refused_alike(configure, tmp_path, reporter):
    path, folder = write(tmp_path / "a.jsonl", *PROBLEMS), RunFolder(tmp_path / "run")
    config, yaml = configure("task=jsonl", f"task.path={path}", "task.heldout=8", "model.cold_start.steps=0")
    folder.create(yaml)
    run_training(config, folder, reporter)
    write(tmp_path / "a.jsonl", *OTHERS["other rows"])
    before = contents(folder.path)
    again = pickle.loads(pickle.dumps(config))  # as a process of its own reads it
    with pytest.raises(UserError, match="has changed since this run began"):
        run_training(again, folder, reporter)
    assert contents(folder.path) == before


@pytest.mark.long
def test_the_flag_accepts_them_once_and_for_all(begun):
    path, folder = begun
    write(path, *OTHERS["other rows"])
    longer = "training.num_outer_iterations="
    done = gspo_train(f"resume={folder}", f"{longer}2", "--changed-data")
    assert done.returncode == 0, done.stderr
    done = gspo_train(f"resume={folder}", f"{longer}3")
    assert done.returncode == 0, done.stderr
    write(path, *PROBLEMS)
    assert gspo_train(f"resume={folder}", f"{longer}4").returncode == 2
    (folder / "data.json").unlink()  # as in a folder of before this check
    done = gspo_train(f"resume={folder}", f"{longer}4")
    assert done.returncode == 0, done.stderr
    assert "changed" not in done.stderr
    assert json.loads((folder / "data.json").read_text())["stamp"]


def stamp(path, **settings):
    return dataset(path, prompt="question", **settings).data_stamp()


def test_a_stamp_is_of_what_is_read_and_not_of_where_or_when(tmp_path, monkeypatch):
    one = write(tmp_path / "a.jsonl", *ROWS)
    other = write(tmp_path / "b.jsonl", "", *[{**row, "level": 7} for row in ROWS], {"note": "no problem"})
    parquet(tmp_path / "c.parquet", ROWS)
    assert stamp(one) == stamp(other) == stamp(tmp_path / "c.parquet")
    held = write(tmp_path / "held.jsonl", {"question": "a", "answer": "1"})
    before = stamp(one, heldout_path=held)
    assert before != stamp(one)
    write(tmp_path / "held.jsonl", {"question": "b", "answer": "1"})
    assert stamp(one, heldout_path=held) != before


def test_the_stamp_of_many_rows_is_kept_with_their_index(tmp_path, monkeypatch):
    path = write(tmp_path / "a.jsonl", *ROWS)
    small = stamp(path)
    monkeypatch.setattr(problem_index, "MANY", 10)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert [stamp(path), stamp(path)] == [small, small]


def test_tasks_that_read_other_files_have_stamps_and_generated_ones_none(tmp_path):
    path = tmp_path / "scenarios.json"
    path.write_text("[]")
    task = Scenarios("scenarios", "", "", path=str(path))
    before = task.data_stamp()
    path.write_text("[1]")
    assert task.data_stamp() != before
    path.unlink()
    with pytest.raises(UserError, match=r"scenarios\.json: cannot be read"):
        task.data_stamp()
    (tmp_path / "wiki.md").write_text("policy")
    before = stamp_of_folder(tmp_path)
    (tmp_path / "wiki.md").write_text("other")
    assert stamp_of_folder(tmp_path) != before
    with pytest.raises(UserError, match="cannot be read"):
        stamp_of_folder(tmp_path / "absent")
    assert Arithmetic("arithmetic", "", "").data_stamp() == ""
