"""Noise earns no manner: word salad, courtesies, small talk, other languages, keyboard mashing, lists. Real
answers keep theirs."""

from __future__ import annotations

import random
import re
from statistics import fmean

import pytest

from gspo_cli.rewards.manner import WEIGHTS, manner
from gspo_cli.rewards.readability import readability
from gspo_cli.types import Message

NOTHING = 0.2  # the least of a real answer below is 0.5
REQUESTS = (
    "please refund order 482, the lamp",
    "hello, i want a phone.",
    "My order 482 arrived broken and I want my money back.",
    "the wifi of my phone keeps dropping and the network is slow",
)
NOISE = {
    "word salad": [
        "green slowly table under march the of window phone",
        "phone camera blue run seven the yesterday of under",
        "order refund lamp seven window the sorry of under into",
        "banana the quickly order of my under refund yes window very",
        "purple elephant dances quietly beneath marble justice tomorrow",
        "it the of and to a in is you that he was for on are",
        "to refund the is of order please and with for my your",
        "email window order address green number the zip of please name",
        "i you order the we refund they lamp she is of",
    ],
    "courtesies": [
        "thank you thank you thank you thank you",
        "Thank you so much. You are very welcome. Thank you. Please. Thanks.",
        "I am happy to help you. Thank you. I am glad to help you. Thank you very much.",
        "Of course! Certainly! Absolutely! My pleasure!",
        "Thank you for your patience and understanding.",
        "We appreciate your business. Thank you for choosing us. We value you as a customer.",
        "I am so sorry. I am very sorry. I apologize. I am really sorry.",
        "I understand. I am sorry to hear that. How can I help you today?",
        "I am here to help you with anything you need, please let me know.",
        "Thank you so much for your patience with order 482, we appreciate it.",
    ],
    "small talk": [
        "Well, it is what it is and that is how it goes.",
        "There are many ways to do many things and that is good.",
        "Let me know what you think about it all, okay?",
        "I hope you have a wonderful day and a great week.",
        "We are a company that cares about people and about quality.",
        "In general it can be said that things are as they are.",
        "Life is like a box of chocolates.",
        "Yes, of course.",
    ],
    "other languages": [
        "lorem ipsum dolor sit amet consectetur adipiscing elit",
        "Ich habe Ihre Bestellung 482 storniert und 40 Dollar erstattet.",
        "lo siento, no puedo cancelar el pedido porque ya fue enviado",
        "je suis une table et la fenetre est dans le jardin",
        "\u8bf7 \u53d6\u6d88 \u8ba2\u5355 \u6211 \u60f3 \u8981",
        "in die an so was no on me he do as am",
    ],
    "mashing": [
        "482 913 7 22 9 40 40 3 8",
        "$#@ %%^ &*( )_+ 12 34",
        "1 2 3 4 5 6 7 8 9 10?",
        "a b c?",
        "asdf qwer zxcv hjkl",
        "o r d e r r e f u n d",
        "order482refundlampplease",
        "ord3r r3fund l4mp pl34se n0w",
        '{"order": 482, "status": "refunded"}',
        "\u200b\u200b\u200b",
    ],
    "lists": [
        "sorry understand apologize frustrating help resolve refund replacement solution thank you",
        "refund, replace, cancel, check, find, update, confirm, ship",
        "sorry. refund. help. resolve. order. thanks.",
        "order lamp refund order lamp refund please",
        "email name order number zip phone?",
        "482 order please lamp the refund",
        "sorry order 482 sorry lamp sorry refund",
        "why? how? when? what?",
        "refund? lamp? order? 482?",
    ],
}
ANSWERS = {
    "hi, order 835 is broken, please refund it": [
        "I'm sorry to hear that your order arrived broken. May I have the email on your account?",
        "I have refunded 20 dollars for order 835. You should see it within three to five business days.",
        "Order 835 was delivered on Monday, so it qualifies for a refund. Shall I go ahead?",
        "To process your refund I need to verify your identity first. What is your zip code?",
        "Your refund is on the way.",
        "Please send us a photo of the damage so that we can file a claim with the carrier.",
    ],
    "Where is my package? It was due on Monday.": [
        "It left our warehouse in Memphis on Tuesday and is scheduled to arrive tomorrow before noon.",
        "According to the carrier, the package was left with your neighbor at 14:32.",
        "I see that your package was shipped to your old address. Would you like me to redirect it?",
    ],
    "i need a phone with a good camera. i can pay 250.": [
        "What else matters to you besides the camera?",
        "The nova weighs 150 grams, so it is quite light for a phone this size.",
        "There are three phones under 250, and only the nova has a good camera.",
    ],
    "My internet is slow and the wifi keeps dropping.": [
        "Please restart your router: unplug it, wait ten seconds, and plug it back in.",
        "Open the settings and tell me what the network screen says.",
        "Does the light on the front blink red or green?",
        "Your plan ran out of data yesterday, so it is slow. I can add two gigabytes for ten dollars.",
    ],
    "27 + 38 = 55, is that right?": [
        "Almost! Can you show me how you added the ones?",
        "You forgot to carry the ten. Try adding the ones again and write down what is left over.",
        "Good, now try the next sum.",
    ],
    "Can I return the headphones after 45 days?": [
        "Yes, you can, because they are still under warranty.",
        "Unfortunately, no. However, you could sell them in our marketplace.",
    ],
}
PAIRS = [(request, answer) for request, answers in ANSWERS.items() for answer in answers]


def score(*texts):
    """Manner of a conversation in which user and agent take turns."""
    roles = ("user", "assistant") * len(texts)
    parts = manner([Message(role, text) for role, text in zip(roles, texts, strict=False)])
    return sum(WEIGHTS[name] * value for name, value in parts.items())


@pytest.mark.parametrize("request_text", REQUESTS)
@pytest.mark.parametrize("kind", NOISE)
def test_noise_is_worth_next_to_nothing(kind, request_text):
    scores = {text: score(request_text, text) for text in NOISE[kind]}
    assert {text: value for text, value in scores.items() if value > NOTHING} == {}
    assert fmean(scores.values()) < 0.05


@pytest.mark.parametrize(("request_text", "answer"), PAIRS)
def test_a_real_answer_reads_as_english_and_keeps_its_manner(request_text, answer):
    assert score(request_text, answer) >= 0.5
    assert readability(answer, lambda word: word in request_text) >= 0.9 - 1e-9


def test_most_shuffled_answers_do_not_read_as_english():
    """Two thirds of the readability are lost, although each word is one of a good answer."""
    shuffled = []
    for _, answer in PAIRS:
        words = re.findall(r"[\w'-]+", answer)
        for seed in range(20):
            random.Random(seed).shuffle(words)
            shuffled.append(readability(" ".join(words), lambda word: False))
    assert fmean(shuffled) < 0.35


SENTENCE = "I am happy to look into order 482 for you."


def test_one_sentence_repeated_in_every_turn_is_worth_nothing():
    assert score(REQUESTS[0], SENTENCE) > 0.8
    assert score(REQUESTS[0], *(SENTENCE, "and now?") * 3, SENTENCE) == 0.0


def test_a_sentence_repeated_with_a_counter_loses_its_manner():
    turns = [
        part for n in range(8) for part in (f"We care a lot about your order and your lamp, {n}.", "and?")
    ]
    assert score(REQUESTS[0], *turns) < 0.3


def test_salad_after_a_good_answer_takes_its_share():
    good = ANSWERS["hi, order 835 is broken, please refund it"][1]
    request = "hi, order 835 is broken, please refund it"
    salad = NOISE["word salad"][0]
    assert score(request, f"{good} {salad}. {salad}.") < score(request, good) - 0.3


def test_as_long_as_nobody_has_named_a_subject_an_offer_to_help_is_an_answer():
    assert score("hi", "Hello! How can I help you?") > 0.9
    assert score("hi", "Thank you. You are welcome.") == 0.0


@pytest.mark.parametrize(
    ("text", "least", "most"),
    [
        ("The lamp is red.", 1.0, 1.0),
        ("The of lamp is red.", 0.0, 0.0),
        ("Your order was sent to the city you live in.", 1.0, 1.0),
        ("Your order was sent to the.", 0.0, 0.0),
        ("Where is it from?", 1.0, 1.0),
        ("I saw that that was wrong.", 1.0, 1.0),
        ("I saw a apple and an lamp.", 0.0, 0.0),
        ("", 0.0, 0.0),
        ("12 34", 0.0, 0.0),
    ],
)
def test_readability_of_single_sentences(text, least, most):
    assert least <= readability(text, lambda word: False) <= most
