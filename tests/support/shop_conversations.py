"""A small shop to test with, and conversations in it."""

from __future__ import annotations

from gspo_cli.tasks.customer_service.environment import ShopEnvironment
from gspo_cli.tasks.customer_service.scenario import Action, CustomerRequest, Order, ShopScenario, to_json
from gspo_cli.types import FinishReason, Message, Problem, Trajectory

MIA, LEO = "mia27@mail.com", "leo31@mail.com"
ORDERS = (
    Order(482, MIA, "lamp", 40, "rome", "pending"),
    Order(517, MIA, "mug", 15, "oslo", "delivered"),
    Order(603, MIA, "desk", 90, "lima", "shipped"),
    Order(700, LEO, "lamp", 40, "paris", "pending"),
)
CANCEL, REFUND = CustomerRequest(Action.cancel, 482), CustomerRequest(Action.refund, 517)
MOVE, STATUS = CustomerRequest(Action.move, 482, "paris"), CustomerRequest(Action.status, 603)
REFUSED_CANCEL, REFUSED_REFUND = CustomerRequest(Action.cancel, 603), CustomerRequest(Action.refund, 482)


def scenario(*requests):
    return ShopScenario(MIA, requests, (LEO, MIA), (("lamp", 40), ("mug", 15), ("desk", 90)), ORDERS)


def problem_of(*requests):
    return Problem("one", (), metadata=to_json(scenario(*requests)))


def opened(*requests):
    shop = ShopEnvironment()
    shop.reset(problem_of(*requests), 0)
    return shop


def play(problem, agent, seed=0, turns=14):
    """A whole conversation of `agent`, messages -> text, as a judge gets it."""
    shop, progress = ShopEnvironment(), []
    messages = list(shop.reset(problem, seed))
    for _ in range(turns):
        messages.append(Message("assistant", agent(messages)))
        step = shop.step(messages[-1].content)
        progress.append(step.progress)
        messages.extend(step.messages)
        if step.done:
            break
    return Trajectory(
        *(problem, [], [], [], [], messages, FinishReason.stop),
        turn_rewards=[0.0] * len(progress),
        progress=progress,
        outcome=shop.finish(),
    )
