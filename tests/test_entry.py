"""What all commands have in common: versions, the user's folder, exit codes."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from importlib import import_module, metadata
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from gspo_cli.commands import entry
from gspo_cli.config.compose import locate
from gspo_cli.errors import UserError
from gspo_cli.launching.sweep import SweepStart

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize("command", ["train", "evaluate", "chat", "serve", "doctor", "compare", "worker"])
def test_every_command_prints_the_version_of_gspo_cli(command, monkeypatch, capsys):
    monkeypatch.setattr(metadata, "version", {"gspo-cli": "3.2.1"}.__getitem__)
    monkeypatch.setattr(sys, "argv", [f"gspo-{command}", "--version"])
    with pytest.raises(SystemExit) as ended:
        import_module(f"gspo_cli.commands.{command}").main()
    assert not ended.value.code
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("gspo-cli 3.2.1\n", "")


def test_a_checkout_that_is_not_installed_has_a_version_too(monkeypatch):
    def absent(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", absent)
    assert entry.version() == "gspo-cli 0.1.0 (source checkout, not installed)"
    monkeypatch.setattr(entry, "PACKAGE", Path("/nowhere/gspo_cli"))
    assert entry.version() == "gspo-cli (unknown version: the package is not installed)"


def raises(error):
    raise error


@pytest.mark.parametrize(
    ("command", "code", "printed"),
    [
        (lambda: None, 0, ""),
        (lambda: 1, 1, ""),
        (lambda: raises(UserError("seed=-1: must be 0 or more")), 2, "gspo-x: seed=-1: must be 0 or more\n"),
        (lambda: raises(KeyboardInterrupt), 130, "gspo-x: stopped; the rest is kept\n"),
    ],
)
def test_a_command_ends_with_an_exit_code_and_at_most_one_sentence(command, code, printed, capsys):
    assert entry.guarded("gspo-x", command, "stopped; the rest is kept")[0] == code
    assert capsys.readouterr().err == printed


def test_modules_of_the_users_folder_are_found_once_and_last(tmp_path, monkeypatch):
    (tmp_path / "my_rewards.py").write_text("Polite = 1")
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    for _ in range(2):
        assert locate("my_rewards.Polite", "reward") == 1
    assert sys.path == [*before, str(tmp_path)]
    monkeypatch.setattr(sys, "path", before)


def test_a_reader_that_is_gone_is_no_traceback(tmp_path):
    code = (
        "import sys; from gspo_cli.commands.entry import run_command\n"
        "sys.stdin.read(); run_command('gspo-x', lambda: print('x'))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    process.stdout.close()
    process.stdin.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait() == 1


def test_a_process_of_a_launcher_gets_our_resolvers_with_the_callback():
    sent = pickle.dumps(SweepStart())
    OmegaConf.clear_resolver("digest")
    assert isinstance(pickle.loads(sent), SweepStart)
    assert OmegaConf.has_resolver("digest")
