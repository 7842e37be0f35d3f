"""What gspo-compare believes of a design beside stored runs: what their own folders say, too."""

from __future__ import annotations

import json
import re

import pytest

from gspo_cli.commands.compare import compare_settings
from gspo_cli.compare.across import compare_subjects
from gspo_cli.compare.comparison import compare
from gspo_cli.compare.packing import pack, require_packable, unpacked
from gspo_cli.compare.runs import find_runs
from gspo_cli.compare.sequential import Added
from gspo_cli.compare.until_settled import looked_at
from gspo_cli.config.compare_schema import CompareConfig
from gspo_cli.errors import UserError
from tests.support.stored_runs import stored_run, write_run

ARMS, SEEDS = ("gspo", "grpo"), (0, 1, 2)
SETTINGS = {"level": 0.95, "smallest": 0.05, "baseline": None, "parallel": 1}


@pytest.fixture
def folder(tmp_path):
    """A comparison's folder: six runs."""
    for seed in SEEDS:
        for name in ARMS:
            write_run(tmp_path / "runs" / f"{name}-s{seed}", name, seed, 20)
    return tmp_path


def write_design(folder, name="design-0123abcd.json", **changes):
    runs = [f"{arm}-s{seed}" for seed in SEEDS for arm in ARMS]
    content = {"seeds": SEEDS, "looks": [2, 3], "runs": runs, **SETTINGS, **changes}
    (folder / name).write_text(json.dumps(content))


def looked(folder):
    return looked_at(find_runs([folder])[0], CompareConfig())


@pytest.mark.parametrize("seeds", [[0, 1, 99], [1, 0, 2]])
@pytest.mark.parametrize("name", ["design-0123abcd.json", "design-packed.json"])
def test_a_design_has_the_seeds_of_its_runs(folder, name, seeds):
    write_design(folder, name)
    assert looked(folder).added.seeds == list(SEEDS)
    write_design(folder, name, seeds=seeds)
    wrong = f"{folder / name}: has seed {seeds[0] or 99} for "
    with pytest.raises(UserError, match=re.escape(wrong) + ".*, which is not its seed; restore the file"):
        looked(folder)


@pytest.mark.parametrize("name", ["design-tokens.json", "design-0123ABCD.json", "design-.json"])
def test_a_file_whose_name_is_not_that_of_a_design_stops_no_report(folder, name):
    (folder / name).write_text('{"color": "red"}')
    assert looked(folder).design is None
    (folder / "design-0123abcd.json").write_text('{"color": "red"}')
    with pytest.raises(UserError, match="restore the file"):
        looked(folder)


def test_more_seeds_are_counted_from_the_looks_that_were_taken():
    runs = [stored_run(name, seed, 20) for name in ARMS for seed in SEEDS]
    added = (Added([*SEEDS, 9], looks) for looks in ([2, 3], [2, 3, 4]))
    taken, more = (compare(runs, [], CompareConfig(), each) for each in added)
    assert more.more == taken.more is not None


def test_a_setting_that_is_typed_is_that_of_the_report_the_default_too(folder):
    write_design(folder, level=0.5, smallest=0.2, baseline="gspo")
    typed = ["compare.level=0.95", "compare.smallest=0.05", "compare.baseline=grpo"]
    runs = find_runs([folder])[0]
    for given, level, smallest, baseline in ((typed, 0.95, 0.05, "grpo"), ([], 0.5, 0.2, "gspo")):
        found = compare_subjects(runs, [], compare_settings(given), looked_at)
        assert (found.level, found.design.smallest, found.baseline) == (level, smallest, baseline)
        assert f"compare.level={level:g} compare.smallest={smallest:g}" in found.reproduce[0]
        assert ("The looks were taken at level 0.5 (" in " ".join(found.cautions)) == (given == [])
        assert looked_at(runs, compare_settings(given)).design.settings["level"] == level


def test_looks_at_another_level_are_packed_with_it(folder, monkeypatch):
    monkeypatch.chdir(folder)
    write_design(folder, level=0.5)
    runs = find_runs([folder])[0]
    require_packable(runs, CompareConfig())
    found = compare_subjects(runs, [], CompareConfig(), looked_at)
    packed = unpacked(pack(runs, found, CompareConfig(), folder).path)
    assert compare_subjects(find_runs([packed])[0], [], CompareConfig(), looked_at).level == 0.5
