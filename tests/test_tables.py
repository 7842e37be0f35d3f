"""Tables: csv as it is written, columns without a name, files without rows, and calls in parquet."""

from __future__ import annotations

import json

import pyarrow
import pyarrow.parquet
import pytest

from gspo_cli.errors import UserError
from gspo_cli.tasks.jsonl import JsonlTask
from tests.support.data import ROWS, both, dataset, parquet
from tests.support.tasks import write


def test_what_a_csv_file_has_stays_as_it_is_written(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('prompt,answer\n"two\nlines, quoted",007\nb,1.50\nc,NA\nd,\n')
    task = dataset(path, heldout=1)
    with pytest.raises(UserError, match=r"a\.csv:4: its answer is empty; .*task\.filter"):
        task.train_problems()
    kept = both(dataset(path, heldout=1, filter="answer"))
    assert {messages[0].content: answer for messages, answer in kept} == {
        "two\nlines, quoted": "007",
        "b": "1.50",
        "c": "NA",
    }


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        (
            "a.csv",
            "prompt,answer\nq0,0,z0\nq1,1,z1\n",
            r"a\.csv:1: does not have as many fields \(3\) .* names of columns \(2\)",
        ),
        (
            "a.csv",
            "prompt,answer\nq0,0,\nq1,1,\n",
            r"a\.csv:1: does not have as many fields \(3\) .* names of columns \(2\)",
        ),
        (
            "a.csv",
            "prompt,answer\nq0,0\nq1, q2,1\n",
            r"a\.csv:2: does not have as many fields \(3\) .* names of columns \(2\)",
        ),
        (
            "a.csv",
            "id,prompt,answer\n0,q0,0\nq1,1\n",
            r"a\.csv:2: does not have as many fields \(2\) .* names of columns \(3\)",
        ),
        (
            "a.tsv",
            "prompt\tanswer\nq0\t0\t\n",
            r"a\.tsv:1: does not have as many fields \(3\) .* names of columns \(2\)",
        ),
        ("a.csv", 'prompt,answer\nq0,0\n"q1,1\nq2,2\n', r"a\.csv:2: is not csv .*unexpected end"),
        ("a.csv", 'prompt,answer\n"q"0,0\n', r"a\.csv:1: is not csv .*write a quote inside of quotes twice"),
        ("a.csv", 'prompt,"answer\n', r"^task\.path=.*a\.csv: its first line is not csv"),
        ("a.csv", "prompt,answer\n", r"^task\.path=.*a\.csv: has no rows; give a file with rows$"),
        ("a.csv", "", r"^task\.path=.*a\.csv: is empty; "),
        ("a.csv", "\n \n", r"^task\.path=.*a\.csv: is empty; "),
    ],
)
def test_a_csv_file_that_would_be_misread_is_refused_by_row(name, content, reason, tmp_path):
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=reason):
        dataset(tmp_path / name, heldout=1).train_problems()


@pytest.mark.parametrize(
    "content",
    [
        ",prompt,answer\n0,q0,0\n1,q1,1\n",  # as DataFrame.to_csv() writes it
        ",Unnamed: 0,prompt,answer\n0,0,q0,0\n1,1,q1,1\n",  # and writes it again
        "prompt,answer,\nq0,0,\nq1,1,\n",
        "prompt,answer,answer\nq0,0,5\nq1,1,5\n",
        "\n  \nprompt,answer\n\nq0,0\nq1,1\n\n",
    ],
)
def test_columns_without_a_name_and_blank_lines_are_no_obstacle(content, tmp_path):
    (tmp_path / "a.csv").write_text(content)
    found = both(dataset(tmp_path / "a.csv", heldout=1))
    assert {messages[0].content: answer for messages, answer in found} == {"q0": "0", "q1": "1"}


def test_a_column_without_a_name_is_called_by_its_place(tmp_path):
    (tmp_path / "a.csv").write_text(",answer\nq0,0\nq1,1\n")
    found = both(dataset(tmp_path / "a.csv", heldout=1, prompt="Unnamed: 0"))
    assert {messages[0].content for messages, _ in found} == {"q0", "q1"}


def test_a_csv_file_is_read_again_when_it_changes_and_takes_long_texts(tmp_path):
    path, long = tmp_path / "a.csv", "x" * 200_000
    for answer in ("1", "2"):
        path.write_text(f"prompt,answer\n{long},{answer}\nq,{answer * 2}\n")
        assert {each for _, each in both(dataset(path, heldout=1))} == {answer, answer * 2}


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
def test_a_table_without_rows_is_one_sentence(name, tmp_path):
    none = pyarrow.Table.from_pylist(ROWS).slice(0, 0)
    if name == "a.parquet":
        pyarrow.parquet.write_table(none, tmp_path / name)
    else:
        with pyarrow.ipc.new_file(str(tmp_path / name), none.schema) as writer:
            writer.write_table(none)
    with pytest.raises(UserError, match=rf"^task\.path=.*{name}: has no rows; give a file with rows$"):
        dataset(tmp_path / name).train_problems()


CALLS = [
    ("f", {"a": 1}),
    ("g", {"b": "x", "c": {"d": 1}}),
    ("h", {"c": {"e": [{"i": 1}, {"j": 2}]}}),
    ("k", {}),
]


def called(name, arguments):
    calls = [{"type": "function", "function": {"name": name, "arguments": arguments}}]
    said = {"role": "assistant", "content": "", "tool_calls": calls}
    return [{"role": "user", "content": name}, said, {"role": "tool", "content": "1"}]


def arguments_of(task):
    return {messages[0].content: messages[1].content.calls[0].arguments for messages, _ in both(task)}


def test_a_table_adds_no_arguments_to_a_call(tmp_path):
    rows = [{"messages": called(*call), "answer": "1"} for call in CALLS]
    parquet(tmp_path / "a.parquet", rows)
    task = JsonlTask("jsonl", "", "", path=str(tmp_path / "a.parquet"), heldout=1)
    assert arguments_of(task) == dict(CALLS)
    whole = [{"chat": [*row["messages"], {"role": "assistant", "content": "done"}]} for row in rows]
    parquet(tmp_path / "b.parquet", whole)
    assert arguments_of(dataset(tmp_path / "b.parquet", heldout=1, messages="chat")) == dict(CALLS)


def test_a_null_that_a_line_gives_to_a_call_stays(tmp_path):
    rows = [{"messages": called(name, {"a": None}), "answer": "1"} for name in "fg"]
    task = JsonlTask("jsonl", "", "", path=write(tmp_path / "a.jsonl", *map(json.dumps, rows)), heldout=1)
    assert list(arguments_of(task).values()) == [{"a": None}] * 2


def test_a_split_of_the_hub_without_rows_is_one_sentence(monkeypatch):
    import datasets

    none = datasets.Dataset.from_list(ROWS).select([])
    monkeypatch.setattr("gspo_cli.tasks.tables.ask_hub", lambda name, kind: None)
    monkeypatch.setattr("datasets.load_dataset", lambda path, **settings: none)
    with pytest.raises(UserError, match=r"^task\.path=me/mine: split t[a-z]+ has no rows; give another"):
        dataset("me/mine").train_problems()
