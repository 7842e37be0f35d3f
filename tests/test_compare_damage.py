"""Damaged runs: whatever stands in a file of a run, the run is left out with one sentence, or what it holds
can be compared."""

from __future__ import annotations

import contextlib
import copy
import json
import shutil
from pathlib import Path

import pytest
import yaml

from gspo_cli.compare.across import compare_subjects
from gspo_cli.compare.comparison import compare
from gspo_cli.compare.report import json_text
from gspo_cli.compare.runs import find_runs
from gspo_cli.compare.stored_lines import lines
from gspo_cli.config.compare_schema import CompareConfig
from gspo_cli.errors import UserError
from gspo_cli.plain_files import bounded_json
from tests.support.stored_runs import write_run

LOGS = ("metrics.jsonl", "evals.jsonl", "heldout.jsonl")
WRONG = [None, "x", "5", -5, 1e300, ["a"], {"a": 1}, True]
REPAIR = "restore the file, or repeat the run"
DEEP = "[" * 60 + "]" * 60


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """gspo and grpo, two seeds each."""
    folder = tmp_path_factory.mktemp("written")
    for algorithm in ("gspo", "grpo"):
        for seed in range(2):
            write_run(folder / f"{algorithm}-s{seed}", algorithm, seed, 6, every=3, problems=8)
    return folder


@pytest.fixture
def sweep(written, tmp_path):
    """A copy to damage."""
    return Path(shutil.copytree(written, tmp_path / "sweep"))


@pytest.fixture
def damaged(sweep):
    """The run to damage."""
    return sweep / "gspo-s1"


def left_out(sweep):
    """Why the damaged run, and no other, is left out."""
    runs, (out,) = find_runs([sweep])
    assert out.folder == str(sweep / "gspo-s1")
    assert [run.folder for run in runs] == [str(sweep / name) for name in ("grpo-s0", "grpo-s1", "gspo-s0")]
    return out.reason


def changed(value, path, new):
    """A copy of `value` with `new` in the place that `path` leads to."""
    found = here = [copy.deepcopy(value)]
    for key in (path := (0, *path))[:-1]:
        here = here[key]
    here[path[-1]] = new
    return found[0]


def fields(value, above=()):
    """Paths of all values; of a list those of its first item."""
    yield from [above] if above else []
    items = (
        value.items() if isinstance(value, dict) else enumerate(value[:1] if isinstance(value, list) else ())
    )
    for key, inner in items:
        yield from fields(inner, (*above, key))


def records(log):
    return [json.loads(text) for text in log.read_text().splitlines()]


def write(log, found):
    log.write_text("".join(json.dumps(line) + "\n" for line in found))


def with_value(log, place, path, new):
    found = records(log)
    found[place] = changed(found[place], path, new)
    write(log, found)


CONVERSATION = ("conversations", 0)
MESSAGE = (*CONVERSATION, "messages", 0)
ODD_LINES = [
    *(("metrics.jsonl", ("num_tokens",), new, "num_tokens") for new in (None, -5, 3.5, True, "x", 10**20)),
    *(("metrics.jsonl", ("entropy",), new, "entropy") for new in ("x", ["a"], {}, True)),
    *(("evals.jsonl", ("score",), new, "score") for new in (-5, 1e69, 1.01, -1e-9, True, "x", ["a"])),
    *(("evals.jsonl", ("pass@4",), new, "pass@4") for new in (-5, 1e69, "x")),
    *(
        ("evals.jsonl", ("num_problems",), new, "num_problems")
        for new in (-5, 0, 0.5, 1e69, 10**10, None, True)
    ),
    ("evals.jsonl", ("kl",), "x", "kl"),
    *(("evals.jsonl", ("excluded",), new, "excluded") for new in (-1, -1e60, 0.5, None, 10**6)),
    *(("heldout.jsonl", ("problems",), new, "problems") for new in (None, "x", [["a"]], [1])),
    ("heldout.jsonl", ("problems", 0), ["a"], "problems"),
    *(("heldout.jsonl", ("solved",), new, "solved") for new in (None, {}, [True])),
    *(("heldout.jsonl", ("solved", 0), new, "solved") for new in ("x", 1, ["a"])),
    *(("heldout.jsonl", ("sampled",), new, "sampled") for new in ("x", [], [[0, 4]])),
    *(("heldout.jsonl", ("sampled", 0), new, "sampled") for new in ([5, 4], [-5, 4], ["x", 4], [4], None)),
    *(("heldout.jsonl", ("conversations",), new, "conversations") for new in (None, "x", {})),
    ("heldout.jsonl", CONVERSATION, 5, "conversations[0]"),
    ("heldout.jsonl", CONVERSATION, {}, "conversations[0].problem_id"),
    *(
        ("heldout.jsonl", (*CONVERSATION, key), new, f"conversations[0].{key}")
        for key, values in {
            "problem_id": (None, 5, ["a"]),
            "messages": (None, "x", {}, [None], [[]]),
            "expected": (["a"], {}),
            "reward": ("x", ["a"], True),
            "components": (None, "x", ["a"], {"exact": "x"}),
            "finish_reason": (None, 5),
            "excluded": (["a"], 5),
            "turns": (None, -5, "x"),
        }.items()
        for new in values
    ),
    *(("heldout.jsonl", MESSAGE, new, "conversations[0].messages") for new in (-5, None, {}, "x")),
    *(
        ("heldout.jsonl", (*MESSAGE, key), new, "conversations[0].messages")
        for key in ("role", "content")
        for new in (None, -5, ["a"])
    ),
]


@pytest.mark.parametrize(("log", "path", "new", "key"), ODD_LINES)
def test_a_line_that_no_run_writes_is_damage_and_named(written, tmp_path, log, path, new, key):
    found = records(written / "gspo-s1" / log)
    write(tmp_path / log, found)
    assert lines(tmp_path / log) == found
    with_value(tmp_path / log, -1, path, new)
    with pytest.raises(UserError) as refused:
        lines(tmp_path / log)
    assert str(refused.value) == f"line {len(found)} of {log} is damaged ({key}); {REPAIR}"


def without(log, key):
    found = records(log)
    del found[1][key]
    write(log, found)


@pytest.mark.parametrize(
    ("log", "key"),
    [
        ("metrics.jsonl", "num_tokens"),
        *(("heldout.jsonl", key) for key in ("problems", "solved", "conversations")),
    ],
)
def test_a_run_whose_log_lacks_what_is_read_of_it_is_left_out(sweep, damaged, log, key):
    without(damaged / log, key)
    assert left_out(sweep) == f"line 2 of {log} is damaged ({key}); {REPAIR}"


def test_runs_of_before_a_key_was_logged_are_read(sweep, damaged):
    without(damaged / "heldout.jsonl", "sampled")
    without(damaged / "evals.jsonl", "num_problems")
    write(
        damaged / "heldout.jsonl", records(damaged / "heldout.jsonl")[1:]
    )  # it went on with a newer version
    assert [len(found) for found in find_runs([sweep])] == [4, 0]


def ends_before(run):
    write(run / "evals.jsonl", records(run / "evals.jsonl")[:-1])
    write(run / "heldout.jsonl", records(run / "heldout.jsonl")[:-1])


def goes_on(run):
    for log in ("evals.jsonl", "heldout.jsonl"):
        found = records(run / log)
        write(run / log, [*found, found[-1] | {"iteration": 9}])


HARMS = {
    f"evals.jsonl ends at iteration 3, the run at 6; {REPAIR}": ends_before,
    f"evals.jsonl ends at iteration 9, the run at 6; {REPAIR}": goes_on,
    "its last evaluation has no score, as every conversation was excluded; repeat the run": lambda run: (
        with_value(run / "evals.jsonl", -1, ("score",), None)
    ),
    f"heldout.jsonl does not have the evaluations of evals.jsonl; {REPAIR}": lambda run: write(
        run / "heldout.jsonl", records(run / "heldout.jsonl")[:-1]
    ),
    f"iteration 6 has other numbers of problems in evals.jsonl and heldout.jsonl; {REPAIR}": lambda run: (
        with_value(run / "evals.jsonl", -1, ("num_problems",), 7)
    ),
    f"iteration 6 has a score in evals.jsonl that is not the share solved in heldout.jsonl; {REPAIR}": (
        lambda run: with_value(run / "evals.jsonl", -1, ("score",), 0.125)
    ),
    f"iteration 3 has a score in evals.jsonl that is not the share solved in heldout.jsonl; {REPAIR}": (
        lambda run: with_value(run / "heldout.jsonl", 1, ("solved", 0), None)
    ),
    f"num_tokens falls in metrics.jsonl, which counts all tokens; {REPAIR}": lambda run: with_value(
        run / "metrics.jsonl", -1, ("num_tokens",), 3
    ),
    f"line 1 of heldout.jsonl is damaged; {REPAIR}": lambda run: (run / "heldout.jsonl").write_text(
        f'{{"iteration": 0, "deep": {DEEP}}}\n'
    ),
}


@pytest.mark.parametrize("reason", HARMS)
def test_a_run_whose_files_do_not_fit_each_other_is_left_out(sweep, damaged, reason):
    HARMS[reason](damaged)
    assert left_out(sweep) == reason
    runs, out = find_runs([sweep])
    assert compare(runs, out, CompareConfig()).left_out == out


@pytest.mark.parametrize("status", ["stopped_early", "collapsed"])
def test_a_run_is_evaluated_at_its_end_however_it_ended(sweep, damaged, status):
    summary = json.loads((damaged / "summary.json").read_text())
    (damaged / "summary.json").write_text(json.dumps(summary | {"status": status}))
    assert [len(found) for found in find_runs([sweep])] == [4, 0]
    ends_before(damaged)
    assert left_out(sweep) == f"evals.jsonl ends at iteration 3, the run at 6; {REPAIR}"


def settings(run, key, new):
    config = yaml.safe_load((run / "config.yaml").read_text())
    group, _, name = key.rpartition(".")
    (config[group] if group else config)[name] = new
    (run / "config.yaml").write_text(yaml.dump(config))


ODD_SETTINGS = [
    *(("task.name", new, "config.yaml: task.name") for new in (None, -5, ["a"], True, "a/b")),
    *(("model.label", new, "config.yaml: model.label") for new in (-5, True, ["a"], "")),
    *(("model.name", new, "config.yaml: model.name") for new in (None, -5)),
    ("algorithm.name", 5, "config.yaml: algorithm.name"),
    ("task.x", b"hello", "config.yaml: task.x"),
    ("task.x", 10**301, "config.yaml: task.x"),
    ("task.x", {1: 2, "a": 3}, "config.yaml: task.x"),
    ("task.x", [{True: 1}], "config.yaml: task.x.0"),
]


@pytest.mark.parametrize(("key", "new", "start"), ODD_SETTINGS)
def test_settings_that_no_run_writes_are_damage_and_named(sweep, damaged, key, new, start):
    settings(damaged, key, new)
    assert left_out(sweep) == f"{start} is not what a run writes; restore the file"


@pytest.mark.parametrize("new", [True, None, -5, 1.0, "0", 2**63])
def test_what_is_no_seed_is_none(sweep, damaged, new):
    settings(damaged, "seed", new)
    assert left_out(sweep) == "config.yaml has no seed; restore the file"


def test_settings_are_of_one_kind_with_whole_numbers_as_keys(sweep, damaged):
    for run in sweep.iterdir():
        settings(run, "task.x", {1: [2, None], 2: {"a": 0.5}})
    assert [len(found) for found in find_runs([sweep])] == [4, 0]


def test_fewer_answers_than_a_prompt_has_are_no_iteration(sweep, damaged):
    settings(damaged, "training.generations_per_iteration", 4)
    assert left_out(sweep) == (
        "config.yaml: training has fewer answers in an iteration than to a prompt; restore the file"
    )


def test_a_reason_does_not_repeat_the_folder(sweep, damaged):
    (damaged / "config.yaml").write_text("task: {name: x}\n")
    assert left_out(sweep) == "config.yaml: has no model settings; give a run folder of gspo-train"
    (damaged / "config.yaml").unlink()
    assert left_out(sweep) == "is not a run folder (no config.yaml); give the folder of a run"


@pytest.mark.parametrize("name", ["5", "null"])
def test_the_name_of_an_option_may_read_as_a_number(sweep, name):
    for run in sweep.iterdir():
        settings(run, "model.label", name)
    assert name in compare(*find_runs([sweep]), CompareConfig()).title


@pytest.mark.parametrize("key", ["status", "iterations", "total_iterations", "wall_seconds"])
def test_a_summary_that_no_run_writes_is_said(sweep, damaged, key):
    summary = json.loads((damaged / "summary.json").read_text())
    for new in ("x", ["a"], {}, True, *([-5, None, 0.5] if key.endswith("iterations") else [])):
        (damaged / "summary.json").write_text(json.dumps(summary | {key: new}))
        _, (out,) = find_runs([damaged])
        assert out.reason == f"summary.json cannot be read; continue it with gspo-train resume={damaged}"


@pytest.mark.parametrize("new", [10**20, 10**70, -(2**53) - 1])
def test_whole_numbers_that_arrays_do_not_have_are_floats_and_compared(sweep, damaged, new):
    for log, key in (
        ("metrics.jsonl", "time/iteration"),
        ("metrics.jsonl", "entropy"),
        ("evals.jsonl", "kl"),
    ):
        with_value(damaged / log, -1, (key,), new)
        assert type(lines(damaged / log)[-1][key]) is float
    runs, out = find_runs([sweep])
    assert len(runs) == 4
    json_text(compare(runs, out, CompareConfig()))


def test_numbers_whose_powers_are_zero_are_zero_and_deep_values_are_damage():
    assert bounded_json("[1e-320, -1e-71, 1e-69, 0.5, 7, -0.0]") == [0.0, 0.0, 1e-69, 0.5, 7, 0.0]
    assert bounded_json(DEEP[10:-10]) is not None
    with pytest.raises(ValueError, match="nested too deeply"):
        bounded_json(DEEP)


@pytest.mark.parametrize("new", WRONG, ids=json.dumps)
def test_what_is_taken_of_a_line_can_be_compared(sweep, damaged, new):
    """Every value of a line, replaced: either the line is refused, or all that was taken is compared."""
    taken = 0
    for log in LOGS:
        whole = records(damaged / log)
        kept = whole[1]
        for path in fields(whole[1]):
            write(damaged / log, [whole[0], changed(whole[1], path, new), *whole[2:]])
            try:
                lines(damaged / log)
            except UserError:
                continue
            if path[0] not in ("iteration", "score", "solved"):  # which must fit each other
                kept, taken = changed(kept, path, new), taken + 1
        write(damaged / log, [whole[0], kept, *whole[2:]])
    runs, out = find_runs([sweep])
    assert (len(runs), out) == (4, [])
    compare(runs, out, CompareConfig())
    assert (taken > 0) == (new != 1e300)


@pytest.mark.long
@pytest.mark.parametrize("name", ["config.yaml", "summary.json"])
def test_no_value_of_a_file_ends_in_a_traceback(sweep, damaged, name):
    (other,), _ = find_runs([sweep / "grpo-s1"])
    whole = yaml.safe_load((damaged / name).read_text())  # JSON is YAML
    for path in fields(whole):
        for new in WRONG:
            odd = changed(whole, path, new)
            (damaged / name).write_text(json.dumps(odd))
            runs, out = find_runs([damaged])
            assert len(runs) + len(out) == 1
            with contextlib.suppress(UserError):
                compare_subjects([other, *runs], out, CompareConfig())
