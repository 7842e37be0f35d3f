"""Scoring writes one reward per conversation whose turns add up to it, and a failure is never a reward."""

from __future__ import annotations

import asyncio
import inspect
import signal
import threading
import warnings

import pytest

from gspo_cli.concurrency import TookTooLong, gather
from gspo_cli.config.choices import RewardErrors
from gspo_cli.errors import UserError
from gspo_cli.rewards.base import RewardError, RewardFunction, build
from gspo_cli.rewards.scoring import score, score_all, validate
from gspo_cli.types import FinishReason, Message, Problem, RewardResult, Trajectory


def conversation(turns=1, turn_rewards=None, answer="yes"):
    """A trajectory of `turns` agent turns, as a rollout leaves it."""
    messages = [Message("user", "?"), Message("assistant", answer)] * turns
    earned = [0.0] * turns if turn_rewards is None else turn_rewards
    problem = Problem("p", (Message("user", "?"),), "yes")
    return Trajectory(problem, [], [], [], [], messages, FinishReason.stop, turn_rewards=earned)


class Returns(RewardFunction):
    """Returns what it was made with."""

    def __init__(self, result):
        self.result = result

    def compute_reward(self, trajectory, turn, context):
        return self.result


class Slow(RewardFunction):
    """Waits `seconds` and remembers how many waited with it."""

    def __init__(self, seconds):
        self.seconds, self.running, self.most = seconds, 0, 0

    async def compute_reward(self, trajectory, turn, context):
        self.running += 1
        self.most = max(self.most, self.running)
        await asyncio.sleep(self.seconds)
        self.running -= 1
        return RewardResult(1.0)


class Clears(RewardFunction):
    """Empties every list of the conversation that it is given."""

    def compute_reward(self, trajectory, turn, context):
        for value in vars(trajectory).values():
            if isinstance(value, list):
                value.clear()
        return RewardResult(1.0)


def test_a_reward_that_changes_the_conversation_changes_nothing_that_is_trained():
    scored = conversation(turns=2)
    scored.token_ids, scored.action_mask = [1, 2, 3], [False, True, True]
    score_all(Clears(), [scored], RewardErrors.stop)
    assert (scored.token_ids, scored.action_mask) == ([1, 2, 3], [False, True, True])
    assert len(scored.messages) == 4
    assert scored.turn_rewards == [0.0, 1.0]


@pytest.mark.parametrize(
    ("environment", "turn_rewards", "total", "expected"),
    [
        ([0.0, 0.0, 0.0], (), 0.9, [0.0, 0.0, 0.9]),
        ([0.0, 0.0, 0.0], (0.5, 0.1, 0.3), 0.9, [0.5, 0.1, 0.3]),
        ([0.0, 0.0, 0.0], (0.5,), 0.9, [0.5, 0.0, 0.4]),
        ([0.1, 0.0, -0.2], (0.5,), 0.9, [0.6, 0.0, 0.2]),
        ([0.0, 0.0], (-0.3, 0.1), 0.0, [-0.3, 0.3]),  # a bounded total: the rest falls to the last turn
        ([], (), 0.9, []),
    ],
)
def test_turns_add_up_to_the_reward(environment, turn_rewards, total, expected):
    trajectory = conversation(len(environment), environment)
    result = RewardResult(total, {"part": 0.2}, turn_rewards=turn_rewards)
    score_all(Returns(result), [trajectory], RewardErrors.stop)
    assert trajectory.turn_rewards == pytest.approx(expected)
    assert trajectory.reward == pytest.approx(total + sum(environment))
    assert trajectory.components == {"part": 0.2}


@pytest.mark.parametrize(
    ("total", "says", "solved"),
    [(1.0, None, True), (0.99, None, True), (0.98, None, False), (0.2, True, True), (1.0, False, False)],
)
def test_solved_is_what_the_reward_says_or_a_total_near_1(total, says, solved):
    trajectory = conversation()
    score_all(Returns(RewardResult(total, solved=says)), [trajectory], RewardErrors.stop)
    assert trajectory.solved is solved


@pytest.mark.parametrize(
    ("result", "reason"),
    [
        (RewardResult(1.0, turn_rewards=(0.1, 0.2)), "returned 2 turn_rewards for 1 turns"),
        (RewardResult(1.0, turn_rewards=(float("nan"),)), r"turn_rewards\[0\] that is not finite"),
        (RewardResult(1.0, turn_rewards=("much",)), "not a number"),
        ({"total": 1.0}, "returned dict, not RewardResult"),
    ],
)
def test_an_unusable_result_is_an_error_and_no_reward(result, reason):
    with pytest.raises(RewardError, match=reason):
        validate(Returns(result), conversation(), *score(Returns(result), [conversation()]))
    trajectory = conversation()
    score_all(Returns(result), [trajectory], RewardErrors.exclude)
    assert trajectory.reward is None
    assert trajectory.excluded.startswith("Returns returned")
    with pytest.raises(UserError, match=r"reward: Returns .*training\.reward_errors=exclude"):
        score_all(Returns(result), [conversation()], RewardErrors.stop)


def test_plain_rewards_run_where_they_are_called_and_awaited_ones_elsewhere():
    class Here(RewardFunction):
        def compute_reward(self, trajectory, turn, context):
            return RewardResult(float(threading.current_thread() is threading.main_thread()))

    class There(RewardFunction):
        async def compute_reward(self, trajectory, turn, context):
            return RewardResult(float(threading.current_thread() is threading.main_thread()))

    for reward, expected in ((Here(), 1.0), (There(), 0.0)):
        trajectory = conversation()
        score_all(reward, [trajectory], RewardErrors.stop)
        assert trajectory.reward == expected


def test_awaited_rewards_overlap_up_to_the_limit():
    reward, trajectories = Slow(0.01), [conversation() for _ in range(10)]
    score_all(reward, trajectories, RewardErrors.stop, limit=4)
    assert reward.most == 4
    assert [t.reward for t in trajectories] == [1.0] * 10


def test_a_reward_that_takes_too_long_is_excluded_and_says_so():
    trajectory = conversation()
    score_all(Slow(5), [trajectory], RewardErrors.exclude, timeout=0.02)
    assert trajectory.excluded == "Slow took longer than 0.02 s"
    assert (trajectory.reward, trajectory.turn_rewards) == (None, [0.0])


def test_scoring_works_inside_a_running_loop():
    async def notebook():
        trajectory = conversation()
        score_all(Slow(0), [trajectory], RewardErrors.stop)
        return trajectory.reward

    assert asyncio.run(notebook()) == 1.0


def test_a_reward_may_judge_in_batches_and_must_judge_all():
    class Batched(RewardFunction):
        def compute_rewards(self, trajectories):
            return [RewardResult(float(len(trajectories))) for _ in trajectories]

    class Short(RewardFunction):
        def compute_rewards(self, trajectories):
            return [RewardResult(1.0)]

    trajectories = [conversation(), conversation(), conversation()]
    trajectories[1].excluded = "its environment failed"
    score_all(Batched(), trajectories, RewardErrors.stop)
    assert [t.reward for t in trajectories] == [2.0, None, 2.0]
    with pytest.raises(UserError, match="Short returned 1 results for 2 conversations"):
        score_all(Short(), [conversation(), conversation()], RewardErrors.stop)


def test_results_and_exceptions_keep_the_order_of_the_jobs():
    async def job(place):
        await asyncio.sleep(0.003 * (3 - place))
        if place == 1:
            raise ValueError("one")
        if place == 2:
            raise TimeoutError("its own")
        if place == 3:
            raise SystemExit
        return place

    found = gather([job(place) for place in range(5)], limit=5, timeout=1.0)
    assert [type(value) for value in found] == [int, ValueError, TimeoutError, RuntimeError, int]
    assert gather([job(0)], limit=1, timeout=1.0) == [0]  # the loop lives on


def test_the_time_of_a_job_starts_when_it_does():
    async def job():
        await asyncio.sleep(0.03)
        return 1

    assert gather([job() for _ in range(4)], limit=1, timeout=0.09) == [1] * 4
    [late] = gather([asyncio.sleep(5)], limit=1, timeout=0.01)
    assert isinstance(late, TookTooLong)


def test_all_calls_share_one_loop_whatever_thread_they_come_from():
    async def here():
        return asyncio.get_running_loop()

    found = []
    threads = [threading.Thread(target=lambda: found.extend(gather([here()], 1, 1.0))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 1
    assert gather([], 1, 1.0) == []


def test_a_job_that_gathers_is_told_to_await_instead():
    async def inner():
        return 1

    async def outer():
        return gather([inner()], 1, 1.0)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        [error] = gather([outer()], 1, 1.0)
    assert "use await" in str(error)


@pytest.fixture
def interruptible():
    """Ctrl-C as a shell gives it: a process started in the background is told to ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_ends_the_running_job_and_closes_those_not_started():
    ended = threading.Event()

    async def job():
        try:
            await asyncio.sleep(0.02)
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
            await asyncio.sleep(60)
        finally:
            ended.set()

    jobs = [job() for _ in range(3)]
    with pytest.raises(KeyboardInterrupt):
        gather(jobs, limit=1, timeout=60)
    assert ended.wait(5)
    for _ in range(20):  # turns of the loop in which it tidies up
        gather([asyncio.sleep(0)], limit=1, timeout=1)
    assert {inspect.getcoroutinestate(each) for each in jobs} == {"CORO_CLOSED"}


class Tuned(RewardFunction):
    """A reward with settings."""

    def __init__(self, strength, softness=0.5):
        if strength > 9:
            raise ValueError("strength is over 9")
        self.strength, self.softness = strength, softness


def test_a_reward_is_built_from_its_path_and_settings():
    reward = build(f"{__name__}.Tuned", {"strength": 2})
    assert (reward.strength, reward.softness) == (2, 0.5)
    assert isinstance(build("gspo_cli.rewards.manner.MannerReward", {}), RewardFunction)


@pytest.mark.parametrize(
    ("path", "settings", "sentence"),
    [
        (
            "Tuned",
            {"stregth": 2},
            r"reward_settings\.stregth: is not a setting of .*; its settings are strength, softness",
        ),
        ("Tuned", {}, r"reward_settings\.strength: has no value, but .*Tuned requires it"),
        ("Tuned", {"strength": 10}, r"rejects its reward_settings \(ValueError: strength is over 9\)"),
        ("Tuned", {"strength": "x"}, "rejects its reward_settings"),
        ("Slow", {"seconds": 1, "limit": 3}, r"reward_settings\.limit: .*its settings are seconds"),
        ("conversation", {}, "must be a subclass"),
        ("Absent", {}, "cannot be imported"),
    ],
)
def test_settings_that_do_not_fit_are_named(path, settings, sentence):
    with pytest.raises(UserError, match=sentence):
        build(f"{__name__}.{path}", settings)
