"""What is typed in a command is read back as the value that it stands for."""

from __future__ import annotations

import itertools
import shlex

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from gspo_cli.compare.arms import overrides
from gspo_cli.config.compose import composed
from gspo_cli.config.typed import is_typeable, override
from tests.support.stored_runs import changed, stored_run

WORDS = ["null", "NULL", "true", "False", "1e5", "10", "1_000", "-3", "+.5", ".5", "1.", "inf", "-NaN", "0x1"]
PLAIN = [
    "",
    "gspo",
    "a/b.c",
    "../runs",
    "v1.2",
    "2026-01-01",
    "a=b,c",
    "é ö",
    "f(x)",
    "[1]",
    "{a:1}",
    "$x",
    "~",
]
HOSTILE = [
    "C:\\dir",
    "C:\\dir\\",
    "???",
    "${oc.env:HOME}",
    "\\${seed}",
    "\\\\${a}",
    "a\nb\t",
    "'; touch X; '",
    "$(X)",
]
MIXED = [
    "".join(parts)
    for n in range(4)
    for parts in itertools.product(["\\", '"', "'", "${", "}", "a"], repeat=n)
]
OTHERS = [None, True, 3, -2.5, 1e-05, 1e16, [], {}, [1, [2.0, None]], {"a": {"b": "null"}}]


def read(text):
    """The value of an override once it is composed, and the type of each part."""
    node = OmegaConf.create({})
    OmegaConf.update(node, "k", OverridesParser.create().parse_override(text).value(), force_add=True)
    return repr(OmegaConf.to_container(node, resolve=True)["k"])


@pytest.mark.parametrize("values", [WORDS, PLAIN, HOSTILE, MIXED, OTHERS], ids=["w", "p", "h", "m", "o"])
def test_an_override_reads_back_as_its_value_to_the_type_alone_in_a_list_and_in_a_sweep(values):
    for value in [*values, list(values), [{"inner": value} for value in values]]:
        (typed,) = shlex.split(override("k", value))
        assert read(typed) == repr(value)
        in_a_sweep = OverridesParser.create().parse_override(typed).get_value_element_as_str()
        assert read(f"k={in_a_sweep}") == repr(value)


def test_a_word_needs_no_quotes():
    assert override("task", "arithmetic") == "task=arithmetic"
    assert override("resume", "outputs/2026-01-01/12-00-00") == "resume=outputs/2026-01-01/12-00-00"


def test_a_command_that_reproduces_a_run_reads_nothing_of_who_copies_it(monkeypatch):
    monkeypatch.setenv("SECRET", "of-the-reader")
    note = "https://example.org/?${oc.env:SECRET}"
    run = changed(stored_run("grpo", 3, 20), task__note=note, task__other="1e5")
    task = composed(shlex.split(" ".join(overrides(run)))).task
    assert (task.note, task.other) == (note, "1e5")


@pytest.mark.parametrize("key", ["a b", "null", "1", 1, "${a}"])
def test_a_mapping_whose_keys_cannot_be_typed_is_left_to_the_saved_configuration(key):
    assert not is_typeable([{"a": [{key: 1}]}])
    assert overrides(changed(stored_run("grpo", 3, 20), task__note=[{key: 1}])) is None
