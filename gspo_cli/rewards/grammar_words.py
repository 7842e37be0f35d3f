"""The small words of English by class, and which of them do not stand side by side.

`gspo_cli.rewards.readability` looks for such pairs. They were checked on 350,000 words of school problems and
documentation, of which they find fewer than 1 in 1,000."""

from __future__ import annotations

from gspo_cli.rewards import manner_words


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


DETERMINERS = _words("a an the my your our their every whose")
PRONOUNS = _words("i he she we they")
OBJECTS = _words("me him us them")
PREPOSITIONS = _words("""
    of from with into at for to than during onto upon without between via toward towards among""")
PLACES = _words("in on off about over under")  # adverbs, too: "it is on"
CONJUNCTIONS = _words("and or but because if although unless whether nor")
BE = _words("is are was were am")
HAVE_DO = _words("has had have does did do")
BEING = _words("be been being")
MODALS = _words("""
    will would can could shall should may might must cannot can't won't couldn't wouldn't shouldn't""")
CONTRACTIONS = _words("""
    i'm i'll i've i'd we're we've we'll we'd he's she's they're they've they'll you're you've you'll it's
    that's there's what's let's""")
INTENSIFIERS = _words("very quite")
COURTESIES = _words("please yes thanks hello")
AUXILIARIES = BE | MODALS

VERBS = _words("""
    need needs want wants know see sees tell say says said ask asks give gives gave take takes took get gets
    got go goes went come comes came keep keeps kept choose make makes made let lets hold holds mean means
    meant use uses leave leaves left begin start starts stop stops wait call write put set run runs ran like
    prefer believe think hope understand speak talk pay paid buy bought sell sold cost costs fit fits weigh
    weighs include includes contain contains require requires happen happens thank thanks welcome look looks
    work works show shows plug enter type click tap remember forget forgot bring carry count line hear care
    stay receive expires qualifies provide charge matters drop drops reboot unplug""")
DOUBLED = _words("that had bye very")  # may follow themselves

PREDICATES = (VERBS | AUXILIARIES | HAVE_DO | BEING | CONTRACTIONS | manner_words.DONE) - _words("""
    thank thanks welcome like work count line charge show call run stop""")
OPENERS = _words(
    "please now then and so just also first good ok okay sure yes no sorry"
)  # before an imperative

SMALL_WORDS = (
    manner_words.FUNCTION_WORDS
    | (DETERMINERS | PRONOUNS | OBJECTS | PREPOSITIONS | PLACES | CONJUNCTIONS | AUXILIARIES)
    | (HAVE_DO | BEING | CONTRACTIONS | INTENSIFIERS)
    | _words("""
        don't doesn't didn't isn't aren't wasn't weren't haven't hasn't hadn't it'll here's another each both
        few many much any such same own again back around between whether though through while within yet
        everything something anything nothing under behind below near along who's how's where's yours ours
        myself yourself itself two three four five six seven eight nine ten""")
)
# Those that other languages have, too: they do not show that a text is English.
SHARED_WORDS = _words("""
    a no me on in an so as was do am or he i if is to at by her mi my we us o be for has had can will you
    all now one not most over him did""")

NEVER_LAST = DETERMINERS | CONJUNCTIONS | _words("than very am into of")

_NO_NOUN = _words("""
    in on it you by not then there now after also as another before each how if so some that these this those
    what when which who until since yesterday today tomorrow""")
_NO_VERB = _words("""
    of from with into for to nor whether unless although his its how many much what which who these those
    there""")
_RULES = (
    (DETERMINERS, DETERMINERS | PRONOUNS | PREPOSITIONS | CONJUNCTIONS | AUXILIARIES | _NO_NOUN),
    (DETERMINERS, HAVE_DO | OBJECTS | CONTRACTIONS | BEING | COURTESIES),
    (PREPOSITIONS, AUXILIARIES | PRONOUNS | CONJUNCTIONS | CONTRACTIONS | PREPOSITIONS | COURTESIES),
    (PREPOSITIONS, _words("does did has had")),
    (PLACES, AUXILIARIES | PRONOUNS | COURTESIES | _words("does did has had of")),
    (PRONOUNS, DETERMINERS | PRONOUNS | OBJECTS | CONTRACTIONS | _NO_VERB),
    (BE, AUXILIARIES | HAVE_DO | CONTRACTIONS),
    (HAVE_DO, AUXILIARIES | CONTRACTIONS),
    (MODALS, AUXILIARIES | CONTRACTIONS | CONJUNCTIONS | OBJECTS),
    (MODALS, _words("has had does did of from into to as at how being been")),
    (BEING, AUXILIARIES | HAVE_DO | PRONOUNS | CONTRACTIONS | OBJECTS),
    (CONJUNCTIONS, _words("and or but nor although")),
    (INTENSIFIERS, DETERMINERS | PREPOSITIONS | CONJUNCTIONS | PRONOUNS | OBJECTS),
    (INTENSIFIERS, AUXILIARIES | CONTRACTIONS),
    (OBJECTS, MODALS | CONTRACTIONS | _words("i he she we me him them of")),
    (CONTRACTIONS, AUXILIARIES | PRONOUNS | CONTRACTIONS | CONJUNCTIONS),
    (_words("if because although unless while"), AUXILIARIES | HAVE_DO | BEING | _words("of")),
    (_words("do did does if so then who when you at for to by with from"), _words("of")),
    (_words("another same other on there"), _words("of")),
    (_words("another same other there"), _words("the a")),
    (_words("to"), _words("in on so as")),
    (_words("then"), _words("and")),
    (SMALL_WORDS - _words("more other rather now most again"), _words("than")),
    (_words("please"), AUXILIARIES | PREPOSITIONS),
    (_words("sorry thanks thank"), AUXILIARIES | _words("of")),
    (_words("it"), _words("the your my are am")),
    (_words("i"), _words("is are has does")),
    (_words("we they"), _words("is was has does am")),
    (_words("he she"), _words("are am")),
    (_words("you"), _words("is am has does was")),
)
_EXCEPTIONS = {
    *((word, joined) for word in ("to", "from", "for", "at", "with") for joined in ("and", "or", "but")),
    *((word, "is") for word in ("to", "for", "at", "with", "in", "on", "off", "have", "has")),
    *(("than", word) for word in PRONOUNS | PREPOSITIONS | AUXILIARIES | CONJUNCTIONS | HAVE_DO),
    *(("for", word) for word in ("i", "we", "they", "from", "because")),
    *(("from", word) for word in ("within", "between", "among", "at")),
    *(("of", word) for word in ("may", "what's")),
    *((word, "of") for word in ("because", "off", "can")),
    *((word, "than") for word in ("have", "there")),
    *(("and", word) for word in ("but", "or")),
    *(("a", word) for word in ("to", "can")),
    *(("at", "if"), ("is", "does"), ("in", "may")),
}
IMPOSSIBLE = {
    (first, second) for firsts, seconds in _RULES for first in firsts for second in seconds
} - _EXCEPTIONS
