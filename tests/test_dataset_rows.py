"""Rows of data: columns by name, jinja over them, what is left out and what is refused."""

from __future__ import annotations

import pytest

from gspo_cli.errors import UserError
from gspo_cli.tasks.jsonl import JsonlTask
from gspo_cli.tasks.problem_index import UnusableRow
from gspo_cli.tasks.row_templates import RowFilter, RowTemplate
from gspo_cli.types import Message
from tests.support.data import ROWS, both, dataset, lines, parquet
from tests.support.tasks import write

TURNS = [
    {"from": "system", "value": "S"},
    {"from": "human", "value": "Hi"},
    {"from": "gpt", "value": "Hello"},
    {"from": "human", "value": "Bye"},
    {"from": "gpt", "value": "Goodbye"},
]


@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl"])
def test_the_last_assistant_turn_is_the_reference(name, tmp_path):
    path = tmp_path / name
    as_roles = [
        {"role": {"human": "user", "gpt": "assistant"}.get(t["from"], t["from"]), "content": t["value"]}
        for t in TURNS
    ]
    for rows in ([{"conversations": TURNS}], [{"conversations": as_roles}]):
        rows = [*rows, {"conversations": rows[0]["conversations"][:3]}]
        parquet(path, rows) if name == "a.parquet" else path.write_bytes(lines(rows))
        problems = both(dataset(path, messages="conversations", heldout=1))
        assert {answer: [m.content for m in messages] for messages, answer in problems} == {
            "Goodbye": ["S", "Hi", "Hello", "Bye"],
            "Hello": ["S", "Hi"],
        }


def test_an_answer_column_stands_beside_a_conversation(tmp_path):
    rows = [{"chat": TURNS[:2], "gold": 4}, {"chat": TURNS[:3], "gold": 5}, {"chat": TURNS, "gold": 6}]
    path = write(tmp_path / "a.jsonl", *rows)
    problems = both(dataset(path, messages="chat", answer="gold", heldout=1))
    assert {answer: len(messages) for messages, answer in problems} == {"4": 2, "5": 2, "6": 4}


def test_a_template_writes_the_question_and_a_filter_chooses_rows(tmp_path):
    path = write(tmp_path / "a.jsonl", *ROWS)
    settings = {
        "template": "{{ question }} ({{ row['level'] }})",
        "filter": "level < 2 and 'What' in question",
    }
    task = dataset(path, **settings)
    found = both(task)
    assert {messages for messages, _ in found} == {
        (Message("user", f"{row['question']} ({row['level']})"),) for row in ROWS if row["level"] < 2
    }
    assert task.notes() == ["4 of 12 training rows are left out by task.filter"]


NESTED = {"answer": "1", "q": None, "x": {"items": ["a", "b"], "n": None}, "list": [None, "b"], "row": "R"}


@pytest.mark.parametrize(
    "template",
    [
        *(
            "{{q}} Think.",
            "{{q ~ ' Think.'}}",
            "{{q | upper}}",
            "{{[q] | join}}",
            "{{'%s' % q}}",
            "{{row.q}}",
        ),
        *("{{x.n}}", "{{x['n']}}", "{{x}}", "{{q.name}}", "{{list | join}}", "{{list[0]}}", "{{none}}"),
        *("{% for each in list %}{{each}}{% endfor %}", "{{x.get('n')}}", "{{row['q'] | trim}}"),
    ],
)
def test_a_row_whose_template_would_write_a_null_is_left_out(template, tmp_path):
    whole = {**NESTED, "q": {"name": "a"}, "x": {"n": "c"}, "list": ["d"]}
    path = write(tmp_path / "a.jsonl", whole, {**whole, "q": {"name": "b"}}, NESTED)
    if template == "{{none}}":
        with pytest.raises(UserError, match="has no row that can be used: 3 of 3 rows are left out"):
            dataset(path, heldout=1, template=template).train_problems()
        return
    # the conversation differs by row, so that one is left to train on
    task = dataset(path, heldout=1, template=f"{template}{{{{q | tojson}}}}")
    assert "None" not in str(both(task))
    (note,) = task.notes()
    assert "1 of 3 training rows are left out, the first because" in note
    assert "a.jsonl:3: " in note
    assert " is null, and task.template=" in note


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{{q or 'nothing'}}", "nothing"),
        ("{{q | default('nothing', true)}}", "nothing"),
        (
            "{% if q is none %}null{% endif %}{% if q == none %}null{% endif %}{{q is not none}}",
            "nullnullFalse",
        ),
        ("{{q | tojson}} {{x | tojson}}", 'null {"items": ["a", "b"], "n": null}'),
        ("{{row['row']}} {{row.answer}} {{x['items'][1]}}", "R 1 b"),
    ],
)
def test_a_template_may_test_for_null_and_read_every_column(template, text):
    assert RowTemplate("task.template", template)(NESTED, "a.jsonl:1") == text


def test_a_filter_may_test_for_null():
    for text, holds in (("q is none", True), ("q == none", True), ("q", False), ("not q", True)):
        assert RowFilter("task.filter", text)(NESTED, "a.jsonl:1") is holds
    with pytest.raises(UnusableRow, match=r"^a\.jsonl:1: q is null, and task\.filter="):
        RowFilter("task.filter", "'None' in q | string")(NESTED, "a.jsonl:1")


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{x.items[1]}}", r'write x\["items"\] in place of x\.items, which is a method'),
        ("{{x.items}}", r'write x\["items"\]'),
        ("{{row.x.items}}", r'write row\.x\["items"\]'),
        ("{{x.keys}}", "keys is a method"),
        ("{{row}}", r'row is all columns; write row\["name"\] for one of them, row\["row"\] where'),
        ("{% if row == 'R' %}a{% endif %}", "row is all columns"),
    ],
)
def test_a_name_that_stands_for_something_else_is_refused(template, reason):
    with pytest.raises(UserError, match=reason):
        RowTemplate("task.template", template)(NESTED, "a.jsonl:1")


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"template": "{{ question "}, r"^task\.template='.*': is not usable"),
        ({"filter": "level <"}, r"^task\.filter='level <': is not usable"),
        ({"template": "{{ nothing }}"}, r"does not suit .*a\.jsonl:1 \('nothing' is undefined"),
        ({"filter": "level < 'a'"}, r"does not suit .*a\.jsonl:1 "),
        ({"filter": "level > 5"}, r"has no row that can be used: 12 of 12 rows .* task\.filter"),
        ({"template": "{{ ''.__class__.__mro__ }}"}, r"does not suit .*unsafe"),
        ({"template": "{{ question * 100000000 }}"}, r"does not suit .*\* is for numbers"),
        ({"template": "{{ 9 ** 9 ** 9 }}"}, r"does not suit .*small"),
        (
            {"template": "{% for n in range(9999) %}{{ question.rjust(9999) }}{% endfor %}"},
            r"writes more than 1,000,000 characters",
        ),
        *[
            ({"template": f"{{{{ {each} }}}}"}, r"does not suit .*a\.jsonl:1 \(it fills up a text")
            for each in (
                "question.ljust(999999999999999)",
                "question.zfill(999999999999999)",
                "'%999999999999999d' % 1",
                "'%(a)999999999999999d' % {'a': 1}",
                "'%*d' % (999999999999999, 1)",
                "'%999999999999999d'|format(1)",
                "'{:999999999999999}'.format(1)",
                "'{:.{}f}'.format(1, 999999999999999)",
                "question|center(999999999999999)",
                "question|indent(width=999999999999999)",
                "[1]|tojson(indent=999999999999999)",
                "[1]|batch(999999999999999, 1)|list",
                "(1).to_bytes(999999999999999, 'big')",
            )
        ],
        ({"template": "{% set _ = row.update(a=1) %}"}, r"does not suit .*unsafe"),
        ({"template": "{{ '\\ud800' }}"}, r"does not suit .*surrogates"),
        ({"template": " "}, r"a\.jsonl:1: its prompt is empty"),
        ({"template": "x", "prompt": "question"}, r"^task\.prompt and task\.template: "),
        ({"heldout_fraction": 1.0}, r"^task\.heldout_fraction=1\.0: "),
        (
            {"heldout_fraction": 0.5, "heldout_split": "test"},
            r"^task\.heldout_fraction=0\.5: task\.heldout_split",
        ),
        ({"subset": "main", "prompt": "question"}, r"^task\.subset=main: .* is one file"),
        ({"split": "test", "prompt": "question"}, r"^task\.split=test: .* is one file"),
        ({"heldout_split": "test", "prompt": "question"}, r"^task\.heldout_split=test: .* is one file"),
        ({"revision": "main", "prompt": "question"}, r"^task\.revision=main: .* is not of the hub"),
        ({"prompt": "query"}, r'has no row .*a\.jsonl:1: has no column "query" but question, answer, level'),
    ],
)
def test_a_setting_that_does_not_suit_the_data_is_named(settings, reason, tmp_path):
    path = write(tmp_path / "a.jsonl", *ROWS)
    with pytest.raises(UserError, match=reason):
        dataset(path, **settings).train_problems()


def test_a_template_that_needs_too_much_memory_is_one_sentence(monkeypatch):
    template = RowTemplate("task.template", "{{ a }}")

    def full(row):
        raise MemoryError

    monkeypatch.setattr(template, "_rendered", full)
    with pytest.raises(UserError, match=r"does not suit a:1 \(it needs too much memory\)"):
        template({"a": 1}, "a:1")


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{{ '%05d|%s|100%%' % (7, 'x') }}", "00007|x|100%"),
        ("{{ '{:>4}{{1234567}}'.format(7) }}", "   7{1234567}"),
        ("{{ '%.2f'|format(1.5) }} {{ 7 % 4 }} {{ 'a'.ljust(3) }}|{{ 'a'|center(3) }}|", "1.50 3 a  | a |"),
        ("{{ '{}'.format(12345678) }} {{ '%d' % 12345678 }}", "12345678 12345678"),
    ],
)
def test_a_template_may_format_and_fill_up_texts(template, text):
    assert RowTemplate("task.template", template)({}, "a:1") == text


DEEP = "[" * 100_000


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ('{"prompt": "a\\ud800 1", "answer": "1"}', "half of a character"),
        ('{"prompt": "a", "answer": "1", "\\udc00": 1}', "half of a character"),
        ('{"prompt": "a", "answer": NaN}', "is not JSON .*NaN"),
        ('{"prompt": "a", "answer": -Infinity}', "is not JSON .*Infinity"),
        ('{"prompt": "a", "answer": 1e999}', "not a finite number"),
        ('{"prompt": "a", "answer": ' + "1" * 5000 + "}", "is not JSON .*digits"),
        ('{"prompt": "a", "answer": 1, "deep": ' + DEEP + "}", "is not JSON .*nested too deeply"),
        (DEEP, "is not JSON .*nested too deeply"),
        ('{"prompt": "", "answer": "1"}', "its prompt is empty"),
        ('{"prompt": "a", "answer": " "}', "its answer is empty"),
    ],
)
def test_a_row_that_could_do_harm_is_refused_with_file_and_row(row, reason, tmp_path):
    path = write(tmp_path / "bad.jsonl", {"prompt": "a", "answer": 1}, {"prompt": "b", "answer": 1}, row)
    with pytest.raises(UserError, match=rf"bad\.jsonl:3: .*{reason}"):
        dataset(path, heldout=1).train_problems()


def test_jsonl_refuses_the_same_and_an_empty_message(tmp_path):
    for row in (
        '{"prompt": "a\\ud800 1", "answer": "1"}',
        '{"prompt": "a", "answer": 1e999}',
        '{"messages": [{"role": "user", "content": " "}], "answer": 1}',
    ):
        path = write(tmp_path / "bad.jsonl", {"prompt": "a", "answer": 1}, row)
        with pytest.raises(UserError, match=r"bad\.jsonl:2: "):
            JsonlTask("jsonl", "", "", path=path, heldout=1).train_problems()


@pytest.mark.parametrize(
    "row",
    [
        {"answer": "1"},
        {"prompt": None, "answer": "1"},
        {"prompt": 3, "answer": "1"},
        {"prompt": "a"},
        {"prompt": "a", "answer": None},
        {"prompt": "a", "answer": True},
        {"prompt": "a", "answer": ["b"]},
        {"prompt": "a", "answer": "not a number"},
    ],
)
def test_other_unusable_rows_are_counted_and_the_first_is_quoted(row, tmp_path):
    path = write(tmp_path / "a.jsonl", {"prompt": "a", "answer": 1}, {"prompt": "b", "answer": 2}, row, row)
    task = dataset(path, heldout=1, verifier="numeric")
    assert len(task.train_problems()) == 1
    (note,) = task.notes()
    assert note.startswith("2 of 4 training rows are left out, the first because ")
    assert "a.jsonl:3: " in note


@pytest.mark.parametrize(
    "turns",
    [
        [],
        "hi",
        [{"role": "user"}],
        [{"role": "robot", "content": "a"}],
        [{"role": "user", "content": "a"}],
        [{"role": "assistant", "content": "a"}],
        [{"role": "system", "content": "a"}, {"role": "assistant", "content": "a"}],
    ],
)
def test_a_conversation_without_a_reference_is_left_out(turns, tmp_path):
    good = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    path = write(tmp_path / "a.jsonl", {"m": good}, {"m": [*good, *good]}, {"m": turns})
    task = dataset(path, heldout=1, messages="m")
    assert len(task.train_problems()) == 1
    assert "a.jsonl:3: " in task.notes()[0]


def test_a_reference_of_a_conversation_has_no_reasoning(tmp_path):
    said = ["<think>Hm.</think>\n0", "<think>Hm.</think>\n1", "2", "<think>Hm.</think>"]
    rows = [
        {"chat": [{"from": "human", "value": str(n)}, {"from": "gpt", "value": text}]}
        for n, text in enumerate(said)
    ]
    task = dataset(write(tmp_path / "a.jsonl", *rows), messages="chat", heldout=1)
    assert sorted(answer for _, answer in both(task)) == ["0", "1", "2"]
    assert "its last assistant turn is nothing but reasoning" in task.notes()[0]


@pytest.mark.parametrize(
    ("answer", "verifier", "reason"),
    [
        ("<think>Hm.</think>4", "exact", "is not accepted as an answer by task.verifier=exact"),
        (
            {"text": ["Paris"], "start": [1]},
            "exact",
            "its answer is an object, which only task.verifier=json",
        ),
        (["Paris"], "exact", "its answer is a list, which only task.verifier=json"),
        ("4 or 5", "numeric", "is not a single number"),
    ],
)
def test_an_answer_that_its_verifier_does_not_accept_is_left_out(answer, verifier, reason, tmp_path):
    good = [{"prompt": str(n), "answer": n} for n in range(3)]
    path = write(tmp_path / "a.jsonl", *good, {"prompt": "x", "answer": answer})
    task = dataset(path, verifier=verifier, heldout=1)
    assert len(both(task)) == 3
    assert reason in task.notes()[0]


@pytest.mark.parametrize("answer", [1e-5, 1e16, "1/2", "3 1/2", "1e-05"])
def test_numbers_of_every_spelling_are_references(answer, tmp_path):
    rows = [{"prompt": str(n), "answer": answer} for n in range(3)]
    task = dataset(write(tmp_path / "a.jsonl", *rows), verifier="numeric", heldout=1)
    assert (len(both(task)), list(task.notes())) == (3, [])
