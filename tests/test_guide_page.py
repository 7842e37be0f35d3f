"""docs/guide.md: its scripts run, and its tables name what there is."""

from __future__ import annotations

import re

import pytest

import gspo_cli
from gspo_cli.api.carried_over import CARRIED, FIXED
from gspo_cli.training.watch import HOOKS
from tests.support.api_runs import OVERRIDES
from tests.support.command_line import run_script
from tests.test_readme import PAGES, python

pytestmark = pytest.mark.long

PAGE = PAGES["docs/guide.md"]
SMALL = f"generations_per_iteration=16, num_generations=4, max_completion_length=8, overrides={OVERRIDES}"


def names_in(heading):
    """What the first column of the table below a heading names."""
    section = PAGE.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    rows = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    return [name for row in rows for name in re.findall(r"`(\w+)`", row)]


def test_the_script_with_a_callback_ends_early(tmp_path):
    script = python("class GoodEnough", "docs/guide.md").replace('["score"] < 0.7', '["score"] > 1')
    done = run_script(script.replace("num_outer_iterations=20", f"num_outer_iterations=2, {SMALL}"), tmp_path)
    assert done.returncode == 0, done.stderr
    assert re.search(r"\nstopped_early 0 outputs/tutoring-tiny-gspo/\S+\n$", done.stdout)


def test_the_script_with_several_algorithms_trains_them_all(tmp_path):
    script = python("orchestrator.compare", "docs/guide.md")
    done = run_script(script.replace("num_iterations=20", f"num_iterations=1, {SMALL}"), tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Completed 1 of 1 iterations: gspo_token on arithmetic" in done.stdout
    for name in ("gspo", "grpo", "grpo algorithm.learning_rate=3e-4"):
        for seed in (0, 1):
            assert f"\n{name}, seed {seed}: held-out " in done.stdout
    assert len(list(tmp_path.glob("outputs/compare/*/runs/*/summary.json"))) == 6


def test_the_table_of_names_has_all_that_are_taken():
    taken = set(CARRIED) | set(FIXED) | {"gradient_accumulation_steps", "use_gspo_token"}
    assert set(names_in("Names of TRL and the guide")) == taken


def test_the_table_of_callbacks_has_all_methods():
    assert names_in("Callbacks") == list(HOOKS)


@pytest.mark.parametrize(
    "name", [name for name in gspo_cli.__all__ if name.startswith(("create", "train_with"))]
)
def test_every_call_of_the_guide_is_on_its_page(name):
    assert f"`{name}" in PAGE.split("\n## ")[0]
