"""A run folder may come from a stranger: its settings are data until its user says otherwise."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
from omegaconf import OmegaConf

from gspo_cli.config import trust
from gspo_cli.config.compose import CONF_DIR, locate
from gspo_cli.config.marks import marks_of
from gspo_cli.config.schema import RunConfig
from gspo_cli.config.trust import Marked, marked
from gspo_cli.errors import UserError
from gspo_cli.sources import find_source
from tests.support.command_line import call, environment, gspo_train, script
from tests.support.whole_runs import SMALL

PLAIN = [text for text in SMALL if not text.startswith("reward=")]
EVIL = "from pathlib import Path\nPath(__file__).with_name('pwned').write_text('')\n"
REWARD = """
from gspo_cli.rewards.base import RewardFunction
from gspo_cli.types import RewardResult
class X(RewardFunction):
    def __init__(self, **settings): pass
    def compute_reward(self, trajectory, turn, context):
        return RewardResult(1.0)
"""


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    done = gspo_train(*PLAIN, "training.num_outer_iterations=2", f"hydra.run.dir={folder}")
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    """A folder to stand in, with code that a stranger's settings may name, of a user who trusts nothing."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.delenv(trust.INHERITED, raising=False)
    home = tmp_path / "home"
    home.mkdir()
    (home / "evilmod.py").write_text(EVIL + REWARD)
    return home


@pytest.fixture
def stranger(whole, home):
    """`stranger(reward=..., model__name=...)`: a copy of a run whose settings a stranger has changed."""

    def made(**changes: Any) -> Path:
        folder = home / "theirs"
        shutil.copytree(whole, folder, symlinks=True)
        node = OmegaConf.load(folder / "config.yaml")
        for key, value in changes.items():
            OmegaConf.update(node, key.replace("__", "."), value, force_add=True)
        for name in ("config.yaml", ".config.yaml"):
            OmegaConf.save(node, folder / name)
        return folder

    return made


def texts_of(cls: Any) -> list[str]:
    """Fields that hold text, or anything."""
    hints = get_type_hints(cls)

    def has_text(kind: Any) -> bool:
        return kind in (str, Any) or any(has_text(inner) for inner in get_args(kind))

    return [f.name for f in fields(cls) if not is_dataclass(hints[f.name]) and has_text(hints[f.name])]


def dataclasses_in(cls: Any) -> list[Any]:
    inner = [kind for kind in get_type_hints(cls).values() if is_dataclass(kind)]
    return [cls, *(found for kind in inner for found in dataclasses_in(kind))]


TASKS = [OmegaConf.load(path)["_target_"] for path in sorted((CONF_DIR / "task").glob("*.yaml"))]
SCHEMAS = [*dataclasses_in(RunConfig), *(locate(target, "task._target_") for target in TASKS)]


@pytest.mark.parametrize("cls", SCHEMAS, ids=lambda cls: cls.__name__)
def test_every_text_field_has_a_mark(cls):
    unmarked = [name for name in texts_of(cls) if name not in marks_of(cls) and name != "task"]
    assert unmarked == []
    assert set(marks_of(cls)) <= {f.name for f in fields(cls)}


STRANGE = {
    "reward": {"reward": "evilmod.X"},
    "reward_settings": {"reward": "gspo_cli.rewards.judge.JudgeReward", "reward_settings": {"url": "http://x"}},
    "task._target_": {"task___target_": "evilmod.T"},
    "model.name": {"model__name": "/etc"},
    "algorithm.pairs": {"algorithm__pairs": "/etc/passwd"},
    "model.cold_start.demonstrations": {"model__cold_start__demonstrations": "/etc/passwd"},
    "task.verifier": {"task": {"_target_": "gspo_cli.tasks.jsonl.JsonlTask", "name": "j", "license": "",
                               "source": "", "path": "x.jsonl", "verifier": "python:evilmod.f"}},
}  # fmt: skip


@pytest.mark.parametrize("key", STRANGE)
@pytest.mark.parametrize("command", ["gspo-eval", "gspo-chat", "gspo-serve", "gspo-train"])
def test_what_a_strangers_settings_name_is_not_honored_unasked(stranger, home, key, command):
    folder = stranger(**STRANGE[key])
    arguments = {
        "gspo-eval": [str(folder)],
        "gspo-chat": [str(folder), "--watch", "1"],
        "gspo-serve": [str(folder), "--port", "0"],
        "gspo-train": [f"resume={folder}", "training.num_outer_iterations=3"],
    }[command]
    before = sorted(path for path in folder.rglob("*"))
    done = call(command, *arguments, cwd=home)
    assert done.returncode == 2
    assert f"its {key}=" in done.stderr or "its task.path=" in done.stderr
    assert "; if you know where the folder comes from, add --trust" in done.stderr
    assert not (home / "pwned").exists()
    assert sorted(path for path in folder.rglob("*")) == before


def test_code_of_a_model_is_typed_each_time(stranger, home):
    folder = stranger(model__trust_remote_code=True)
    for more in ([], ["--trust"], ["--trust"]):
        done = call("gspo-eval", str(folder), *more, cwd=home)
        assert (done.returncode, "type model.trust_remote_code=true" in done.stderr) == (2, True)
    assert call("gspo-eval", str(folder), "model.trust_remote_code=false", cwd=home).returncode == 0


def test_what_is_typed_or_trusted_once_is_honored_from_then_on(stranger, home):
    folder = stranger(reward="evilmod.X")
    assert call("gspo-eval", str(folder), cwd=home).returncode == 2
    assert call("gspo-eval", str(folder), "reward=null", cwd=home).returncode == 0
    assert not (home / "pwned").exists()
    done = call("gspo-eval", str(folder), "--trust", cwd=home)
    assert done.returncode == 0, done.stderr
    assert (home / "pwned").exists()
    os.environ.pop(trust.INHERITED, None)
    assert call("gspo-eval", str(folder), cwd=home).returncode == 0, "it was remembered"
    other = home / "elsewhere"
    other.mkdir()
    (other / "evilmod.py").write_text(EVIL + REWARD)
    assert call("gspo-eval", str(folder), cwd=other).returncode == 2, "the name means another file there"
    assert not (other / "pwned").exists()


@pytest.mark.long
def test_own_runs_resume_and_are_evaluated_without_a_question(home):
    folder = home / "mine"
    own = [*PLAIN, "reward=evilmod.X", f"hydra.run.dir={folder}", "training.num_outer_iterations=1"]
    assert gspo_train(*own, cwd=home).returncode == 0
    os.environ.pop(trust.INHERITED, None)
    assert gspo_train(f"resume={folder}", "training.num_outer_iterations=2", cwd=home).returncode == 0
    assert call("gspo-eval", str(folder), cwd=home).returncode == 0


@pytest.mark.long
def test_a_file_of_the_folder_never_takes_the_place_of_a_library(stranger, home):
    folder = stranger()
    for name in ("wandb", "deepspeed", "torch", "rich", "evaluate"):
        (home / f"{name}.py").write_text(EVIL)
    for settings in (
        ["training.num_outer_iterations=3"],
        ["training.num_outer_iterations=4", "hardware.zero_stage=1", "hardware.processes=2"],
    ):
        command = script("gspo-train", f"resume={folder}", *settings)
        command.insert(1, "-P")  # as an installed command starts
        done = subprocess.run(command, cwd=home, env=environment(), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert not (home / "pwned").exists()


@pytest.mark.parametrize("text", ["${oc.env:HOME}", "${seed}", "a${oc.env:AWS_SECRET_ACCESS_KEY}b"])
def test_a_stored_file_has_no_references(stranger, home, text):
    folder = stranger(task__system_prompt=text)
    for command in (
        ["gspo-eval", str(folder)],
        ["gspo-train", f"resume={folder}"],
        ["gspo-doctor", str(folder)],
    ):
        done = call(*command, cwd=home)
        assert done.returncode == 2
        assert f"task.system_prompt is the reference {text}" in done.stderr
        assert os.environ["HOME"] not in done.stderr.replace(str(folder), "")


def test_reading_logs_imports_nothing_and_needs_no_trust(stranger, home):
    folder = stranger(reward="evilmod.X", task___target_="evilmod.T")
    done = call("gspo-doctor", str(folder), cwd=home)
    assert done.returncode == 0, done.stderr
    call("gspo-compare", str(folder), cwd=home)
    assert not (home / "pwned").exists()


def test_a_second_stage_does_not_follow_a_strangers_model_name(stranger, home):
    folder = stranger(model__name="/etc")
    shutil.rmtree(folder / "initial_model")
    with pytest.raises(UserError, match=r"its model\.name=/etc names a model outside of the folder"):
        find_source(str(folder), checkpoint="initial")


@pytest.mark.parametrize(
    "typed", ["reward_settings={}", "reward_settings={model: y}", "reward_settings.model=y"]
)
def test_a_part_of_a_mapping_that_is_typed_does_not_release_the_rest(stranger, home, typed):
    theirs = {"url": "http://127.0.0.1:9", "model": "x", "api_key_variable": "MYSECRET"}
    folder = stranger(reward="gspo_cli.rewards.judge.LLMJudge", reward_settings=theirs)
    for more in ([], ["reward_settings=null"]):
        done = call("gspo-eval", str(folder), *more, typed, cwd=home)
        assert (done.returncode, "its reward_settings=" in done.stderr) == (2, True)


def test_settings_in_a_typed_section_are_typed(stranger, home):
    changes = {"model": {"name": "m", "base": "b", "label": "x"}, "reward": "evilmod.X"}

    def refused(*typed: str) -> bool:
        try:
            trust.require_trust(changes, RunConfig, home, typed)
        except UserError as error:
            return "model." in str(error) or "reward" in str(error)
        return False

    assert not refused("model={name: mine, base: mine}", "reward=null")
    assert refused("model={name: mine}", "reward=null")
    assert refused("model={}", "reward=null")


@pytest.mark.parametrize("value", [True, 1, "true", "yes", "on", "True"])
def test_code_of_a_model_is_not_run_however_true_is_written(stranger, home, value):
    done = call("gspo-eval", str(stranger(model__trust_remote_code=value)), cwd=home)
    assert (done.returncode, "type model.trust_remote_code=true" in done.stderr) == (2, True)


@pytest.mark.parametrize("name", [".config.yaml", "config.yaml"])
def test_both_copies_of_the_settings_are_under_the_rule(stranger, home, name):
    folder = stranger()
    node = OmegaConf.load(folder / name)
    node.reward = "evilmod.X"
    OmegaConf.save(node, folder / name)
    done = call("gspo-eval", str(folder), cwd=home)
    assert (done.returncode, "its reward=evilmod.X" in done.stderr) == (2, True)
    assert not (home / "pwned").exists()


LINKS = {
    "a log": ("metrics.jsonl", "victim"),
    "the summary": ("summary.json", "victim"),
    "a checkpoint": ("checkpoints/last", "elsewhere"),
    "a file of a checkpoint": ("initial_model/config.json", "victim"),
    "all checkpoints": ("checkpoints", "elsewhere"),
}


@pytest.mark.parametrize("name", LINKS)
@pytest.mark.parametrize("command", ["gspo-train", "gspo-eval", "gspo-export"])
def test_a_link_that_leads_out_of_a_run_is_not_followed_unasked(stranger, home, name, command):
    folder = stranger()
    (home / "elsewhere").mkdir()
    (home / "victim").write_text("precious")
    place, target = LINKS[name]
    path = folder / place
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
    path.symlink_to(home / target)
    arguments = {
        "gspo-train": [f"resume={folder}", "training.num_outer_iterations=3"],
        "gspo-eval": [str(folder)],
        "gspo-export": [str(folder), str(home / "out")],
    }[command]
    done = call(command, *arguments, cwd=home)
    assert done.returncode == 2
    assert f"{path}: is a link that leads out of the folder, to {home / target}" in done.stderr
    assert "add --trust" in done.stderr
    assert (home / "victim").read_text() == "precious"
    assert list((home / "elsewhere").iterdir()) == []


def test_a_link_that_was_trusted_once_is_followed_from_then_on(stranger, home):
    folder = stranger()
    shutil.move(folder / "checkpoints", home / "large_disk")
    (folder / "checkpoints").symlink_to(home / "large_disk")
    assert call("gspo-eval", str(folder), cwd=home).returncode == 2
    assert call("gspo-eval", str(folder), "--trust", cwd=home).returncode == 0
    assert call("gspo-eval", str(folder), cwd=home).returncode == 0


def test_yaml_that_unfolds_without_end_is_refused(stranger, home):
    folder = stranger()
    text = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 60))
    (folder / "config.yaml").write_text(text)
    done = call("gspo-doctor", str(folder), cwd=home)
    assert (done.returncode, "refers to a part of itself (*a0)" in done.stderr) == (2, True)


@pytest.fixture
def adapter(load, folders, home):
    """An adapter folder that a stranger sent, over a model that is on this machine."""
    load("qwen3", use_lora=True).save(home / "adapter")
    return home / "adapter"


def test_the_base_of_a_strangers_adapter_is_not_opened_unasked(adapter, folders, home):
    base = str(folders["qwen3"])
    given = ["task=arithmetic", "evaluation.problems=2", "evaluation.samples=1"]
    done = call("gspo-eval", str(adapter), *given, cwd=home)
    assert done.returncode == 2
    assert f"its base_model_name_or_path={base} names a model outside of the folder" in done.stderr
    assert f"add --trust, or type model.base={base}" in done.stderr
    for more in ([f"model.base={base}"], ["--trust"], []):  # the last one was trusted before
        done = call("gspo-eval", str(adapter), *given, *more, cwd=home)
        assert done.returncode == 0, done.stderr


@pytest.mark.long
def test_the_adapter_of_an_own_run_is_opened_without_a_question(folders, home, tmp_path):
    trust.trust_base(str(folders["qwen3"]))
    model = ["model=small", f"model.name={folders['qwen3']}", "hardware.threads=1"]
    quick = [text for text in PLAIN if not text.startswith("model.")]
    done = gspo_train(*quick, *model, "training.num_outer_iterations=1", "hydra.run.dir=run", cwd=home)
    assert done.returncode == 0, done.stderr
    shutil.copytree((home / "run" / "checkpoints" / "last").resolve(), home / "mine")
    shutil.rmtree(home / "run")
    given = ["task=arithmetic", "evaluation.problems=2", "evaluation.samples=1"]
    done = call("gspo-eval", "mine", *given, cwd=home)
    assert done.returncode == 0, done.stderr


def test_an_edit_by_hand_is_named_and_counts_only_when_it_is_typed(whole, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(whole, folder, symlinks=True)
    node = OmegaConf.load(folder / "config.yaml")
    node.evaluation.problems, node.algorithm.learning_rate = 2, 0.5
    OmegaConf.save(node, folder / "config.yaml")
    done = gspo_train(f"resume={folder}", "training.num_outer_iterations=3")
    assert done.returncode == 0, done.stderr
    said = f"note: {folder}/config.yaml: evaluation.problems was edited from 4 to 2, which does not count; "
    assert said + "type evaluation.problems=2 to change it\n" in done.stdout
    assert "algorithm.learning_rate was edited from " in done.stdout
    kept = OmegaConf.load(folder / "config.yaml")
    assert (kept.evaluation.problems, kept.training.num_outer_iterations) == (4, 3)
    assert kept.algorithm.learning_rate != 0.5
    node = OmegaConf.merge(kept, {"evaluation": {"problems": 2}})
    OmegaConf.save(node, folder / "config.yaml")
    done = call("gspo-eval", str(folder), "evaluation.problems=2")
    assert (done.returncode, "was edited" in done.stderr) == (0, False)


def test_the_fetched_model_and_parts_of_ours_need_no_trust(home, monkeypatch):
    ours = {"name": str(Path(trust.cache_folder("models")) / "x"), "base": None}
    assert marked({"model": ours, "reward": "gspo_cli.rewards.judge.JudgeReward"}, RunConfig) == []
    outside = {"name": str(Path(trust.cache_folder("models")) / ".." / ".." / "x")}
    assert [item.key for item in marked({"model": outside}, RunConfig)] == ["model.name"]
    found = marked({"model": {"name": "hub/id"}, "reward": "mine.X"}, RunConfig)
    assert found == [Marked("model.name", "hub/id", "model"), Marked("reward", "mine.X", "code")]
    assert sys.path.count(str(home)) <= 1
