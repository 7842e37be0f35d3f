"""The command gspo-serve: what it prints can be pasted, Ctrl-C ends it, and bad input is one sentence."""

from __future__ import annotations

import shlex
import shutil
import signal
import socket
import subprocess
import time
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait

import httpx
import pytest

from tests.support.command_line import call, environment, script
from tests.support.reporters import Silent
from tests.support.talking_runs import trained
from tests.test_serve import create, openai, words


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A trained run on customer_service."""
    return trained(tmp_path_factory.mktemp("serve") / "run", Silent()).path


@pytest.fixture
def started(warm_python):
    """`started(folder, ...)`: the process of gspo-serve, what it printed by variable, and its other lines."""
    processes = []

    def begun(*arguments):
        command = script("gspo-serve", *map(str, arguments), "--port", "0", python=warm_python)
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        processes.append(subprocess.Popen(command, env=environment(), text=True, **pipes))
        lines = [processes[-1].stdout.readline() for _ in range(7)]
        assert all(lines), processes[-1].communicate()
        variables = dict(shlex.split(line)[1].split("=", 1) for line in lines[:3])
        return processes[-1], variables, lines[3:]

    yield begun
    for process in processes:
        if process.poll() is None:
            process.kill()
        process.communicate()


@pytest.mark.long
def test_a_run_is_served_as_the_lines_it_prints_say_until_ctrl_c(run, started):
    process, variables, [curl, _, about, _] = started(run, "--temperature", "0")
    assert "answers take up to 12 tokens" in about
    assert variables["OPENAI_API_KEY"].startswith("gspo-")
    settings = {"base_url": variables["OPENAI_BASE_URL"], "api_key": variables["OPENAI_API_KEY"]}
    with openai.OpenAI(**settings) as client:
        model = variables["OPENAI_MODEL"]
        found = client.chat.completions.create(model=model, messages=[{"role": "user", "content": "Hi"}])
        assert 0 < found.usage.completion_tokens <= 12, "the run's rollout.max_completion_length"
        again = client.chat.completions.create(model=model, messages=[{"role": "user", "content": "Hi"}])
        assert words(again) == words(found)
        words_of = shlex.split(curl)
        headers = dict(words_of[at + 1].split(": ") for at, word in enumerate(words_of) if word == "-H")
        done = httpx.post(words_of[1], headers=headers, content=words_of[words_of.index("-d") + 1])
        assert done.json()["choices"][0]["message"]["content"] == words(found)
        begun = time.monotonic()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=20)
    assert (process.returncode, err.splitlines()[-1]) == (0, "gspo-serve: stopped")
    assert "Traceback" not in err
    assert time.monotonic() - begun < 6


def test_ctrl_c_ends_an_answer_that_is_being_made(folders, started):
    process, variables, _ = started(folders["gpt2"], "--key", "mine", "rollout.max_completion_length=400")
    assert variables["OPENAI_API_KEY"] == "mine"
    settings = {"base_url": variables["OPENAI_BASE_URL"], "api_key": "mine", "max_retries": 0}
    with openai.OpenAI(**settings) as client, ThreadPoolExecutor(32) as pool:
        jobs = [pool.submit(create, client) for _ in range(32)]
        wait(jobs, return_when=FIRST_COMPLETED)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=20)
        failed = [job.exception() for job in jobs if job.exception(20)]
    assert (process.returncode, "Traceback" in err) == (0, False)
    assert failed
    assert {type(error) for error in failed} <= {openai.InternalServerError, openai.APIConnectionError}


@pytest.mark.long
def test_a_model_by_itself_answers_at_length(folders, started, monkeypatch):
    monkeypatch.setenv("GSPO_SERVE_KEY", "mine")
    _, variables, [_, _, about, _] = started(folders["qwen3"])
    assert "answers take up to 1024 tokens" in about
    assert variables["OPENAI_API_KEY"] == "mine"
    settings = {"base_url": variables["OPENAI_BASE_URL"], "api_key": variables["OPENAI_API_KEY"]}
    with openai.OpenAI(**settings) as client:
        assert 0 < create(client).usage.completion_tokens <= 1024


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--port", "70000"], "--port 70000: give a number from 0 to 65535"),
        (["--temperature", "-1"], "--temperature -1.0: give a number from 0 to 2"),
        (["--temperature", "nan"], "--temperature nan: give"),
        (["--key", "a b"], "--key (or GSPO_SERVE_KEY): give printable ASCII"),
        (["--key", ""], "--key (or GSPO_SERVE_KEY): give printable ASCII"),
        (["--checkpoint", "99"], ""),
        (["task.no_such=1"], ""),
    ],
)
def test_bad_input_is_one_sentence(run, arguments, reason):
    done = call("gspo-serve", str(run), *arguments)
    assert done.returncode == 2
    assert done.stderr.startswith(f"gspo-serve: {reason}")
    assert len(done.stderr.splitlines()) == 1


def test_a_port_that_is_taken_is_one_sentence_before_a_model_is_loaded(folders):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = call("gspo-serve", str(folders["qwen3"]), "--port", str(port))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"gspo-serve: --port {port}: is taken; type --port {port + 1}, or --port 0 for any free one\n"
    )


def test_a_run_whose_reward_a_script_gave_can_be_served(run, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(run, folder, symlinks=True)
    for name in ("config.yaml", ".config.yaml"):
        saved = (folder / name).read_text()
        (folder / name).write_text(saved.replace("reward: null", "reward: python object mine.Reward"))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = call("gspo-serve", str(folder), "--port", str(taken.getsockname()[1]))
    assert "is taken" in done.stderr, "everything before that has passed"


def test_help_says_what_it_is_for(capsys):
    done = call("gspo-serve", "--help")
    assert done.returncode == 0
    for part in ("development", "gspo-export", "vLLM", "examples:", "--port", "--key", "--checkpoint"):
        assert part in done.stdout
