"""The shop's customer: what they understand, what they say yes to, and what settles a request."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gspo_cli.tasks.customer_service import user
from gspo_cli.tasks.customer_service.database import read_orders
from gspo_cli.tasks.customer_service.environment import goal_orders
from gspo_cli.tasks.customer_service.listening import listen
from gspo_cli.tasks.customer_service.scenario import Action
from gspo_cli.tasks.customer_service.user import (
    GIVES_UP,
    HELDOUT_REQUESTS,
    PATIENCE,
    PUZZLED,
    REQUESTS,
    Mood,
    draw_wording,
    is_answer,
    is_true_answer,
)
from tests.support.growth import grows_linearly
from tests.support.shop_conversations import (
    CANCEL,
    MIA,
    MOVE,
    ORDERS,
    REFUND,
    REFUSED_CANCEL,
    REFUSED_REFUND,
    STATUS,
    opened,
    scenario,
)


def react(request, text, mood=None):
    asked = scenario(request)
    wording = draw_wording(asked, 0)
    return user.react(asked, wording, mood or Mood(), text), wording


ASKED_TO_CANCEL = [
    "I found order 482, a lamp for 40 dollars. It is still pending, so it can be cancelled. "
    "Do you want me to go ahead?",
    "I see that order 482 has not been shipped yet. Shall I cancel it?",
    "Order 482 has not been cancelled yet. Shall I cancel it?",
    "I can cancel order 482 for you. Would you like me to proceed?",
    "I will cancel order 482 and refund 40 dollars. Is that okay?",
    "To confirm, I will cancel order 482. Is that correct?",
    "I'm ready to cancel order 482. Please say yes to continue.",
    "Should I cancel order 482 and send you a refund of 40 dollars?",
    "You have orders 482, 517 and 603. Shall I cancel order 482?",
    "Shall I cancel order no. 482, for the lamp to rome?",
    "I understand you'd like to cancel order 482. Can you please confirm this action?",
    "Since order 482 hasn't been shipped, it can still be cancelled. Would you like me to do that?",
    "Before I proceed, could you confirm that you'd like order 482 cancelled?",
]
ASKED_TO_REFUND = [
    "I can refund order 517. Shall I go ahead?",
    "Order 517 qualifies for a refund of 15 dollars. Do you want me to proceed?",
    "Should I send the 15 dollars back to you for order 517?",
    "I'm sorry order 517 is broken. I can send you a refund of 15 dollars. Okay?",
]
ASKED_TO_MOVE = [
    "I can update the address of order 482 to Paris. Shall I proceed?",
    "Order 482 is pending and currently going to Rome. Should I change it to Paris?",
    "Please confirm that order 482 should be sent to Paris.",
    "You want order 482 to be delivered to Paris instead of Rome, correct?",
    "Can I go ahead and update order 482 to ship to Paris?",
    "To confirm, you'd like order 482 moved from Rome to Paris?",
    "Would you like me to change the city of order 482 to Paris?",
    "I will change the delivery city for order 482 from rome to paris. Do you agree?",
    "Should I change the destination of order 482 to Paris?",
]


@pytest.mark.parametrize(
    ("request_", "text"),
    [
        (CANCEL, "shall i cancel order 482?"),
        (CANCEL, "Your order #482 is pending. Shall I cancel it?"),
        (CANCEL, "Shall I cancel order 482 and refund 40 dollars?"),
        (CANCEL, "Please confirm that I should cancel order 482."),
        (REFUND, "shall i refund order 517 for you?"),
        (MOVE, "shall i move order 482 to paris?"),
        (MOVE, "Do you want me to change the address of order 482 to Paris?"),
        *((CANCEL, text) for text in ASKED_TO_CANCEL),
        *((REFUND, text) for text in ASKED_TO_REFUND),
        *((MOVE, text) for text in ASKED_TO_MOVE),
    ],
)
def test_the_customer_agrees_to_their_own_wish(request_, text):
    answer, wording = react(request_, text)
    assert answer.text == wording.consent
    assert answer.mood.agreed == {request_}
    assert not answer.done


@pytest.mark.parametrize(
    ("request_", "text"),
    [
        (CANCEL, "shall i cancel order 517?"),
        (CANCEL, "shall i cancel orders 482 and 517?"),
        (CANCEL, "shall i refund order 482?"),
        (CANCEL, "shall i cancel, refund or move order 482?"),
        (REFUND, "shall i cancel order 517?"),
        (REFUND, "shall i cancel and refund order 517?"),
        (MOVE, "shall i move order 482?"),
        (MOVE, "shall i move order 482 to oslo?"),
        (MOVE, "shall i move order 482 to oslo or paris?"),
        (STATUS, "shall i cancel order 603?"),
        (CANCEL, "shall i cancel your order?"),
        (CANCEL, "shall i not cancel order 482?"),
        (CANCEL, "shall i keep order 482 instead of cancelling it?"),
        (CANCEL, "I will not cancel order 482. Is that okay?"),
        (CANCEL, "I can cancel, refund or move order 482. Shall I proceed?"),
        (CANCEL, "I can cancel orders 482 and 517. Shall I proceed?"),
        (CANCEL, "I can refund order 482. Shall I go ahead?"),
        (CANCEL, "shall i cancel order 482 or send it to oslo?"),
        (MOVE, "I can move order 482 to Oslo. Shall I proceed?"),
        (MOVE, "Shall I move order 482 from Paris to Oslo?"),
        (STATUS, "I can cancel order 603. Is that okay?"),
    ],
)
def test_the_customer_says_no_to_anything_else_and_repeats_the_wish(request_, text):
    answer, wording = react(request_, text)
    assert answer.text == f"no, {wording.requests[0]}"
    assert answer.mood == Mood()


def test_the_customer_gives_the_email_when_asked_for_it():
    answer, wording = react(CANCEL, "may i have your email?")
    assert answer.text == wording.email
    assert MIA in answer.text
    again, _ = react(CANCEL, "what is your e-mail address?", answer.mood)
    assert (again.text, again.mood.clarifications) == (wording.email, 1)


@pytest.mark.parametrize(
    "text",
    [
        "Could you tell me your email so I can find your account and cancel order 482?",
        "Order 482 is delivered, I think. What is your e-mail address?",
        "Could you verify your account by giving me your registered mail address?",
    ],
)
def test_asked_for_the_email_beside_something_else_the_customer_gives_it_first(text):
    answer, wording = react(CANCEL, text)
    assert (answer.text, answer.mood) == (wording.email, Mood(email_given=True))


@pytest.mark.parametrize(
    "text", ["how can i help you?", "What can I do for you today?", "which order is it?"]
)
def test_asked_what_they_want_the_customer_repeats_it(text):
    answer, wording = react(CANCEL, text)
    assert (answer.text, answer.mood) == (wording.requests[0], Mood())


@pytest.mark.parametrize("text", ["", "hm", "yes", "cancel order 482", "Lorem ipsum.", "\x00\x07", "42"])
def test_what_is_not_understood_gets_one_clarification_and_the_third_ends_it(text):
    mood = Mood()
    for count in range(1, PATIENCE):
        answer, wording = react(CANCEL, text, mood)
        mood = answer.mood
        assert (answer.text, mood.clarifications) == (PUZZLED + wording.requests[0], count)
    answer, _ = react(CANCEL, text, mood)
    assert (answer.text, answer.done) == (GIVES_UP, True)


@pytest.mark.parametrize(
    ("request_", "text", "asks"),
    [
        (CANCEL, "order 482 is cancelled.", "how many dollars"),
        (REFUND, "I have refunded order 517.", "how many dollars"),
        (MOVE, "order 482 is moved.", "where does order 482 go"),
    ],
)
def test_a_report_that_lacks_a_part_is_asked_about(request_, text, asks):
    answer, _ = react(request_, text)
    assert answer.text.startswith(asks)
    assert not answer.answered


TRUE = [
    (CANCEL, "your order 482 is cancelled, 40 dollars are refunded."),
    (CANCEL, "I have canceled order #482 and refunded $40.00. Anything else?"),
    (REFUND, "your 15 dollars for order 517 are refunded."),
    (REFUND, "A refund of $15 has been issued for your delivered order 517."),
    (MOVE, "your order 482 is moved to paris."),
    (MOVE, "Done! Order 482 will now be delivered to Paris."),
    (STATUS, "your order 603 is shipped."),
    (STATUS, "Order 603 (90 dollars) is shipped and goes to Lima. We write to mia27@mail.com!"),
    (REFUSED_CANCEL, "sorry, order 603 is shipped, so i cannot cancel it."),
    (REFUSED_CANCEL, "Sorry, order 603 can't be cancelled: it has already shipped."),
    (REFUSED_REFUND, "sorry, order 482 is pending, so i cannot refund it."),
    (CANCEL, "Order 482 is cancelled and you will get 40 dollars back within 5-7 business days."),
    (CANCEL, "Your order 482 was pending and is now cancelled. 40 dollars were refunded."),
    (CANCEL, "Order 482 has been cancelled. You won't be charged; 40 dollars are refunded."),
    (CANCEL, "Order 482 is cancelled, 40 dollars are refunded. Don't hesitate to reach out."),
    (CANCEL, "The cancellation of order 482 is complete, and 40 dollars have been refunded."),
    (CANCEL, "I would like to inform you that order 482 is cancelled and 40 dollars are refunded."),
    (REFUND, "You will receive a refund of 15 dollars for order 517."),
    (REFUND, "I've sent you the refund of 15 dollars for order 517. It may take 3 to 5 days."),
    (REFUND, "The refund for order 517 is complete. You will receive 15 dollars."),
    (REFUND, "The refund of 15 dollars for order 517 was successful."),
    (REFUND, "Your refund for order 517 has been initiated, 15 dollars will be returned."),
    (REFUND, "I'm sorry that order 517 wasn't right. 15 dollars have been refunded."),
    (MOVE, "Order 482 will now be delivered to Paris."),
    (MOVE, "Order 482 will be shipped to Paris instead of Rome."),
    (MOVE, "Order 482 has been moved from Rome to Paris."),
    (MOVE, "The shipping address for order 482 is now Paris."),
    (MOVE, "I've sent order 482 to Paris as requested."),
    (STATUS, "Your order 603 has been shipped but not yet delivered."),
    (STATUS, "Order 603 is shipped. It should be delivered in a few days."),
    (STATUS, "Order 603 is no longer pending; it has been shipped."),
    (STATUS, "It was shipped! Order 603 is on its way."),
    (REFUSED_CANCEL, "Order 603 has already been shipped. Only pending orders can be cancelled."),
    (REFUSED_CANCEL, "Sorry, order 603 is shipped, not pending, so I am unable to cancel it."),
    (REFUSED_CANCEL, "Order 603 is already shipped. Once it is delivered, you can ask for a refund."),
    (REFUSED_CANCEL, "I cannot cancel shipped order 603."),
    (REFUSED_CANCEL, "We can only cancel orders that are pending. Order 603 is shipped."),
    (REFUSED_CANCEL, "Order 603 is shipped, so I can't cancel it. Shall I cancel another order?"),
    (REFUSED_REFUND, "Order 482 is pending and not eligible for a refund until it is delivered."),
    (REFUSED_REFUND, "Sorry, only delivered orders can be refunded, and order 482 is still pending."),
]
UNTRUE = [
    (CANCEL, "your order 482 is cancelled, 90 dollars are refunded."),
    (CANCEL, "order 482 is shipped, so i cannot cancel it."),
    (REFUND, "your 40 dollars for order 517 are refunded."),
    (REFUND, "order 517 is pending, so i cannot refund it."),
    (MOVE, "your order 482 is moved to oslo."),
    (STATUS, "order 603 is pending."),
    (STATUS, "order 603 is shipped to lima or oslo."),
    (REFUSED_CANCEL, "order 603 is delivered, so i cannot cancel it."),
    (REFUSED_CANCEL, "order 603 is cancelled, 90 dollars are refunded."),
    (REFUSED_REFUND, "order 482: 40 dollars are refunded."),
    (REFUSED_REFUND, "order 482 is pending, 40 dollars are refunded."),
    (REFUSED_REFUND, "order 482 is pending. you will receive a refund of 40 dollars."),
    (REFUSED_CANCEL, "order 603 is shipped. the cancellation is complete."),
    (MOVE, "order 482 is moved from paris to oslo."),
]
NO_ANSWER = [
    (CANCEL, "orders 482 and 517 are cancelled, 40 dollars are refunded."),
    (CANCEL, "482 cancelled, 10 15 20 25 30 35 40 dollars refunded"),
    (CANCEL, "order 482 is not cancelled, 40 dollars are not refunded."),
    (MOVE, "order 482 is moved to paris, oslo, rome."),
    (STATUS, "order 603 is pending, shipped, delivered."),
    (STATUS, "482 pending, 517 delivered, 603 shipped"),
    (STATUS, "is order 603 shipped?"),
    (STATUS, "your order is shipped."),
    (REFUSED_CANCEL, "sorry, i cannot cancel order 603."),
    (REFUSED_CANCEL, "order 603 is shipped or delivered, so i cannot cancel it."),
    (REFUSED_CANCEL, "order 603 is shipped and will be cancelled."),
    (CANCEL, "order 482 can be cancelled, 40 dollars could be refunded."),
    (CANCEL, "order 482 is to be cancelled for 40 dollars."),
    (CANCEL, "you would like order 482 cancelled for 40 dollars."),
    (CANCEL, "order 482 has not been shipped yet."),
    (CANCEL, "order 482 has not been delivered or shipped."),
    (REFUND, "a refund of 15 dollars for order 517 can be issued."),
    (REFUND, "you will receive a refund of 15 dollars for order 517 once you confirm."),
    (MOVE, "order 482 will be delivered to rome."),
    (STATUS, "order 603 is not shipped."),
    (STATUS, "order 603 should be delivered soon."),
]


@pytest.mark.parametrize(("request_", "text"), TRUE)
def test_a_true_answer_settles_the_request(request_, text):
    answer, wording = react(request_, text)
    assert (answer.answered, answer.done, answer.text) == (True, True, wording.thanks)
    assert is_true_answer(request_, listen(text).said, goal_orders(scenario(request_))[request_.order])


@pytest.mark.parametrize(("request_", "text"), UNTRUE)
def test_the_customer_believes_an_untrue_answer_and_it_does_not_count(request_, text):
    answer, _ = react(request_, text)
    assert answer.answered
    assert not is_true_answer(request_, listen(text).said, goal_orders(scenario(request_))[request_.order])


@pytest.mark.parametrize(("request_", "text"), NO_ANSWER)
def test_listing_asking_and_offering_is_no_answer(request_, text):
    assert not is_answer(request_, listen(text).said)


def test_who_has_said_yes_hears_a_report_whatever_is_asked_behind_it():
    text = "Order 482 is cancelled, 40 dollars are refunded. Is that cancellation okay?"
    assert react(CANCEL, text, Mood(agreed=frozenset({CANCEL})))[0].answered
    assert not react(CANCEL, text)[0].answered


def test_after_an_answer_the_customer_states_the_next_request():
    wishes = scenario(STATUS, CANCEL)
    wording = draw_wording(wishes, 0)
    answer = user.react(wishes, wording, Mood(), "your order 603 is shipped.")
    assert answer.text == wording.next + wording.requests[1]
    assert (answer.mood.current, answer.done) == (1, False)


def test_words_vary_with_the_seed_and_only_with_it():
    wishes = scenario(CANCEL, MOVE)
    assert draw_wording(wishes, 3) == draw_wording(wishes, 3)
    assert len({draw_wording(wishes, seed) for seed in range(50)}) > 25
    heldout = replace(wishes, heldout=True)
    train = {phrase for seed in range(50) for phrase in draw_wording(wishes, seed).requests}
    assert train.isdisjoint(phrase for seed in range(50) for phrase in draw_wording(heldout, seed).requests)


def test_heldout_phrases_are_new_and_their_words_are_not():
    known, new = (sum(table.values(), ()) for table in (REQUESTS, HELDOUT_REQUESTS))
    assert set(known).isdisjoint(new)
    for action, phrases in HELDOUT_REQUESTS.items():
        words = {word.strip(",?") for phrase in phrases for word in phrase.split()}
        assert words <= {word.strip(",?") for phrase in known for word in phrase.split()}
        keyword = "where" if action is Action.status else action.value
        assert all(keyword in phrase for phrase in (*phrases, *REQUESTS[action]))


@pytest.mark.parametrize(
    "unit",
    [
        "a",
        "1",
        "1.",
        "? ",
        " ",
        "\n",
        "@",
        "a@",
        "482 ",
        "shall i cancel?",
        ". ",
        "not ",
        "can be cancelled ",
        "1-1 ",
    ],
)
def test_understanding_takes_time_linear_in_the_text(unit):
    assert grows_linearly(lambda size: listen(unit * (size // len(unit))), 2_500)


def test_the_goal_state_grants_what_statuses_allow_and_nothing_else():
    goal = goal_orders(scenario(CANCEL, REFUND, REFUSED_CANCEL))
    assert goal[482] == ORDERS[0]._replace(status="cancelled", refunded=40)
    assert goal[517] == ORDERS[1]._replace(refunded=15)
    assert (goal[603], goal[700]) == ORDERS[2:]
    assert goal_orders(scenario(MOVE))[482].city == "paris"
    assert scenario(CANCEL, REFUSED_CANCEL, MOVE).goal() == "cancel 482; tell 603 shipped; move 482 to paris"


def test_an_answer_counts_only_once_the_tools_have_shown_the_order_and_the_change_is_made():
    for request, before, counts in [
        (STATUS, [], 0),
        (STATUS, [f"/find_customer {MIA}"], 1),
        (STATUS, ["/get_order 603"], 0),
        (STATUS, ["/find_customer 603"], 0),
        (STATUS, [f"/find_customer {MIA}", "/get_order 603"], 1),
        (CANCEL, [f"/find_customer {MIA}"], 0),
        (CANCEL, [f"/find_customer {MIA}", "shall i cancel order 482?", "/cancel_order 482"], 1),
    ]:
        shop = opened(request)
        told = next(text for asked, text in TRUE if asked == request)
        step = [shop.step(text) for text in [*before, told]][-1]
        assert (step.done, step.progress["facts"]) == (True, counts)
        assert read_orders(shop.connection) == shop.orders
        assert shop.finish().solved is bool(counts)
