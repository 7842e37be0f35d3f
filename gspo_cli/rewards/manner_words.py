"""The English words that `gspo_cli.rewards.manner` looks for.

Beginnings match words that start with them: "refund" also matches refunded and refunds. Phrases match whole
words in order."""

from __future__ import annotations

GRAMMAR = """
    a about after all also am an and any are as at be because been before but by can could did do does for
    from had has have he her here him his how i i'd i'll i'm i've if in into is it it's its just may me might
    more most my no not now of off on once one only or other our out over she should so some soon still than
    that that's the their them then there these they this those to too until up us was we we'll we're we've
    were what when where which while who why will with would yes yet you you'll you're you've your"""
POLITE_OR_VAGUE = """
    hello hi hey dear please thanks thank sorry ok okay sure want need like help get got let let's go know
    good great well really very today"""
NEEDS = """
    email name order number zip phone address help may shall would could what which how when where who"""
FUNCTION_WORDS = frozenset(GRAMMAR.split())
# they do not indicate the subject of a text
EMPTY_WORDS = FUNCTION_WORDS | frozenset(POLITE_OR_VAGUE.split())
ASKING = frozenset(NEEDS.split())  # a question with one of these asks for what an agent needs to know

EMPATHY = ("sorry", "apolog", "understand", "frustrat", "unfortunate", "inconvenien", "regret", "appreciat")
COURTESY = ("thank", "please", "certain", "absolute", "happy", "glad", "welcome", "immediate", "priorit")
PROMISES = ("help", "assist", "resol", "solv", "solution", "support", "ensur", "escalat", "investigat")
DEEDS = (
    *(
        "refund",
        "replac",
        "exchang",
        "cancel",
        "mov",
        "return",
        "ship",
        "sent",
        "send",
        "chang",
        "updat",
        "modif",
    ),
    *("check", "found", "find", "look", "fix", "arrang", "process", "reset", "restart", "turn", "switch"),
    *(
        "open",
        "done",
        "book",
        "credit",
        "deliver",
        "arriv",
        "add",
        "remov",
        "confirm",
        "recommend",
        "suggest",
    ),
    *("explain", "try", "press", "select", "install", "connect", "transfer", "offer", "compensat", "repair"),
)
ACTION = (*PROMISES, *DEEDS)
FINDINGS = frozenset(("is", "are", "was", "were", "has", "had", "costs", "means"))
DONE = frozenset(("done", "sent", "found"))  # completed actions that do not end in "ed"
KEYWORDS = (*EMPATHY, *COURTESY, *ACTION)

UPSET = (
    *("broke", "damag", "wrong", "missing", "never", "angry", "upset", "disappoint", "frustrat"),
    *("terribl", "awful", "defect", "complain", "crack", "unhappy", "worst", "annoy"),
    *("ridiculous", "delay", "unacceptabl", "stolen", "furious", "scratch"),
)
UPSET_WORDS = frozenset(  # whole words: "later" and "failsafe" are not complaints
    ("late", "lost", "torn", "fail", "fails", "failed", "failing", "failure", "failures")
)

RUDE = (
    *(
        "idiot",
        "idiots",
        "idiotic",
        "stupid",
        "stupidity",
        "moron",
        "morons",
        "dumb",
        "pathetic",
        "crap",
        "damn",
    ),
    *(
        "loser",
        "losers",
        "fool",
        "foolish",
        "shut up",
        "go away",
        "leave me alone",
    ),
    *(
        "not my problem",
        "your own fault",
        "don't care",
        "do not care",
        "couldn't care less",
        "stop bothering",
    ),
    *("stop wasting", "waste of time", "wasting my time", "fuck", "fucking", "shit", "bullshit", "screw you"),
)
# what agents talk about, also where nobody has named it yet
SERVICE_WORDS = """
    account address amount app battery bill button cable camera card carrier charge color courier data
    delivery device digit digits discount dollar dollars email error fee gigabyte invoice item items label
    manufacturer marketplace message network number ones order package parcel password payment phone photo
    pin policy price product receipt router screen settings shipment shipping shop signal sim street
    subscription sum tens tracking warehouse warranty wifi zip"""
SERVICE = frozenset(SERVICE_WORDS.split())
WH_WORDS = "what which how when where who whose why what's who's where's how's"
QUESTION_WORDS = frozenset(WH_WORDS.split())
OFFERS = (  # questions with one of these can be asked of anybody
    *("help", "assist", "assistance", "support", "serve", "do for you", "how are you", "what's up"),
    *("service", "of use", "you think", "how is it going"),
)
COURTEOUS = (*EMPATHY, "thank", "welcome", "happy", "glad")
EMPTY_DEEDS = ("look forward", "looking forward", "our best", "my best")
SMALL_TALK = """
    thing things way ways fine nice hope wonderful day week life people company quality care business customer
    patience understanding problem moment time course end best happy glad welcome pleasure certainly
    absolutely many think"""
VAGUE = frozenset(SMALL_TALK.split())  # they say nothing about a subject

REFUSALS = (
    *(
        "can't",
        "cannot",
        "can not",
        "won't",
        "will not",
        "unable",
        "not able",
        "no way",
        "refuse",
        "not possible",
    ),
    *("not allowed", "not going to", "impossible"),
)
REASONS = (
    *("because", "since", "as", "but", "however", "instead", "only", "until", "once", "unless", "already"),
    *("policy", "so", "although", "after", "before", "if", "first", "due", "therefore"),
)
