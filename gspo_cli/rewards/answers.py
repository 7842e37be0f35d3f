r"""The answer in a model's text: what follows its reasoning, and what the text itself states as the answer.

Every function takes time linear in the length of the text, whatever the text is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

from gspo_cli.tasks.tools.written import without_reasoning

# "Answer: x", "**Final answer:** x", "The answer to the question is x", "__Answer:__ x"
PHRASE = re.compile(
    r"(?P<opened>[*_]{1,3}(?:[a-z]{1,20} ){0,3})?(?<![^\W_])answer(?![^\W_])"
    r"(?:\s+to\s[^\n.:]{1,80}?)?[*_]{0,3}[ \t]*(?::|\b(?:is|(?:should|must|would|will)\s+be)\b:?)[*_]{0,3}",
    re.IGNORECASE,
)
# A heading "## Answer" or "**Final answer**"
HEADING = re.compile(
    r"^[ \t]*[#*_]{1,6}[ \t]*(?:final[ \t]+|the[ \t]+)?answer[*_#:]{0,6}[ \t]*$", re.I | re.M
)
HEDGE = r"\b(?:or|maybe|perhaps|possibly|alternatively|otherwise|might|could|also)\b"
HEDGED = re.compile(HEDGE, re.IGNORECASE)
# a line, and those after it that begin with a hedge: "5\nor 6"
LINE = re.compile(rf"[^\n]*(?:\n+(?=[^\w\n]*{HEDGE})[^\n]*)*", re.IGNORECASE)
BLANK_LINE = re.compile(r"\n\r?\n")  # a line of spaces may be a row of a grid
FENCED = re.compile(r"```[\w+-]*[ \t]*\n(.*?)(?:\n[ \t]*```|\Z)", re.DOTALL)
SENTENCE_END = re.compile(r"(?<=\S)[.!?][)\]*_\"'’”`$]{0,5}\s+(?![a-z\s])")
CLAUSE_END = re.compile(r"([,.;!?\n](?![0-9])|\b(?:but|so)\b)", re.IGNORECASE)
DENIAL = re.compile(
    r"(?:\b(?:not|cannot|neither|never)|n['’]t)\b(?!\s+(?:only|hard|difficult)\b)", re.IGNORECASE
)
DENIED = re.compile(
    r"[A-Z0-9][^\w\s]{0,5}\s+(?:is|are)\s*(?:(?:not|n['’]t)\s+(?:the\s+)?(?:correct|right|answer|true)|wrong|incorrect)\b"
)
BRACES = re.compile(r"\\(?:boxed|fbox)\s*\{|\\.|[{}]", re.DOTALL)
# What stands around an answer without being part of it. Both ends have to be there: "$5" keeps its sign.
WRAPPINGS = (
    *((mark, mark) for mark in ("```", "**", "*", "`", '"', "'", "$$", "$")),
    *(("\u201c", "\u201d"), ("\u2018", "\u2019"), ("\\(", "\\)"), ("\\[", "\\]")),
    *((rf"\{command}{{", "}") for command in ("boxed", "text", "textbf", "mathrm", "mathbf")),
)
LONGEST_LINE = 2_000  # characters that are read after a phrase, as they are
LAYERS = 20  # of wrappings around one answer


def tagged_answers(text: str) -> list[str]:
    """The different answers inside `<answer>x</answer>`, as they are."""
    return list(dict.fromkeys(answer.strip() for answer in _tagged(text)))


def marked_answers(text: str, bare: bool = True) -> list[str]:
    r"""The different answers inside `<answer>x</answer>`, else inside `\boxed{x}`, else on a last line
    `#### x`; `unwrapped` if `bare`."""
    for form in (_tagged, _boxed, _final):
        found = list(dict.fromkeys(unwrapped(answer) if bare else answer.strip() for answer in form(text)))
        if found:
            return found
    return []


def phrased_answers(text: str) -> list[str]:
    """The different answers after phrases such as "Answer: x" or "the answer is x", each to the end of its
    line; a code fence is taken whole."""
    return list(dict.fromkeys(statement.line for statement in statements(text)))


def lines_after_phrases(text: str) -> list[str]:
    """The different lines after phrases such as "Answer: x", with the quotes around them."""
    pieces = [text[phrase.end() : phrase.end() + LONGEST_LINE] for phrase in PHRASE.finditer(text)]
    lines = [piece.strip().partition("\n")[0].strip("*_ ").removesuffix(".") for piece in pieces]
    return list(dict.fromkeys(line.strip("*_ ") for line in lines))


class Statement(NamedTuple):
    """What follows a phrase such as "the answer is": its line, the sentences at its beginning where what
    comes after them is prose that names no alternative, the block of lines down to an empty one, and whether
    it begins below the phrase."""

    line: str
    sentences: tuple[str, ...]
    block: str
    below: bool

    @property
    def readings(self) -> tuple[str, ...]:
        """Everything that the statement can be taken for as a whole."""
        return tuple(dict.fromkeys((self.line, *self.sentences, self.block)))


def statements(text: str) -> list[Statement]:
    """What `text` states after phrases, else below a heading such as "## Answer"."""
    for phrase in (PHRASE, HEADING):
        found = list(phrase.finditer(text))
        ends = [each.start() for each in found[1:]] + [len(text)]
        if found:
            return [_statement(each, text[each.end() : end]) for each, end in zip(found, ends, strict=True)]
    return []


def affirmed(text: str) -> str:
    """`text` without what a "not", "neither" or "is wrong" denies, up to the end of its clause."""
    kept, denied = list[str](), False
    for clause in CLAUSE_END.split(text):
        if denied and clause.casefold() == "but":  # "not A but B" states B
            continue
        denial = DENIAL.search(clause)
        denied = denial is not None
        kept.append("" if DENIED.search(clause) else clause[: denial.start()] if denial else clause)
    return "".join(kept)


def readings(text: str) -> list[tuple[str, ...]]:
    """For each answer of a text what it can be taken for: the marked ones, else the phrased ones, else the
    whole text; empty without text. A verifier accepts a text only if each of its answers is right, so that
    listing several candidates earns nothing."""
    text = without_reasoning(text)
    marked = marked_answers(text)
    if marked:
        return [(answer,) for answer in marked]
    return [each.readings for each in statements(text)] or ([(unwrapped(text),)] if text else [])


def unwrapped(answer: str) -> str:
    """`answer` without a code fence, markdown, quotes, LaTeX delimiters or a final period around it."""
    for _ in range(LAYERS):
        inner = answer.strip()
        inner = inner.removesuffix(".") if not inner.endswith("..") else inner
        fence = FENCED.fullmatch(inner)
        if fence and fence[1].strip() and "```" not in fence[1]:
            inner = fence[1]
        for before, after in WRAPPINGS:
            content = inner[len(before) : -len(after)]
            if content and inner.startswith(before) and inner.endswith(after) and _is_one(content, after):
                inner = content
                break
        if inner == answer:
            break
        answer = inner
    return answer


def _is_one(content: str, after: str) -> bool:
    """Whether the marks around `content` belong together: in `"a" and "b"` they do not. An apostrophe within
    a word is no mark."""
    if after == "}":
        depth = 0
        for token in BRACES.finditer(content):
            depth += -1 if token[0] == "}" else token[0][-1] == "{" and token[0] != r"\{"
            if depth < 0:
                return False
        return True
    mark = re.escape(after)
    return re.search(rf"(?<!\w){mark}|{mark}(?!\w)", content) is None


def _tagged(text: str) -> Iterator[str]:
    for piece in text.split("<answer>")[1:]:
        inside, closed, _ = piece.partition("</answer>")
        if closed:
            yield inside


def _boxed(text: str) -> Iterator[str]:
    r"""Contents of the outermost boxes; `\{` is no brace."""
    open_boxes, opened = 0, list[tuple[bool, int]]()
    for token in BRACES.finditer(text):
        if token[0][-1] == "{" and token[0] != r"\{":
            opened.append((token[0] != "{", token.end()))
            open_boxes += opened[-1][0]
        elif token[0] == "}" and opened:
            is_box, start = opened.pop()
            open_boxes -= is_box
            if is_box and open_boxes == 0:
                yield text[start : token.start()]


def _final(text: str) -> Iterator[str]:
    """GSM8K's form; elsewhere than at the end, `####` is a heading."""
    last = text.rstrip().rpartition("\n")[2].strip()
    if last.startswith("#### "):
        yield last.removeprefix("#### ")


def _statement(phrase: re.Match[str], rest: str) -> Statement:
    below, rest = rest.lstrip(" \t").startswith("\n"), rest.strip()
    fence = FENCED.match(rest)
    if fence and fence[1].strip():
        whole = unwrapped(fence[1])
        return Statement(whole, (), whole, below)
    line = LINE.match(rest)[0]  # type: ignore[index]  # matches nothing too
    opened = phrase.groupdict().get("opened") or ""
    mark = re.match(r"[*_]*", opened)[0]  # type: ignore[index]
    for emphasis in {"**", mark} - {""}:  # "**Answer: x**" opens its emphasis before the phrase
        line = line.replace(emphasis, "") if line.count(emphasis) == 1 else line
    sentences = tuple(unwrapped(sentence) for sentence in _sentences(line))
    block = max(line, BLANK_LINE.split(rest, maxsplit=1)[0], key=len)
    return Statement(unwrapped(line), sentences, unwrapped(block), below)


def _sentences(line: str) -> Iterator[str]:
    """The first sentences of a line, up to three, where prose without a hedge comes after them."""
    for end in islice(SENTENCE_END.finditer(line), 3):
        rest = line[end.end() :]
        if len(rest.split(maxsplit=3)) > 2 and not HEDGED.search(rest):
            yield line[: end.end()]
