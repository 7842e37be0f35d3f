"""Configurations of tests. Composing one takes a sixth of a second, so that equal ones are composed once."""

from __future__ import annotations

import copy
from functools import cache

import pytest
from hydra import compose, initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig

from gspo_cli.config.compose import CONF_DIR
from gspo_cli.errors import UserError

GROUPS = {path.name for path in CONF_DIR.iterdir() if path.is_dir()}


@cache
def composed(*overrides: str) -> DictConfig:
    """conf/train.yaml under `overrides`; only to be read."""
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        return compose("train", overrides=list(overrides))


def composed_from_parts(*overrides: str) -> DictConfig:
    """The same as `composed`, in a third of the time where the options of groups were composed before."""
    options = [text for text in overrides if text.partition("=")[0] in GROUPS]
    node = copy.deepcopy(composed(*options))
    values = OverridesParser.create().parse_overrides([text for text in overrides if text not in options])
    ConfigLoaderImpl._apply_overrides_to_config(values, node)
    return node


def assert_refused(configure, overrides, sentence):
    """`configure(*overrides)` is refused in one sentence, which the regular expression `sentence` finds."""
    with pytest.raises(UserError, match=sentence) as error:
        configure(*overrides)
    assert "\n" not in str(error.value)
