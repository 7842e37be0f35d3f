"""gspo-compare with compare.until=settled as a user calls it: seeds are added, looks are kept beside the
runs, and every later report on them knows of the looks."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from gspo_cli.compare.missing_runs import SharedSettings, runs_to_compare
from gspo_cli.compare.runs import find_runs
from gspo_cli.compare.until_settled import looked_at, stored_design
from gspo_cli.config.compare_schema import CompareConfig
from gspo_cli.config.compose import resolved_yaml
from gspo_cli.errors import UserError
from gspo_cli.run.identity import prepare
from tests.support.stored_runs import changed, stored_run
from tests.test_compare_command import compare

pytestmark = pytest.mark.long

ADDED = ("compare.until=settled", "compare.seeds=[0,1,2]")
ITERATIONS = 8
SHARED = ("task=arithmetic", f"training.num_outer_iterations={ITERATIONS}", "evaluation.every=4")
BASE = Path("outputs/compare/arithmetic-tiny")


def trained(folder, finals, seeds, allow=()):
    """The folders of runs as if they had been trained, an hour each, with scores that end near `finals`."""
    settings = CompareConfig(algorithms=list(finals), seeds=list(seeds), allow=list(allow))
    for planned in runs_to_compare(SharedSettings(SHARED), settings):
        name, final = planned.entry.split()[0], finals[planned.entry]
        made = stored_run(name, planned.seed, ITERATIONS, every=4, final=final)
        run = folder / planned.folder
        prepare(run, resolved_yaml(planned.node))
        for name, lines in (("metrics", made.metrics), ("evals", made.evals), ("heldout", made.heldout)):
            (run / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        (run / "summary.json").write_text(json.dumps({**made.summary, "wall_seconds": 3600.0}))
    return folder


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """A comparison of arms that differ, with more runs than it needed, and what it printed."""
    folder = trained(tmp_path_factory.mktemp("first"), {"gspo": 0.78, "grpo": 0.7}, range(6))
    return folder, compare(folder, *SHARED, *ADDED)


@pytest.fixture
def settled(first, tmp_path):
    """That comparison again."""
    return shutil.copytree(first[0], tmp_path / "here")


def looks_of(done):
    return [line for line in done.stdout.splitlines() if line.startswith("after ")]


def report(folder):
    return json.loads((folder / BASE / "report.json").read_text())


def design(folder):
    (path,) = (folder / BASE).glob("design-*.json")
    return path


def test_seeds_are_added_until_the_difference_is_settled_and_no_longer(first):
    folder, done = first
    assert done.returncode == 0, done.stderr
    third, fourth = looks_of(done)
    assert third.startswith("after 3 seeds: gspo - grpo = 0.0")
    assert third.endswith("]: not settled; adding seed 3")
    assert fourth.startswith("after 4 seeds: ")
    assert fourth.endswith("]: higher; settled")
    found = report(folder)
    assert found["design"]["seeds"] == [3, 4]
    assert [arm["runs"][-1]["seed"] for arm in found["arms"]] == [3, 3]
    assert found["contrasts"][0]["verdict"] == "higher"


def test_arms_of_an_allowed_setting_are_looked_at_as_arms(tmp_path):
    key = "training.share_prefixes"
    entries = {"gspo": 0.78, f"grpo {key}=off": 0.78, "grpo": 0.7}
    trained(tmp_path, entries, range(6), [key])
    typed = f"compare.algorithms=[gspo,'grpo {key}=off',grpo]"
    done = compare(tmp_path, *SHARED, *ADDED, typed, f"compare.allow=[{key}]")
    assert done.returncode == 0, done.stderr
    assert "gspo - grpo = " in looks_of(done)[0]
    assert f"grpo {key}=off - grpo = " in done.stdout
    looks = report(tmp_path)["design"]["looks"]
    assert sorted(looks) == sorted([f"grpo {key}=off", "gspo"])
    means = [each[0]["difference"]["value"] for each in looks.values()]
    assert means == pytest.approx([0.08, 0.08], abs=0.04)


def test_a_comparison_that_was_interrupted_between_looks_goes_the_same_way_and_is_not_repeated(settled):
    whole, looks = report(settled), json.loads(design(settled).read_text())
    design(settled).write_text(json.dumps(looks | {"looks": [3]}))
    for lines in (2, 1):  # from the last look that is kept
        again = compare(settled, *SHARED, *ADDED)
        assert len(looks_of(again)) == lines
        assert (report(settled), json.loads(design(settled).read_text())) == (whole, looks)


def test_a_folder_of_such_runs_is_reported_by_its_looks(settled):
    before = report(settled)
    assert compare(settled, str(BASE)).returncode == 0
    after = report(settled)
    for key in ("design", "contrasts", "headline", "level"):
        assert after[key] == before[key]
    reasons = {each["folder"].split("-s")[1][0]: each["reason"] for each in after["left_out"]}
    assert set(reasons) == {"4", "5"}
    assert all(reason.startswith("is not among the runs that were looked at") for reason in reasons.values())


def test_such_runs_are_packed_with_their_looks(settled):
    whole = report(settled)
    assert compare(settled, str(BASE), "--zip", "compare.folder=out").returncode == 0
    there = settled / "there"
    there.mkdir()
    shutil.move(settled / "out" / "comparison.zip", there)
    opened = compare(there, "comparison.zip")
    assert opened.returncode == 0, opened.stderr
    (found,) = there.glob("outputs/compare/comparison-*/report.json")
    again = json.loads(found.read_text())
    for key in ("design", "contrasts", "headline", "level"):
        assert again[key] == whole[key]
    assert again["left_out"] == [], "what was not looked at is not packed"


def test_some_of_such_runs_are_not_packed(settled):
    runs = [str(run) for seed in "23" for run in (settled / BASE / "runs").glob(f"*-s{seed}-*")]
    refused = compare(settled, *runs, "--zip", "compare.folder=out")
    assert refused.returncode == 2
    assert "give all runs of that comparison and no others, or leave out --zip" in refused.stderr
    assert not (settled / "out").exists()


def test_the_settings_of_the_looks_are_those_of_a_later_report_unless_others_are_given(settled):
    looks = json.loads(design(settled).read_text())
    design(settled).write_text(json.dumps(looks | {"level": 0.9, "smallest": 0.03, "parallel": 4}))
    runs = find_runs([settled / BASE])[0]
    looked = looked_at(runs, CompareConfig())
    kept = (looked.settings.level, looked.settings.smallest, looked.settings.parallel, looked.added.step)
    assert kept == (0.9, 0.03, 4, 2)
    assert looked_at(runs, CompareConfig(level=0.8)).settings.level == 0.8


def test_other_selections_of_such_runs_have_a_caveat_and_the_first_seeds_need_none(settled):
    runs = find_runs([settled / BASE])[0]
    some, begun = ([run for run in runs if run.seed in seeds] for seeds in ((0, 1, 3), (0, 1, 2)))
    looked = looked_at(some, CompareConfig())
    assert (looked.runs, looked.added) == (some, None)
    assert "were added until another comparison was settled" in looked.caveats[0]
    looked = looked_at(begun, CompareConfig())
    assert (looked.runs, looked.added, looked.caveats) == (begun, None, [])
    other = replace(changed(runs[0], algorithm__learning_rate=1e-3), folder="elsewhere")
    looked = looked_at([*some, other], CompareConfig())
    assert (looked.added, len(looked.caveats)) == (None, 1)


def test_a_run_of_another_arm_takes_no_verdict_of_looks_away(settled):
    runs = find_runs([settled / BASE])[0]
    other = replace(changed(runs[0], algorithm__learning_rate=1e-3), folder="elsewhere")
    alone, beside = (looked_at(each, CompareConfig()) for each in (runs, [*runs, other]))
    assert (beside.runs, beside.added, beside.caveats) == (alone.runs, alone.added, ())
    (reason,) = [each.reason for each in beside.left_out if each.folder == "elsewhere"]
    assert reason.endswith("; compare it with folders of single runs")


def test_the_budget_ends_it_and_a_larger_one_continues_it(settled):
    design(settled).unlink()
    small = ("compare.level=0.999", "compare.smallest=0.01")
    done = compare(settled, *SHARED, *ADDED, *small, "compare.max_seeds=4")
    assert done.returncode == 0
    assert looks_of(done)[-1].endswith("]: not settled; compare.max_seeds=4 is reached")
    said = " ".join(report(settled)["headline"])
    assert "Not settled: looks at 3 and 4 seeds per arm used 2.3e-4 of the error rate of 0.001." in said
    assert "per arm (" in said
    done = compare(settled, *SHARED, *ADDED, *small, "compare.max_seeds=5")
    assert [line.split(":")[0] for line in looks_of(done)] == ["after 4 seeds", "after 5 seeds"]
    assert report(settled)["design"]["seeds"] == [3, 4, 5]


def test_as_many_seeds_as_train_at_once_are_added_while_the_hours_allow_it(settled):
    design(settled).unlink()
    small = ("compare.level=0.999", "compare.smallest=0.01", "compare.parallel=4")
    done = compare(settled, *SHARED, *ADDED, *small, "compare.max_hours=2.6")  # 5 seeds of 2 hours by 4
    three, five = looks_of(done)
    assert three.endswith("not settled; adding seeds 3, 4")
    assert five.endswith("not settled; compare.max_hours=2.6 would be exceeded")
    assert report(settled)["design"]["seeds"] == [3, 5]


def test_seeds_that_a_design_has_used_are_not_used_by_another_one(settled):
    for seeds in ("[1,2]", "[3,4]"):
        done = compare(settled, *SHARED, "compare.until=settled", f"compare.seeds={seeds}")
        assert done.returncode == 2
        assert "has begun to add seeds to [0, 1, 2]; give these, or seeds that it did not use" in done.stderr
    done = compare(settled, *SHARED, "compare.until=settled", "compare.seeds=[4,5]", "compare.max_seeds=2")
    assert done.returncode == 0
    assert len(list((settled / BASE).glob("design-*.json"))) == 2


@pytest.mark.parametrize(
    "change",
    [
        {"runs": ["../../x"] * 8}, {"runs": ["a"]}, {"runs": ["a\0b", *"cdefghi"]}, {"runs": ["a", "b"] * 4},
        {"runs": ["\ud800", *"cdefghi"]}, {"runs": ["..", *"cdefghi"]}, {"runs": ["", *"cdefghi"]},
        {"seeds": [0, 0, 1, 2]}, {"looks": [4, 3]},
        {"looks": [9]}, {"level": 7}, {"level": "x"}, {"baseline": 3}, {"parallel": None},
        "{", "[]", '{"seeds": [0]}',
    ],
)  # fmt: skip
def test_looks_that_cannot_be_read_stop_a_report(first, tmp_path, change):
    path, kept = tmp_path / "design-0.json", json.loads(design(first[0]).read_text())
    path.write_text(json.dumps(kept))
    assert stored_design(path).added.looks == [3, 4]
    path.write_text(change if isinstance(change, str) else json.dumps(kept | change))
    with pytest.raises(UserError, match=r"cannot be read as the looks of a comparison; restore the file"):
        stored_design(path)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["compare.until=later"], "compare.until=later"),
        (["compare.smallest=0"], "compare.smallest=0.0: must be a difference of the held-out score above 0"),
        (["compare.smallest=1e30"], "compare.smallest=1e+30: must be"),
        (["compare.max_seeds=1e30"], "compare.max_seeds=1e+30"),
        (["compare.max_seeds=101"], "compare.max_seeds=101: must be from 2 to 100"),
        (["compare.max_hours=0"], "compare.max_hours=0.0: must be above 0"),
        (["compare.max_hours=1e30"], "compare.max_hours=1e+30: must be above 0 and at most"),
        (
            ["compare.seeds=[0,9007199254740992]"],
            "has a seed that is far too large; give compare.seeds=[0,1,2]",
        ),
        (["compare.until=settled", "compare.seeds=[0]"], "begins with 2 seeds at least"),
        (["compare.until=settled", "compare.max_seeds=2"], "and compare.max_seeds=2 at most"),
        ([".", "compare.until=settled"], "compare.until=settled: is a training setting, but run folders"),
        ([".", "compare.max_hours=3"], "compare.max_hours=3: is a training setting, but run folders"),
    ],
)
def test_bad_input_is_one_sentence_and_nothing_is_written(tmp_path, arguments, sentence):
    done = compare(tmp_path, *arguments)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert sentence in done.stderr
    assert list(tmp_path.iterdir()) == []
