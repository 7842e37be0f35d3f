"""The rule of trust in whole runs: one's own go on, and a stranger's stay data by every way in."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from gspo_cli.config import trust
from gspo_cli.errors import UserError
from gspo_cli.sources import find_source
from tests.support.command_line import call, gspo_train
from tests.support.whole_runs import SMALL

PLAIN = [text for text in SMALL if not text.startswith("reward=")]
QUICK = [*PLAIN, "training.num_outer_iterations=1"]
LONGER = "training.num_outer_iterations=2"


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    """A folder to stand in, of a user who trusts nothing yet."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.delenv(trust.INHERITED, raising=False)
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    done = gspo_train(*QUICK, f"hydra.run.dir={folder}")
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def theirs(whole, home):
    """`theirs(reward=...)`: a copy of a run whose settings a stranger has changed."""

    def made(**changes) -> Path:
        shutil.copytree(whole, home / "theirs", symlinks=True)
        for name in ("config.yaml", ".config.yaml"):
            node = OmegaConf.load(home / "theirs" / name)
            for key, value in changes.items():
                OmegaConf.update(node, key.replace("__", "."), value, force_add=True)
            OmegaConf.save(node, home / "theirs" / name)
        return home / "theirs"

    return made


@pytest.mark.long
def test_an_own_run_of_a_model_with_code_resumes_where_that_is_typed(folders, home):
    model = ["model=small", f"model.name={folders['qwen3']}", "model.trust_remote_code=true"]
    quick = [text for text in QUICK if not text.startswith("model.")]
    done = gspo_train(*quick, *model, "hydra.run.dir=run", cwd=home)
    assert done.returncode == 0, done.stderr
    done = gspo_train("resume=run", LONGER, cwd=home)
    assert (done.returncode, "type model.trust_remote_code=true" in done.stderr) == (2, True)
    done = gspo_train("resume=run", LONGER, "model.trust_remote_code=true", cwd=home)
    assert done.returncode == 0, done.stderr
    assert call("gspo-export", "run", "out", cwd=home).returncode == 2
    done = call("gspo-export", "run", "out", "--trust-remote-code", cwd=home)
    assert done.returncode == 0, done.stderr


def test_what_an_own_command_line_allows_is_handed_down_and_not_remembered(home):
    values = {"model": {"trust_remote_code": True, "name": "gspo_cli"}}
    trust.trust_own(values, trust_schema())
    trust.require_trust(values, trust_schema(), home)  # as a job that this process starts does
    os.environ.pop(trust.INHERITED)
    with pytest.raises(UserError, match="is not done unasked"):
        trust.require_trust(values, trust_schema(), home)


def trust_schema():
    from gspo_cli.config.schema import RunConfig

    return RunConfig


def test_links_that_a_tracker_makes_in_its_own_folder_stop_nothing(whole, home):
    shutil.copytree(whole, home / "run", symlinks=True)
    logs = home / "run" / "wandb" / "offline-run-1" / "logs"
    logs.mkdir(parents=True)
    (logs / "debug-core.log").symlink_to(home / "elsewhere.log")
    done = gspo_train("resume=run", LONGER, cwd=home)
    assert done.returncode == 0, done.stderr


def test_a_part_that_is_typed_does_not_cover_the_rest(theirs, home):
    settings = {"url": "http://127.0.0.1:9/v1", "model": "x", "api_key_variable": "AWS_SECRET"}
    folder = theirs(reward="gspo_cli.rewards.judge.LLMJudge", reward_settings=settings)
    done = call("gspo-eval", str(folder), "reward_settings.temperature=0", cwd=home)
    assert done.returncode == 2
    assert "is passed to code" in done.stderr
    assert "add --trust" in done.stderr
    assert "ConnectError" not in done.stderr


@pytest.mark.parametrize("base", ["outside", "stranger/evil", "itself"])
def test_a_second_stage_does_not_follow_the_base_of_a_strangers_run(load, folders, home, base):
    run = home / "theirs"
    load("qwen3", use_lora=True).save(run / "checkpoints" / "iteration-000001")
    (run / "checkpoints" / "last").symlink_to("iteration-000001")
    value = {"outside": str(folders["qwen3"]), "itself": str(run / "checkpoints" / "last")}.get(base, base)
    OmegaConf.save({"model": {"name": "x/y", "base": value}}, run / "config.yaml")
    for name in (run, run / "checkpoints" / "last"):
        with pytest.raises(UserError, match=r"its model\.(name|base)=.* names a model outside of the folder"):
            find_source(str(name))


def test_a_link_of_a_strangers_run_is_not_followed_by_a_second_stage(theirs, home, folders):
    folder = theirs()
    (folder / "checkpoints" / "last").unlink()
    (folder / "checkpoints" / "last").symlink_to(folders["qwen3"])
    with pytest.raises(UserError, match="is a link that leads out of the folder"):
        find_source(str(folder), checkpoint="last")


PIPES = [
    *("metrics.jsonl", "evals.jsonl", "config.yaml", ".config.yaml", "summary.json"),
    "checkpoints/last/manifest.json",
]


@pytest.mark.long
@pytest.mark.parametrize("place", PIPES)
@pytest.mark.parametrize("command", ["gspo-doctor", "gspo-eval", "gspo-train"])
def test_a_pipe_in_place_of_a_file_is_not_waited_for(theirs, home, place, command):
    path = theirs() / place
    path.unlink()
    os.mkfifo(path)
    arguments = {"gspo-train": ["resume=theirs", LONGER]}.get(command, ["theirs"])
    done = call(command, *arguments, cwd=home)  # returns
    assert done.returncode == 0 or (done.stderr.count("\n") == 1 and "Traceback" not in done.stderr)


def test_a_log_that_leads_elsewhere_is_not_read(theirs, home):
    (home / "secret").write_text('{"iteration": 1, "reward": 42.0}\n')
    path = theirs() / "metrics.jsonl"
    path.unlink()
    path.symlink_to(home / "secret")
    done = call("gspo-doctor", "theirs", cwd=home)
    assert (done.returncode, "is a link that leads out of its folder" in done.stderr) == (2, True)


@pytest.mark.long
def test_code_that_is_elsewhere_is_named_and_not_questioned(whole, home):
    (home / "mine").mkdir()
    (home / "mine" / "my_reward_elsewhere.py").write_text(
        "from gspo_cli.rewards.base import RewardFunction\n"
        "from gspo_cli.types import RewardResult\n"
        "class X(RewardFunction):\n"
        "    def compute_reward(self, trajectory, turn, context):\n"
        "        return RewardResult(1.0)\n"
    )
    done = gspo_train(*QUICK, "reward=my_reward_elsewhere.X", "hydra.run.dir=run", cwd=home / "mine")
    assert done.returncode == 0, done.stderr
    done = gspo_train(f"resume={home / 'mine' / 'run'}", LONGER, cwd=home)
    assert "its reward=my_reward_elsewhere.X is not found from here; go to the folder" in done.stderr
    assert gspo_train("resume=run", LONGER, cwd=home / "mine").returncode == 0


def test_settings_with_keys_of_all_kinds_have_a_digest():
    one = trust.Marked("reward_settings", {1: "a", "b": ["c", None]}, "settings")
    other = trust.Marked("reward_settings", {"b": ["c", None], 1: "a"}, "settings")
    assert trust.digest_of([one]) == trust.digest_of([other])


NO_TARGET = [{"_target_": value} for value in (5, None, {"a": 1}, [1])]


@pytest.mark.parametrize("task", [5, None, "text", [1], {}, *NO_TARGET], ids=str)
@pytest.mark.parametrize("more", [[], ["--trust"]])
def test_a_task_that_is_none_is_one_sentence(whole, home, task, more):
    shutil.copytree(whole, home / "theirs", symlinks=True)
    for name in ("config.yaml", ".config.yaml"):
        node = OmegaConf.load(home / "theirs" / name)
        node.task = task
        OmegaConf.save(node, home / "theirs" / name)
    commands = [["gspo-eval", "theirs"], ["gspo-train", "resume=theirs", LONGER], ["gspo-chat", "theirs"]]
    for command in commands:
        done = call(*command, *more, cwd=home)
        assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
        assert "task" in done.stderr
