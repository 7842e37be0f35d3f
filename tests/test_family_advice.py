"""What the doctor says to type is taken by gspo-train, whatever the algorithm of the run."""

from __future__ import annotations

import copy
import re
from functools import reduce
from operator import getitem

import pytest
import yaml

from gspo_cli.config.paths import CONF_DIR
from gspo_cli.config.stored import stored_config
from gspo_cli.diagnosis.diagnosis import diagnose
from gspo_cli.diagnosis.guide import guide
from gspo_cli.diagnosis.history import History
from gspo_cli.errors import UserError
from tests.support.diagnosed_runs import settings
from tests.test_diagnosis import FAULTS, with_fault

NAMES = sorted(path.stem for path in (CONF_DIR / "algorithm").glob("*.yaml"))
VARIANTS = {
    **{name: [f"algorithm={name}"] for name in NAMES},
    "parts": ["algorithm.advantage_parts=each"],
    "long": ["algorithm.overlong_buffer=0.2"],
    "by turn": ["algorithm=gspo_token", "algorithm.credit=turn"],
    "critic by turn": ["algorithm=a2c", "algorithm.credit=turn", "algorithm.value.coefficient=0"],
    "one answer": ["algorithm=ppo", "training.num_generations=1"],
    "ipo": ["algorithm=dpo", "algorithm.preference=ipo"],
    "unscaled": ["algorithm=reinforce_pp", "algorithm.advantage_scale=none"],
}
TYPED = re.compile(r"\b[a-z]+(?:\.[a-z_]+)+=[^\s,;()]*[^\s,;()<>.:]")


def changed(config, overrides):
    """A configuration with these settings. Raises UserError where a group refuses them."""
    values = copy.deepcopy(config.plain)
    for setting in overrides:
        key, _, value = setting.partition("=")
        *groups, name = key.split(".")
        reduce(getitem, groups, values)[name] = yaml.safe_load(value)
    return stored_config(values, "config.yaml")


@pytest.mark.parametrize("variant", VARIANTS)
def test_all_that_is_proposed_can_be_typed(variant):
    own, refused = settings(*VARIANTS[variant]), {}
    for rule, (_, _, _, overrides, _) in FAULTS.items():
        if overrides == ["algorithm=ppo"] and not own.algorithm.has_critic:
            continue
        try:
            config = changed(own, [text for text in overrides if text != "algorithm=ppo"])
        except UserError:
            continue  # what shows the fault has no meaning here
        lines = with_fault(rule, iterations=24)
        findings = diagnose(config, lines)
        texts = [text for f in findings for text in (" ".join(f.settings), *TYPED.findall(f.fix))]
        texts += [text for a in guide(History(config, lines), findings, None) for text in a.fix.split(", ")]
        for typed in {tuple(TYPED.findall(text)) for text in texts}:
            try:
                changed(config, typed)
            except UserError as error:
                refused[typed] = f"{rule}: {error}"
    assert refused == {}
