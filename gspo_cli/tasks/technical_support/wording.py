"""What the user of a broken phone says. Complaints come in words to train on (True) and in held-out ones."""

from __future__ import annotations

SYMPTOMS = {
    "service": "there is no service.",
    "internet": "there is no internet.",
    "speed": "the internet is slow.",
    "pictures": "i can not send pictures.",
}
COMPLAINTS = {
    "service": {
        True: ("my phone has no service.", "hello, there is no service on my phone.", "help, no service."),
        False: ("hi, i have no service today.", "since today there is no service."),
    },
    "internet": {
        True: ("my phone has no internet.", "hello, there is no internet on my phone.", "help, no internet."),
        False: ("hi, i have no internet today.", "since today there is no internet."),
    },
    "speed": {
        True: ("my phone is slow.", "hello, the internet is slow on my phone.", "help, slow internet."),
        False: ("hi, i have slow internet today.", "since today the internet is slow."),
    },
    "pictures": {
        True: ("my phone can not send pictures.", "hello, i can not send pictures.", "help, no pictures."),
        False: ("hi, i can not send pictures today.", "since today i can not send pictures."),
    },
}
YES = ("ok,", "done,", "yes,")
ONE_THING = "one thing at a time, please."
UNCLEAR = "sorry, what do you mean?"
