"""A sweep folder may come from a stranger: its command chooses options and sets plain settings only."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gspo_cli.config import trust
from gspo_cli.config.compose import CONF_DIR
from gspo_cli.config.replayed import is_replayed
from gspo_cli.config.schema import RunConfig
from tests.support.command_line import gspo_train

EVIL = "from pathlib import Path\nPath(__file__).with_name('pwned').write_text('')\nclass X: pass\n"


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    """A folder to stand in, of a user who trusts nothing, with code and options that a stranger may name."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.delenv(trust.INHERITED, raising=False)
    home = tmp_path / "home"
    home.mkdir()
    (home / "evilmod.py").write_text(EVIL)
    (home / "evil.yaml").write_text("# @package _global_\nreward: evilmod.X\n")
    return home


@pytest.mark.parametrize(
    "argument",
    [
        "hydra.callbacks.x._target_=evilmod.X",
        "reward=evilmod.X",
        "+reward_settings={url: http://127.0.0.1:9}",
        "task.path=/etc/passwd",
        "model.name=/etc",
        "-cd=/tmp",
        "hydra.searchpath=[file:///tmp]",
        "hydra/launcher=joblib",
    ],
)
def test_a_strangers_sweep_replays_options_and_plain_settings_only(home, argument):
    sweep = home / "sweep"
    sweep.mkdir()
    (sweep / "sweep.json").write_text(json.dumps({"arguments": ["-m", "seed=0,1", argument]}))
    done = gspo_train("-m", f"resume={sweep}", cwd=home)
    assert done.returncode == 2
    assert f"its command has {argument}, which is more than an option or a plain setting" in done.stderr
    assert not (home / "pwned").exists()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"arguments": "x"}', '{"arguments": [1]}'])
def test_a_damaged_sweep_is_one_sentence(home, text):
    sweep = home / "sweep"
    sweep.mkdir()
    (sweep / "sweep.json").write_text(text)
    done = gspo_train("-m", f"resume={sweep}", cwd=home)
    assert (done.returncode, done.stderr.count("\n"), "sweep.json: " in done.stderr) == (2, 1, True)


GROUPS = sorted(path.name for path in CONF_DIR.iterdir() if path.is_dir())


@pytest.mark.parametrize("group", GROUPS)
def test_an_option_is_a_name_that_conf_has(group, home):
    names = sorted(path.stem for path in (CONF_DIR / group).glob("*.yaml"))
    assert is_replayed(f"{group}={','.join(names)}", RunConfig)
    up = "../" * len((CONF_DIR / group).parts)
    paths = (
        f"{up}{home}/evil",
        f"{home}/evil",
        f"../{group}/{names[0]}",
        "nothing",
        "schema",
        "[a]",
        "glob(*)",
    )
    for text in (
        *paths,
        f"{names[0]},{up}{home}/evil",
        f"'{up}{home}/evil'",
        f"choice({names[0]},{home}/evil)",
    ):
        for plus in ("", "+", "++", "~"):
            assert not is_replayed(f"{plus}{group}={text}", RunConfig), text
    assert not is_replayed(f"{group}@hydra={names[0]}", RunConfig)


PLAIN = [
    "seed=0,1",
    "seed=range(0,3)",
    "algorithm.learning_rate=tag(log, interval(1e-5, 1e-3))",
    "model.lora_target_modules=[q_proj,v_proj]",
    "+training.num_outer_iterations=3",
    "logging.run_name='two words'",
    "hydra.sweeper.n_trials=3",
    "hydra.launcher.n_jobs=-1",
    "hydra.launcher.partition=gpu",
    "hydra.sweep.dir=anywhere",
]
STRANGE = [
    "model.cold_start={demonstrations: /etc/passwd, steps: 2}",
    "model={name: /etc}",
    "model.shape={layers: 1}",
    "seed=choice({a: 1},2)",
    "model.lora_target_modules=[{a: b}]",
    "model.trust_remote_code=true",
    "logging.run_name=${oc.env:HOME}",
    "logging.run_name='${oc.env:HOME}'",
    "logging.run_name=$\\{oc.env:HOME\\}",
    "seed=${oc.env:HOME},1",
    "hydra.sweeper.storage=sqlite:////tmp/x.db",
    "hydra.sweeper.custom_search_space=evilmod.X",
    "hydra.sweeper.sampler={_target_: evilmod.X}",
    "hydra.sweeper.sampler._target_=evilmod.X",
    "hydra.sweeper.params={a: 1}",
    "+hydra.sweeper.params.reward=evilmod.X",
    "hydra.sweeper._target_=evilmod.X",
    "hydra.sweeper={_target_: evilmod.X}",
    "hydra.launcher.parallel={_target_: evilmod.X}",
    "hydra.launcher.parallel=[1]",
    "hydra.launcher.partition='gpu\n touch x'",
    "hydra.sweep={dir: x}",
    "++hydra.sweep.dir=x",
    "hydra.sweep.subdir=../x",
    "~model.name",
    "resume=x",
    "unknown.key=1",
    "[" * 5000,
    "",
]


@pytest.mark.parametrize("argument", PLAIN)
def test_plain_settings_are_replayed(argument):
    assert is_replayed(argument, RunConfig)


@pytest.mark.parametrize("argument", STRANGE)
def test_nothing_else_is_replayed(argument):
    assert not is_replayed(argument, RunConfig)


def test_an_option_that_is_a_path_is_not_read(home):
    sweep = home / "sweep"
    sweep.mkdir()
    way = "../" * len((CONF_DIR / "experiment").parts) + str(home / "evil").lstrip("/")
    command = ["-m", "model=tiny", "task=arithmetic", f"experiment={way}"]
    (sweep / "sweep.json").write_text(json.dumps({"arguments": command}))
    done = gspo_train("-m", f"resume={sweep}", cwd=home)
    assert (done.returncode, f"its command has experiment={way}" in done.stderr) == (2, True)
    assert not (home / "pwned").exists()
