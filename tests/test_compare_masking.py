"""What is masked of a packed comparison, in texts, settings and logs, and what only looks like a secret."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest

from gspo_cli.compare.masking import Mask
from gspo_cli.compare.packing import PACKED
from gspo_cli.compare.runs import read_run
from tests.support.command_line import call
from tests.support.stored_runs import changed, stored_run, write_run, write_stored

MARKS = ("<secret-1>", "<secret-2>", "<secret-3>")


@pytest.mark.parametrize(
    ("value", "masked"),
    [
        ({"api_key": "x", "token": 5}, {"api_key": "<secret-1>", "token": 5}),
        ({"password": 1234}, {"password": "<secret-1>"}),
        ({"secrets": {"a": ["b", "b"]}}, {"secrets": {"a": ["<secret-1>", "<secret-1>"]}}),
        ("reward.api_key=abc", "reward.api_key=<secret-1>"),
        ("+judge={token: abc, n: 1}", "+judge={token: <secret-1>, n: 1}"),
        ('{"wandb_api_key": "abc"}', '{"wandb_api_key": "<secret-1>"}'),
        ("HF_TOKEN=abc OTHER=abc", "HF_TOKEN=<secret-1> OTHER=abc"),
        ("https://a:b@c/d?access_token=e&f=g", "https://<secret-1>@c/d?access_token=<secret-2>&f=g"),
        ("use hf_abcdefghijklmnopqrst.", "use <secret-1>."),
        ("Authorization: Bearer abc.def-ghi_jkl", "Authorization: Bearer <secret-1>"),
        ("from /home/bob/x and /tmp/of-bob", "from ~/x and /tmp/of-bob"),
        ("at /users/home/bob", "at /users/home/bob"),
        (
            {"openai_api_key_1": "a", "apiKey2": "b"},
            {"openai_api_key_1": "<secret-1>", "apiKey2": "<secret-2>"},
        ),
        ({"pwd": "a", "passphrase": ["b"]}, {"pwd": "<secret-1>", "passphrase": ["<secret-2>"]}),
        (r'{"arguments": "{\"api_key\": \"abc\"}"}', r'{"arguments": "{\"api_key\": \"<secret-1>\"}"}'),
        ("password: hunter2\nand on", "password: <secret-1>\nand on"),
        ("serve --api-key sk123 --port 80", "serve --api-key <secret-1> --port 80"),
        ("API_KEY='a b' OTHER='a b'", "API_KEY='<secret-1>' OTHER='a b'"),
        ("https://user:p@s/s@host/x", "https://<secret-1>@host/x"),
        ("https://hooks.slack.com/services/T0/B0/abc", "https://hooks.slack.com/services/<secret-1>"),
        ("sk_" + "live_abcdefghijklmnop1234 npm_" + "a" * 36, "<secret-1> <secret-2>"),
        ("ASIA" + "A" * 16 + " ya29." + "a" * 20 + " pypi-" + "a" * 20, " ".join(MARKS)),
        ("-----BEGIN PRIVATE KEY-----\nMII\n-----END", "-----BEGIN PRIVATE KEY-----<secret-1>-----END"),
        (r"C:\Users\bob\x", r"~\x"),
        ("redis://:hunter2x@h:6379", "redis://<secret-1>@h:6379"),
        ("the password = abc123zzz", "the password = <secret-1>"),
        ("- password: correct horse battery\nnext: b", "- password: <secret-1>\nnext: b"),
        ("password = correct horse battery", "password = <secret-1>"),
        (r'{"password": "a\"b c", "n": "x"}', r'{"password": "<secret-1>", "n": "x"}'),
        (r'"{\"password\": \"a\\\"b c\", \"n\": 1}"', r'"{\"password\": \"<secret-1>\", \"n\": 1}"'),
        (r'{"text": "say \"token\": \"abc\" twice"}', r'{"text": "say \"token\": \"<secret-1>\" twice"}'),
        ('{"password": "", "n": "x", "token": "abc', '{"password": "", "n": "x", "token": "<secret-1>'),
        (
            {"overrides": ["+a.passphrase=correct horse battery", "+a.auth=[bob,hunter2pass]", "b=1"]},
            {"overrides": ["'+a.passphrase=\"<secret-1>\"'", "'+a.auth=\"<secret-2>\"'", "b=1"]},
        ),
        (
            {"auth": ["b c"], "pwd": 1, "overrides": ["""'+a.auth=["b c"]'""", "+a.pwd=1", "+a.pwd=null"]},
            {
                "auth": ["<secret-1>"],
                "pwd": "<secret-2>",
                "overrides": ["""'+a.auth=["<secret-1>"]'""", "'+a.pwd=\"<secret-2>\"'", "+a.pwd=null"],
            },
        ),
        # what only looks like it
        ({"pad_token": "<pad>", "eos_token": "</s>"}, {"pad_token": "<pad>", "eos_token": "</s>"}),
        ("forgot the password: it is lost", "forgot the password: it is lost"),
        (
            "answer key: B\nhttp://localhost:80/@x --max-tokens 5",
            "answer key: B\nhttp://localhost:80/@x --max-tokens 5",
        ),
        ("order 444, tom17@mail.com", "order 444, tom17@mail.com"),
        ({"api_key_variable": "KEY", "max_tokens": 5}, {"api_key_variable": "KEY", "max_tokens": 5}),
        ("algorithm=gspo_token tokens=5 monkey=3", "algorithm=gspo_token tokens=5 monkey=3"),
        ("the key: turn left, bob", "the key: turn left, bob"),
        ("token_mean 1/2", "token_mean 1/2"),
        ("tokens = split(x)\nif password == x:", "tokens = split(x)\nif password == x:"),
        ("""x '+a.auth=["<secret-4>", "<secret-5>"]'""", """x '+a.auth=["<secret-4>", "<secret-5>"]'"""),
        ("http://@a http://:@b redis://:80/@x", "http://@a http://:@b redis://:80/@x"),
    ],
)
def test_secrets_are_known_by_their_names_and_forms(value, masked):
    assert Mask().value(value) == masked


def test_a_text_of_any_kind_is_masked_in_time_that_its_length_decides():
    for text in (
        "://a:" * 30_000,
        "--a" * 30_000,
        "a: b   " * 20_000,
        "-a" * 50_000 + "=",
        "a:" * 50_000,
        '"a' * 50_000,
        "a/" * 50_000,
        "{a: b, " * 20_000,
        '"a": "' * 20_000,
        "".join("a_': _'".replace("_", "\\" * (n % 9)) for n in range(9_000)),
        "a" + "\\" * 100_000 + '"',
        "a='" + "b\\'" * 30_000,
        "a = " * 30_000,
        "a" + " " * 100_000,
        "- \t" * 30_000,
        "://:" * 30_000,
    ):
        assert Mask().value(text) == text  # quadratic patterns would take minutes


def test_numbers_of_logs_are_measurements_whatever_a_reward_is_called(tmp_path):
    for algorithm in ("gspo", "grpo"):
        run = stored_run(algorithm)
        run.metrics[0]["rewards/asks_password/mean"] = 0.25
        run.heldout[-1]["conversations"][0]["components"]["keeps_secret"] = 0.5
        final = {**run.evals[-1], "credentials": 0.75}
        settings = {**run.config, "reward_settings": {"password": 1234}}
        summary = {**run.summary, "final_eval": final}
        write_stored(
            tmp_path / "sweep" / algorithm,
            replace(run, config=settings, evals=[*run.evals[:-1], final], summary=summary),
        )
    done = call("gspo-compare", "sweep", "--zip", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    shutil.unpack_archive(tmp_path / "sweep" / PACKED, tmp_path)
    there, here = read_run(tmp_path / "comparison/runs/gspo-s0"), read_run(tmp_path / "sweep/gspo")
    assert (there.metrics, there.evals, there.heldout) == (here.metrics, here.evals, here.heldout)
    assert there.summary["final_eval"] == here.summary["final_eval"]
    assert there.config["reward_settings"] == {"password": "<secret-1>"}


def test_what_cannot_be_read_back_is_not_written(tmp_path):
    for algorithm in ("gspo", "grpo"):
        write_run(tmp_path / "sweep" / algorithm, algorithm)
    done = call("gspo-compare", "sweep", "--zip", cwd=tmp_path, JUDGE_PASSWORD="completed")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith(
        "gspo-compare: --zip: sweep/gspo cannot be read once its secrets are masked ("
    )
    assert done.stderr.endswith("unset it, or leave out --zip\n")
    assert not (tmp_path / "sweep" / PACKED).exists()
    assert not list((tmp_path / "sweep").glob(".*"))


def test_a_folder_in_a_conversation_is_no_user_whose_name_is_masked_in_settings(tmp_path):
    for algorithm in ("gspo", "grpo"):
        for seed in range(2):
            run = changed(stored_run(algorithm, seed), model__name="acme/kitchen-1b")
            message = run.heldout[-1]["conversations"][0]["messages"][1]
            message["content"] = (
                "see /home/kitchen/list" if (algorithm, seed) == ("gspo", 1) else "see acme/me"
            )
            write_stored(tmp_path / "sweep" / f"{algorithm}{seed}", run)
    done = call("gspo-compare", "sweep", "--zip", cwd=tmp_path, USER="me")
    assert done.returncode == 0, done.stderr
    shutil.unpack_archive(tmp_path / "sweep" / PACKED, tmp_path)
    runs = [read_run(path) for path in sorted((tmp_path / "comparison/runs").iterdir())]
    assert [run.config["model"]["name"] for run in runs] == ["acme/kitchen-1b"] * 4
    said = [run.heldout[-1]["conversations"][0]["messages"][1]["content"] for run in runs]
    assert said == [*["see acme/<user>"] * 3, "see ~/list"]
