"""task=verifiers without the package: what is said of its absence, and which settings need trust."""

from __future__ import annotations

import pickle
import sys

import pytest

from gspo_cli.agents.verifiers_task import VerifiersTask, merged
from gspo_cli.config.schema import RunConfig
from gspo_cli.config.trust import SAYS, digest_of, marked
from gspo_cli.errors import UserError

TARGET = "gspo_cli.agents.verifiers_task.VerifiersTask"


def test_without_the_package_it_says_what_to_install(monkeypatch):
    for name in ("verifiers", "verifiers.v1", "gspo_cli.agents.verifiers_environment"):
        monkeypatch.setitem(sys.modules, name, None)
    task = VerifiersTask("verifiers", "", "", environment_id="mine")
    for use in (task.check_agent, task.train_problems, task.heldout_problems):
        with pytest.raises(UserError, match=r"needs verifiers 0\.4 or later .*pip install 'verifiers>=0\.4'"):
            use()


def test_what_a_strangers_run_would_import_is_marked_even_without_a_dot_in_its_name(tmp_path, monkeypatch):
    given = {"environment_id": "words", "arguments": {"taskset": {"path": "/etc"}}, "heldout_arguments": None}
    found = marked({"task": {"_target_": TARGET, **given}}, RunConfig)
    assert {item.key: item.kind for item in found} == {
        "task.environment_id": "module",
        "task.arguments": "settings",
    }
    assert {item.kind for item in found} <= set(SAYS)
    before = digest_of(found)
    (tmp_path / "words.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert digest_of(found) != before, "another file by this name is other code"


@pytest.mark.parametrize("name", ["words", "owner/words@1.2", "owner/Words", "words:load"])
def test_trust_follows_the_file_that_a_name_means(name, tmp_path, monkeypatch):
    def digest():
        return digest_of(marked({"task": {"_target_": TARGET, "environment_id": name}}, RunConfig))

    absent = digest()
    (tmp_path / "words.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert digest() != absent


def test_settings_travel_to_other_processes_alone():
    task = VerifiersTask("verifiers", "", "", environment_id="mine", arguments={"rounds": 3})
    task.__dict__["_split"] = object()
    assert vars(pickle.loads(pickle.dumps(task))) == {
        key: value for key, value in vars(task).items() if key != "_split"
    }


def test_held_out_arguments_change_single_settings():
    given = {"taskset": {"split": "train", "size": 3}, "rounds": 2}
    changed = merged(given, {"taskset": {"split": "test"}, "agent": {"max_turns": 1}})
    assert changed == {"taskset": {"split": "test", "size": 3}, "rounds": 2, "agent": {"max_turns": 1}}
    assert given == {"taskset": {"split": "train", "size": 3}, "rounds": 2}
