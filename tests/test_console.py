"""What the terminal shows: real consoles written to strings, fed with the worst a model can write."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys

import pytest
from rich.cells import cell_len
from rich.console import Console

from gspo_cli.console.live import LiveConsole, PlainConsole, Progress, make_console
from gspo_cli.console.reporting import ShownSample
from gspo_cli.console.samples import exchange, samples_table
from gspo_cli.console.words import clean, sparkline, tail

NASTY = [
    "[red]seven[/red] [/] [/nope] :smile: [link=file:///x]7[/link]",
    "\x1b[31m42\x1b[0m \x1b]0;title\x07 \x1b[2J\r\x00\x08",
    "right-to-left \u202e mark, lone \ud800 surrogate, \u200b nothing",
    "四十二" * 200,
    "line\nbreak\ttab " + "x" * 5000,
    "",
]
METRICS = {
    "iteration": 12,
    "reward": 0.531,
    "reward_std": 0.21,
    "clip_ratio/token": 0.03,
    "clip_ratio/sequence": 0.36,
    "ratio/first_step_abs_err": 1.25e-7,
    "frac_reward_zero_std": 0.25,
    "entropy": 0.82,
    "completions/mean_length": 6.0,
    "completions/max_length": 12,
    "completions/clipped_ratio": 0.01,
    "grad_norm": 0.31,
    "learning_rate": 1e-4,
    "updates": 4,
    "tokens_per_second": 8123.4,
    "time/rollout": 1.0,
    "time/reward": 0.0,
    "time/score": 0.0,
    "time/update": 2.0,
    "memory/peak_gb": 1.234,
}
RECORD = {
    "iteration": 10,
    "score": 0.42,
    "pass@1": 0.38,
    "pass@4": 0.61,
    "num_problems": 200,
    "time/eval": 1.0,
}
SUMMARY = {
    "status": "completed",
    "algorithm": "gspo",
    "model": "tiny",
    "task": "arithmetic",
    "seed": 0,
    "reward_object": False,
    "iterations": 100,
    "total_iterations": 100,
    "initial_eval": None,
    "final_eval": None,
    "best_eval": None,
    "num_tokens": 10,
    "wall_seconds": 80.0,
    "run_folder": "outputs/run",
    "first_reward": None,
    "last_reward": None,
}


class Clock:
    """Seconds that pass when told to."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def sample(answer, prompt="What is 3 + 4?", **more):
    messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
    return ShownSample(12, "problem-1", messages, expected="7", reward=1.0, **more)


@pytest.fixture
def live():
    """Makes live consoles over a string, begun at iteration 0 of 100, and ends them."""
    made = []

    def begin(width=80, **options):
        console = Console(file=io.StringIO(), width=width, height=60, **{"color_system": None, **options})
        made.append(LiveConsole(console, Clock()))
        made[-1].begin("gspo on arithmetic", "gspo on arithmetic\n  objective   min(s A)", 100, 0)
        return made[-1], console.file

    yield begin
    for reporter in made:
        reporter.end(SUMMARY)


def drawn(reporter, width=80):
    """The present frame as lines of plain text."""
    page = Console(file=io.StringIO(), width=width, color_system=None)
    page.print(reporter.frame())
    return page.file.getvalue().splitlines()


@pytest.fixture
def plain():
    """A plain console over a string, begun at iteration 0 of 100: (reporter, file, clock)."""
    clock, file = Clock(), io.StringIO()
    reporter = PlainConsole(file, clock)
    reporter.begin("gspo on arithmetic", "gspo on arithmetic\n  objective   min(s A)", 100, 0)
    return reporter, file, clock


def terminal_output(command):
    """What `python -c command` shows on a terminal."""
    ours, theirs = os.openpty()
    command = [sys.executable, "-c", command]
    subprocess.run(command, stdout=theirs, stderr=theirs, env={**os.environ, "TERM": "xterm"}, timeout=60)
    os.close(theirs)
    shown = os.read(ours, 65536).decode()
    os.close(ours)
    return shown


def printed(file):
    return file.getvalue().splitlines()[2:]  # after the card


@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize("text", NASTY)
def test_model_text_neither_breaks_the_frame_nor_leaves_its_cell(live, text, width):
    reporter, _ = live(width)
    reporter.iteration(METRICS)
    reporter.evaluation(RECORD)
    reporter.samples([sample(text, prompt=text, components={text: 1.0}, advantage=-0.5)] * 5)
    page = drawn(reporter, width)
    assert all(cell_len(line) <= width for line in page)
    assert not [c for line in page for c in line if not c.isprintable()]
    # title, two bars, panel of 2 + 9 lines, title, column names, 3 samples of 2 lines
    assert len(page) == 1 + 2 + 11 + 1 + 1 + 3 * 2


def test_markup_of_a_model_is_shown_as_it_is_and_colours_nothing(live):
    reporter, _ = live(120)
    reporter.samples([sample("[red]seven[/red] [/] :smile:")])
    page = Console(file=io.StringIO(), width=120, force_terminal=True, color_system="standard")
    page.print(reporter.frame())
    assert "[red]seven[/red] [/] :smile:" in page.file.getvalue()
    assert "\x1b[31m" not in page.file.getvalue()


def test_the_frame_shows_the_numbers_and_the_judged_conversation(live):
    reporter, _ = live()
    for score, iteration in ((0.11, 0), (0.47, 5), (0.42, 10)):
        reporter.evaluation({**RECORD, "score": score, "iteration": iteration})
    reporter.iteration({**METRICS, "iteration": 11, "reward": 0.2})
    reporter.iteration(METRICS)
    reporter.samples([sample("It is 7.", components={"exact": 1.0, "format": 0.5}, advantage=0.7071)])
    page = "\n".join(drawn(reporter))
    for expected in (
        "12/100",
        "0.531 ±0.21",
        "▁█",  # reward 0.2, then 0.531
        "0.420  best 0.470 @5  first 0.110 @0",
        "▁█▇",  # held-out 0.11, 0.47, 0.42
        "clip tokens   0.03 ",
        "clip answers  0.36 ",
        "ratio error   1.25e-7 ",
        "lr            1e-4 ",
        "tokens/s      8.1k ",
        "rollout 22%  reward 0%  score 0%  update 44%  eval 33%",  # of 2 + 4 + 3 seconds
        "1.000  advantage +0.71",
        "exact 1, format 0.5",
        "expected 7",
    ):
        assert expected in page


def test_a_table_of_conversations_stands_alone_with_and_without_advantages():
    page = Console(file=io.StringIO(), width=80, color_system=None)
    turns = [("user", "Hello"), ("assistant", "a"), ("user", "And 3 + 4?"), ("assistant", "7")]
    messages = [{"role": role, "content": content} for role, content in turns]
    cut = ShownSample(0, "p-1", messages, "7", None, finish_reason="length", excluded="the grader failed")
    page.print(samples_table([sample("7", components={"exact": 1.0}), cut], 80))
    assert [re.split(r"\s{2,}", line.strip()) for line in page.file.getvalue().splitlines()] == [
        ["prompt", "answer", "reward"],
        ["What is 3 + 4?", "7", "1.000"],
        ["problem-1", "expected 7", "exact 1"],
        ["And 3 + 4?", "7", "–"],
        ["p-1 · 2 turns · truncated", "expected 7", "the grader failed"],
    ]


def test_absent_numbers_are_dashes_and_kl_has_a_place_only_where_it_is_measured(live):
    reporter, _ = live()
    before = drawn(reporter)
    assert any("clip tokens   –" in line for line in before)
    assert any("held-out  –" in line for line in before)
    assert any("eval –" in line for line in before)
    reporter.iteration({**METRICS, "entropy": None})
    assert any("entropy       – " in line for line in drawn(reporter))
    assert not any("│ kl " in line for line in drawn(reporter))
    reporter.iteration({**METRICS, "kl": 0.012})
    assert any("│ kl            0.012 " in line for line in drawn(reporter))


@pytest.mark.parametrize(
    ("metrics", "why"),
    [
        ({"frac_reward_zero_std": 1.0}, "all groups have zero variance: nothing to learn from this batch"),
        ({"updates": 1}, "one update per rollout: the ratio is 1, nothing can clip"),
    ],
)
def test_a_loss_or_clip_share_of_zero_is_explained_where_it_shows(live, plain, metrics, why):
    reporter, _ = live()
    height = len(drawn(reporter))
    reporter.iteration({**METRICS, **metrics})
    assert any(why in line for line in drawn(reporter))
    assert len(drawn(reporter)) == height  # nothing jumps

    lines, file, _ = plain
    for _ in range(3):
        lines.iteration({**METRICS, **metrics})
    assert [line.split(maxsplit=1)[0] for line in printed(file)] == [
        "iteration",
        "note",
        "iteration",
        "iteration",
    ]
    assert why in printed(file)[1]


def test_a_live_session_says_each_warning_once_and_leaves_its_last_frame(live):
    reporter, file = live(force_terminal=True)
    for _ in range(3):
        reporter.warn("answers are [bold]clipped[/] at random")
    reporter.iteration(METRICS)
    reporter.samples([sample("first")])
    reporter.samples([sample("the last answer")])
    reporter.end(SUMMARY)
    screen = file.getvalue()
    assert screen.count("answers are [bold]clipped[/] at random") == 1
    last_frame = screen[screen.rindex("\x1b[1A") :]  # after the cursor went up for the last time
    ordered = ["12/100", "the last answer", "Completed 100 of 100 iterations", "gspo-compare task="]
    assert [last_frame.index(text) for text in ordered] == sorted(last_frame.index(text) for text in ordered)
    assert screen.rindex("\x1b[?25h") > screen.rindex("\x1b[?25l")  # the cursor is back
    assert screen.count("\x1b[?2026h") == screen.count("\x1b[?2026l") > 0  # every drawing is ended


def test_a_stage_has_a_bar_while_it_lasts(live):
    reporter, _ = live()
    height = len(drawn(reporter))
    reporter.stage("evaluation", 50, 200, "greedy [/]")
    assert any(re.match(r"evaluation 50/200 +━+╸? +greedy \[/\]$", line) for line in drawn(reporter))
    assert len(drawn(reporter)) == height
    reporter.stage("evaluation", 200, 200)
    assert not any("evaluation" in line for line in drawn(reporter))
    reporter.stage("loading", 0, 0)  # of unknown length
    assert any("loading" in line for line in drawn(reporter))


def test_a_stage_before_the_run_leaves_its_full_bar_and_frees_the_terminal():
    console = Console(file=io.StringIO(), width=80, height=60, force_terminal=True, color_system=None)
    reporter = LiveConsole(console)
    reporter.stage("cold start", 1, 2)
    reporter.stage("cold start", 2, 2, "loss 1.2")
    screen = console.file.getvalue()
    assert re.search(r"cold start +2/2 +━+ +loss 1\.2\x1b\[\?2026l\n", screen)
    assert screen.endswith("\x1b[?25h")


def test_an_iteration_is_one_line(plain):
    reporter, file, clock = plain
    clock.now = 100.0
    reporter.evaluation({**RECORD, "iteration": 0})  # the first iteration starts after it
    clock.now = 110.0
    reporter.iteration({**METRICS, "iteration": 1})
    assert printed(file) == [
        "held-out   iteration 0  score 0.420  pass@1 0.380  pass@4 0.610  (200 problems)",
        "iteration    1/100  reward 0.531 ±0.21  held-out 0.420  clip tok 0.030 seq 0.360  len 6.0  lr 1e-4  "
        "8.1k tok/s  eta 16m 30s",  # 99 iterations of 10 seconds
    ]


def test_a_late_iteration_does_not_shorten_the_next_ones():
    clock = Clock()
    progress = Progress(clock)
    progress.begin("title", 100, 0)
    for iteration in (1, 2):
        clock.now += 10.0
        progress.iteration({**METRICS, "iteration": iteration})
    for late, left in ((0, "16m 20s"), (4, "16m 16s"), (10, "16m 10s"), (500, "16m 10s")):
        clock.now = 20.0 + late
        assert progress.eta == left


def test_a_resumed_run_paces_itself_by_this_session_alone():
    clock, file = Clock(), io.StringIO()
    reporter = PlainConsole(file, clock)
    reporter.begin("title", "card", 100, 50)
    clock.now = 2.0
    reporter.iteration({**METRICS, "iteration": 51, "grad_norm": None, "clip_ratio/token": 0.0013})
    assert "clip tok 0.0013 seq 0.360" in file.getvalue()
    assert file.getvalue().endswith(
        "held-out –  clip tok 0.0013 seq 0.360  len 6.0  lr 1e-4  8.1k tok/s  eta 1m 38s\n"
    )


def test_a_long_stage_takes_a_line_per_tenth_and_a_short_one_takes_one(plain):
    reporter, file, clock = plain
    for step in range(1, 1001):
        clock.now += 0.1
        reporter.stage("cold start", step, 1000, "loss [/] 1.0")
    assert printed(file)[:2] == ["cold start  1/1000  loss [/] 1.0", "cold start  100/1000  loss [/] 1.0"]
    assert len(printed(file)) == 11
    for _ in range(2):  # two evaluations of 2 seconds
        for done in range(1, 21):
            clock.now += 0.1
            reporter.stage("evaluation", done, 20)
    assert printed(file)[11:] == ["evaluation  1/20"]


def test_lines_say_each_warning_once_and_end_with_what_to_type_next(plain):
    reporter, file, _ = plain
    for text in ("[/] one", "[/] one", "two\x1b[31m"):
        reporter.warn(text)
    reporter.samples([sample("not printed")])
    reporter.end(SUMMARY)
    lines = printed(file)
    assert lines[:2] == ["warning    [/] one", "warning    two�[31m"]
    assert "  gspo-eval outputs/run" in lines
    assert "not printed" not in file.getvalue()


def test_a_pipe_gets_lines_and_a_terminal_the_live_view():
    assert isinstance(make_console(), PlainConsole)  # pytest holds stdout
    command = "from gspo_cli.console.live import make_console; print(type(make_console()).__name__)"
    coloured = {**os.environ, "FORCE_COLOR": "1"}
    piped = subprocess.run([sys.executable, "-c", command], capture_output=True, env=coloured, timeout=60)
    assert piped.stdout == b"PlainConsole\n"
    assert terminal_output(command).strip() == "LiveConsole"


def test_a_run_that_dies_gives_the_terminal_its_cursor_back():
    command = "from gspo_cli.console.live import make_console; make_console().stage('loading', 0, 1); 1 / 0"
    shown = terminal_output(command)
    assert "ZeroDivisionError" in shown
    assert shown.rindex("\x1b[?25h") > shown.rindex("\x1b[?25l")


def test_a_character_that_stdout_cannot_encode_is_replaced():
    command = "from gspo_cli.console.live import make_console; make_console().warn('± –')"
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(
        [sys.executable, "-c", command], capture_output=True, env=environment, check=True, timeout=60
    )
    assert done.stdout == b"warning    ? ?\n"


def test_the_terminal_needs_no_torch():
    command = "import sys, gspo_cli.console.live, gspo_cli.run.trackers; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", command], capture_output=True, check=True, timeout=60)
    assert done.stdout == b"False\n"


@pytest.mark.parametrize("text", NASTY)
def test_clean_text_is_one_printable_line_and_its_tail_fits(text):
    assert clean(text).isprintable()
    assert clean(clean(text)) == clean(text)
    for width in (1, 5, 20):
        kept = tail(clean(text), width)
        assert cell_len(kept) <= width
        assert clean(text).endswith(kept.removeprefix("…"))


def test_the_answer_shown_is_the_last_and_the_prompt_what_it_answers():
    roles = ["system", "user", "assistant", "user", "assistant", "user"]
    messages = [{"role": role, "content": text} for role, text in zip(roles, "sabcde", strict=True)]
    assert exchange(messages) == ("c", "d")
    assert exchange(messages[:2]) == ("a", "")
    assert exchange(messages[2:3]) == ("", "b")
    assert exchange([]) == ("", "")


def test_a_sparkline_spans_the_whole_history_from_lowest_to_highest():
    assert sparkline([0.0, 0.5, 1.0], 10) == "▁▅█"
    assert (sparkline([0.5] * 3, 10), sparkline([], 10)) == ("▁▁▁", "")
    assert sparkline([0, 0, 1, 1, 2, 2, 3, 3], 4) == sparkline([0, 1, 2, 3], 4)
    assert len(sparkline(list(range(1000)), 27)) == 27
