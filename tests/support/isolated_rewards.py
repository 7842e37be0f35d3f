"""Rewards for processes of their own. They import no more than rewards do: each process imports this anew."""

from __future__ import annotations

import os
import signal
import threading

from gspo_cli.errors import UserError
from gspo_cli.rewards.base import RewardFunction
from gspo_cli.types import RewardResult


class Length(RewardFunction):
    def compute_reward(self, trajectory, turn, context):
        return RewardResult(len(turn.content) / 10, {"part": 0.5}, {"seen": turn.content}, solved=True)


class LengthLater(RewardFunction):
    async def compute_reward(self, trajectory, turn, context):
        return RewardResult(len(turn.content) / 10)


class Acts(RewardFunction):
    """Does what the answer says."""

    def compute_reward(self, trajectory, turn, context):
        match turn.content:
            case "hang":
                while True:
                    pass
            case "die":
                os._exit(3)
            case "crash":
                os.kill(os.getpid(), signal.SIGSEGV)
            case "exit":
                raise SystemExit(0)
            case "interrupt":
                raise KeyboardInterrupt
            case "unreadable":
                return RewardResult(1.0, metadata={"error": Unreadable("a", "b")})
            case "odd":
                return RewardResult(1.0, metadata={"lock": threading.Lock()})
        return RewardResult(1.0)


class Unreadable(Exception):
    """Its arguments are not those that it is made anew with."""

    def __init__(self, one, two):
        super().__init__(one)


class Batches(RewardFunction):
    def compute_rewards(self, trajectories):
        return [RewardResult(float(len(trajectories)))] * len(trajectories)


class Refuses(RewardFunction):
    def __init__(self):
        raise UserError("reward: needs a key")


class Dies(RewardFunction):
    def __init__(self):
        os._exit(7)
