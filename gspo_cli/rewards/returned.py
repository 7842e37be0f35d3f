"""The reward that an agent of the user's returned itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gspo_cli.rewards.base import RewardError, RewardFunction
from gspo_cli.types import Message, RewardResult, Trajectory, as_number

RETURNED = "returned"  # what the agent returned, in the outcome's details
KEYS = ("reward", "components", "solved")


class ReturnedReward(RewardFunction):
    """What the agent returned: a number, a RewardResult, or a mapping (of a program: JSON) of its `reward`,
    and if it has them `components` by name and `solved`."""

    def compute_reward(
        self, trajectory: Trajectory, turn: Message, context: Mapping[str, Any]
    ) -> RewardResult:
        """Raises RewardError where it is none of these."""
        found = trajectory.outcome.details.get(RETURNED)
        if isinstance(found, RewardResult):
            return found
        if found is None:
            raise RewardError(
                "the agent returned no reward; return a number or a RewardResult (a program prints it as its "
                "last line), or score conversations with reward= or task.verifier="
            )
        if isinstance(found, Mapping):
            return _of_mapping(found)
        try:
            return RewardResult(as_number(found))
        except (TypeError, ValueError) as error:
            raise RewardError(f"the agent returned {found!r:.80}, which is no number") from error


def _of_mapping(found: Mapping[Any, Any]) -> RewardResult:
    unknown = [str(key) for key in found if key not in KEYS]
    if unknown or "reward" not in found:
        raise RewardError(
            f"the agent returned a mapping with {', '.join(map(str, found)) or 'nothing'}; give "
            f"{', '.join(KEYS)}, of which reward is needed"
        )
    components, solved = found.get("components") or {}, found.get("solved")
    if not isinstance(components, Mapping):
        raise RewardError(f"the agent returned components {components!r:.80}; give numbers by name")
    if not isinstance(solved, bool | None):
        raise RewardError(f"the agent returned solved {solved!r:.80}; give true or false")
    return RewardResult(found["reward"], dict(components), solved=solved)
