"""The examples of the README, and of the pages in docs/ that took its sections, run unchanged."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from gspo_cli.config.compose import CONF_DIR, build_config, composed
from gspo_cli.errors import UserError
from tests.support.command_line import gspo_train, run_script

pytestmark = pytest.mark.long

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = {"README.md": README} | {
    f"docs/{path.name}": path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").glob("*.md"))
}
QUICK = [
    "experiment=smoke",
    "model.cold_start.steps=2",
    "model.cold_start.stop_score=null",
    "model.cold_start.cache=false",
    "hardware.threads=1",
]
SMALL = [
    "model.shape.hidden_size=32",
    "model.shape.layers=1",
    "evaluation.problems=4",
    "rollout.max_completion_length=8",
]


def blocks(language: str, page: str = "README.md") -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGES[page], flags=re.DOTALL)


def python(part: str, page: str = "README.md") -> str:
    """The only block of Python on `page` that holds `part`."""
    [block] = [block for block in blocks("python", page) if part in block]
    return block


def test_the_task_of_the_readme_trains(tmp_path):
    (tmp_path / "dice.py").write_text(python("class Dice"))
    (tmp_path / "my_conf" / "task").mkdir(parents=True)
    (tmp_path / "my_conf" / "task" / "dice.yaml").write_text(blocks("yaml")[0])
    done = gspo_train("-cd", "my_conf", "task=dice", *QUICK, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "gspo on dice with tiny" in done.stdout


def test_the_script_of_the_python_page_trains_and_answers(tmp_path):
    quick = [*SMALL, "hardware.threads=1", *(text for text in QUICK if text.startswith("model."))]
    script = python("train_with_gspo", "docs/python.md").replace(
        "num_outer_iterations=20", f"num_outer_iterations=1, generations_per_iteration=16, overrides={quick}"
    )
    assert "overrides" in script
    few = "problems=60, heldout=4, demonstrations_count=50"
    script = script.replace('CONFIGS["customer_service"])', f'CONFIGS["customer_service"], {few})')
    assert few in script
    done = run_script(script, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Completed 1 of 1 iterations: gspo on customer_service" in done.stdout
    assert list((tmp_path / "outputs").glob("customer_service-tiny-gspo/*/summary.json"))


def test_the_error_of_the_pages_is_the_one_that_is_printed(tmp_path):
    shown = {block for page in PAGES for block in blocks("console", page) if block.startswith("$ ")}
    [(line, message)] = [block.strip().split("\n") for block in shown]
    done = gspo_train(*line.removeprefix("$ gspo-train ").split(), cwd=tmp_path)
    assert (done.returncode, done.stderr.strip()) == (2, message)


@pytest.mark.parametrize(
    "group", ["model", "algorithm", "task", "hardware", "rollout", "logging", "experiment", "sweep"]
)
def test_the_table_of_groups_lists_every_option(group):
    row = next(line for line in README.splitlines() if line.startswith(f"| `{group}`"))
    options = set(re.findall(r"`(\w+)`", row.split("|")[2]))
    assert options == {path.stem for path in (CONF_DIR / group).glob("*.yaml")}


def test_a_sweep_makes_one_run_folder_each(tmp_path):
    few = ["task.problems=60", "task.heldout=4", "task.demonstrations_count=50", *SMALL]
    done = gspo_train("-m", "algorithm=gspo,grpo", "hydra.sweep.dir=sweep", *QUICK, *few, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = sorted(path.name for path in (tmp_path / "sweep").iterdir() if path.is_dir())
    assert found == ["0-customer_service-tiny-gspo-s0", "1-customer_service-tiny-grpo-s0"]
    assert all((tmp_path / "sweep" / name / "summary.json").exists() for name in found)


def overrides_of(line: str) -> list[str] | None:
    """The overrides of a `gspo-train` line, the first value of each that is swept; None where the line needs
    files or takes none."""
    line = re.sub(r"model.name=<[^>]*>", "model.name=a/b", line)
    words = shlex.split(line, comments=True)[1:]
    if not words or "<" in line or words[0] in ("--help", "-cd") or any("-cd" in word for word in words):
        return None
    swept = words[0] == "-m"
    return [word.split(",")[0] if swept else word for word in words if word != "-m"]


def test_every_command_of_the_pages_composes():
    found = {
        (page, line): overrides
        for page in PAGES
        for block in blocks("console", page)
        for line in block.splitlines()
        if line.startswith("gspo-train ") and (overrides := overrides_of(line))
    }
    assert len(found) >= 15
    for (page, line), overrides in found.items():
        try:
            build_config(composed([o for o in overrides if not o.startswith(("hydra.", "sweep="))]))
        except UserError as error:
            raise AssertionError(f"{page}: {line}") from error


def test_the_readme_is_short():
    assert len(README.split()) <= 1500
