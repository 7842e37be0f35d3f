"""A bad or a full disk: damaged caches, logs and machine files cost one sentence, and no run is lost."""

from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path

import pytest
from safetensors import SafetensorError

from gspo_cli.compare.runs import find_runs
from gspo_cli.config import trust
from gspo_cli.diagnosis.columns import rows_of
from gspo_cli.diagnosis.examination import examine
from gspo_cli.errors import UserError
from gspo_cli.manifest import damage
from gspo_cli.run.files import remove_empty
from gspo_cli.run.identity import state_of
from gspo_cli.run.summary import known_summary
from gspo_cli.training import cold_start
from gspo_cli.user_cache import cache_folder
from tests.support.command_line import gspo_train
from tests.support.whole_runs import SMALL

BEYOND = "1" + "0" * 400  # a whole number that no float is
DIGITS = "1" * 5000  # more than Python reads
GARBAGE = ["[" * 100_000, f'{{"iteration": {DIGITS}}}', f'{{"iteration": {BEYOND}}}', '{"iteration": 1e400}']


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    done = gspo_train(*SMALL, "training.num_outer_iterations=2", f"hydra.run.dir={folder}")
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def damaged(whole, tmp_path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(whole, tmp_path / "run", symlinks=True))


def flipped(path: Path) -> None:
    held = bytearray(path.read_bytes())
    held[-60:-20] = bytes(255 - byte for byte in held[-60:-20])
    path.write_bytes(held)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.long
@pytest.mark.parametrize("harm", [flipped, cut, Path.unlink])
def test_a_damaged_cached_cold_start_is_named_and_trained_anew(harm, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    command = [*SMALL, "training.num_outer_iterations=1"]
    assert gspo_train(*command, f"hydra.run.dir={tmp_path}/first").returncode == 0
    (cached,) = [path for path in cache_folder("cold_start").iterdir() if path.is_dir()]
    harm(cached / "model.safetensors")
    done = gspo_train(*command, f"hydra.run.dir={tmp_path}/second")
    assert done.returncode == 0, done.stderr
    assert f"{cached} is damaged (model.safetensors " in done.stdout
    models = [tmp_path / name / "initial_model" / "model.safetensors" for name in ("first", "second")]
    assert models[0].read_bytes() == models[1].read_bytes()
    assert damage(cached, resumes=False) is None


@pytest.mark.long
@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), SafetensorError("I/O (28)")]
)
@pytest.mark.parametrize("place", ["write_embedded", "write_manifest"])
def test_a_full_disk_in_a_cold_start_is_one_sentence_and_keeps_the_run(error, place, tmp_path, monkeypatch):
    def full(*arguments: object) -> None:
        raise error

    folder = tmp_path / "run"
    command = [*SMALL, "training.num_outer_iterations=1", "model.cold_start.cache=false"]
    with monkeypatch.context() as patch:
        patch.setattr(cold_start, place, full)
        done = gspo_train(*command, f"hydra.run.dir={folder}")
    assert done.returncode == 2, done.stderr
    assert f"{folder}/initial_model: cannot be saved (" in done.stderr
    assert done.stderr.endswith(f"; free space, then continue with gspo-train resume={folder}\n")
    assert gspo_train(f"resume={folder}").returncode == 0


@pytest.mark.parametrize("held", [b"\xff\xfe garbage \x00", b"abc", b"abc\n", b""])
def test_a_damaged_file_of_trust_is_added_to(held, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    path = tmp_path / "gspo-cli" / "trusted"
    path.parent.mkdir()
    path.write_bytes(held)
    for digest in ("one", "two", "one"):
        monkeypatch.setenv(trust.INHERITED, "")
        trust.remember(digest)
    monkeypatch.setenv(trust.INHERITED, "")
    assert trust._allowed("one")
    assert trust._allowed("two")
    assert path.read_bytes().startswith(held)
    assert path.read_bytes().split()[-2:] == [b"one", b"two"]


SUMMARY = [
    f'{{"status": "completed", "iterations": {BEYOND}, "total_iterations": 2}}',
    f'{{"status": "completed", "iterations": {DIGITS}, "total_iterations": 2}}',
    *(
        f'{{"status": "completed", "iterations": 2, "total_iterations": 2, "{key}": {{"score": {number}}}}}'
        for key in ("initial_eval", "best_eval", "final_eval")
        for number in (BEYOND, DIGITS, "Infinity", "1e400", "1e308")
    ),
]


@pytest.mark.parametrize("text", SUMMARY)
def test_numbers_beyond_float_are_no_summary(text, damaged):
    (damaged / "summary.json").write_text(text)
    assert known_summary(damaged) is None


@pytest.mark.parametrize(
    "number", [BEYOND, DIGITS, "-" + BEYOND, "Infinity", "1e400", "1e308", "NaN", "null"]
)
@pytest.mark.parametrize("log", ["metrics.jsonl", "evals.jsonl"])
def test_the_doctor_reads_on_over_numbers_beyond_float(number, log, damaged):
    lines = [json.loads(line) for line in (damaged / log).read_text().splitlines()]
    names = [name for name in lines[-1] if isinstance(lines[-1][name], int | float) and name != "iteration"]
    lines = [{**line, **dict.fromkeys(names, "NUMBER")} for line in lines]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (damaged / log).write_text(text.replace('"NUMBER"', number))
    assert examine(damaged).guide


@pytest.mark.parametrize("garbage", GARBAGE)
def test_an_iteration_beyond_float_is_a_line_that_cannot_be_read(garbage, damaged):
    with (damaged / "metrics.jsonl").open("a") as file:
        file.write(garbage + "\n")
    assert "metrics.jsonl cannot be read from line 3 on" in examine(damaged).unread


def test_what_no_column_holds_is_missing_or_bounded():
    rows = rows_of([{"iteration": 1, "a": 10**400, "b": float("nan"), "c": float("-inf")}])
    assert dict(rows[0]) == {"iteration": 1, "a": int(1e300), "c": int(-1e300)}


@pytest.mark.parametrize(
    "entry", ["[Infinity, 1]", "[1, -Infinity]", f"[{BEYOND}, 1]", f"[{DIGITS}, 1]", "[NaN, 1]"]
)
def test_a_manifest_with_numbers_beyond_float_is_damaged(entry, tmp_path):
    (tmp_path / "manifest.json").write_text(f'{{"crc32": {{"a": {entry}}}}}')
    assert damage(tmp_path) in ("manifest.json cannot be read", "a is missing")


@pytest.mark.parametrize("memory", ["{}", "5", "null", "[]", '{"phases": 3}', '{"phases": {"a": 1}}',
                                    '{"phases": {}}', '{"phases": {"a": {"weights": "x"}}}',
                                    f'{{"phases": {{"a": {{"weights": {BEYOND}}}}}}}'])  # fmt: skip
def test_a_card_without_its_memory_is_passed_over(memory, damaged):
    (damaged / "card.json").write_text(f'{{"memory": {memory}}}')
    assert examine(damaged).guide
    (damaged / "card.json").write_text("{}")
    assert examine(damaged).guide


LINES = {
    log: [*GARBAGE, f'{{"iteration": 1, "num_tokens": 1, "reward": {BEYOND}}}',
          f'{{"iteration": 1, "num_tokens": {BEYOND}}}', '{"iteration": 1, "num_tokens": 1, "score": 1e80}',
          '{"iteration": 1, "problems": [1], "solved": [1], "conversations": [5]}']
    for log in ("metrics.jsonl", "evals.jsonl", "heldout.jsonl")
}  # fmt: skip


@pytest.mark.parametrize(("log", "garbage"), [(log, text) for log in LINES for text in LINES[log]])
def test_a_garbage_line_leaves_one_run_out_of_a_comparison(log, garbage, damaged, whole):
    first, *rest = (damaged / log).read_text().splitlines()
    (damaged / log).write_text("\n".join([first, garbage, *rest]) + "\n")
    runs, left_out = find_runs([damaged, whole])
    assert [run.folder for run in runs] == [str(whole)]
    assert [each.folder for each in left_out] == [str(damaged)]


NO_SUMMARY = [
    "[" * 100_000,
    '{"status": ["completed"], "iterations": 2, "total_iterations": 2}',
    f'{{"status": {DIGITS}}}',
    *SUMMARY,
]


@pytest.mark.parametrize("text", NO_SUMMARY)
def test_a_garbage_summary_leaves_one_run_out_of_a_comparison(text, damaged, whole):
    (damaged / "summary.json").write_text(text)
    runs, left_out = find_runs([damaged, whole])
    assert ([run.folder for run in runs], len(left_out)) == ([str(whole)], 1)


@pytest.mark.parametrize(
    "text", ["a: 1\n", "", "training: 5\n", "training: {}\n", "training: {num_outer_iterations: x}"]
)
def test_a_complete_job_with_damaged_settings_is_one_sentence(text, damaged):
    for name in ("config.yaml", ".config.yaml"):
        (damaged / name).write_text(text)
    with pytest.raises(UserError, match=r"config\.yaml"):
        state_of(damaged)


def test_folders_of_a_refused_start_go_with_it_and_no_others(tmp_path, monkeypatch):
    here, elsewhere = tmp_path / "here", tmp_path / "elsewhere"
    (here / "outputs/task/run").mkdir(parents=True)
    (elsewhere / "mine/run").mkdir(parents=True)
    monkeypatch.chdir(here)
    remove_empty(Path("outputs/task/run"))
    assert list(here.iterdir()) == []
    remove_empty(elsewhere / "mine/run")
    assert list((elsewhere / "mine").iterdir()) == []
    (here / "outputs/task/run").mkdir(parents=True)
    (here / "outputs/other").mkdir()
    (here / "run").mkdir()
    remove_empty(here / "outputs/task/run")
    remove_empty(here / "run")
    assert [path.name for path in here.rglob("*")] == ["outputs", "other"]
    (here / "outputs/other/file").touch()
    remove_empty(here / "outputs/other")
    assert (here / "outputs/other/file").exists()
