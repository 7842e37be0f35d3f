r"""The answer in a model's text: what follows its reasoning, and what the text itself states as the answer.

Every function takes time linear in the length of the text, whatever the text is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from gspo_cli.tasks.tools.written import without_reasoning

# "Answer: x", "**Final answer:** x", "The answer to the question is x"; the answer is the rest of the line,
# or the next line that is not empty
PHRASE = re.compile(
    r"\banswer\b(?:\s+to\s[^\n.:]{1,80}?)?[*_]{0,3}[ \t]*(?::|\bis\b:?)[*_]{0,3}", re.IGNORECASE
)
BRACES = re.compile(r"\\(?:boxed|fbox)\s*\{|\\.|[{}]", re.DOTALL)
# What stands around an answer without being part of it. Both ends have to be there: "$5" keeps its sign.
WRAPPINGS = (
    *((mark, mark) for mark in ("```", "**", "*", "`", '"', "'", "$$", "$")),
    *(("\u201c", "\u201d"), ("\u2018", "\u2019"), ("\\(", "\\)"), ("\\[", "\\]")),
    *((rf"\{command}{{", "}") for command in ("boxed", "text", "textbf", "mathrm", "mathbf")),
)
LAYERS = 20  # of wrappings around one answer


def tagged_answers(text: str) -> list[str]:
    """The different answers inside `<answer>x</answer>`, as they are."""
    return list(dict.fromkeys(answer.strip() for answer in _tagged(text)))


def marked_answers(text: str) -> list[str]:
    r"""The different answers inside `<answer>x</answer>`, else inside `\boxed{x}`, else on a last line
    `#### x`."""
    for form in (_tagged, _boxed, _final):
        found = list(dict.fromkeys(unwrapped(answer) for answer in form(text)))
        if found:
            return found
    return []


def phrased_answers(text: str) -> list[str]:
    """The different answers after phrases such as "Answer: x" or "the answer is x"."""
    return list(dict.fromkeys(unwrapped(answer) for answer in _phrased(text)))


def stated_answers(text: str) -> list[str]:
    """The different answers that `text` states: the marked ones, else the phrased ones."""
    return marked_answers(text) or phrased_answers(text)


def answers(text: str) -> list[str]:
    """The stated answers, or the whole text where it states none; empty without text. A verifier accepts a
    text only if each of these is right, so that listing several candidates earns nothing."""
    text = without_reasoning(text)
    return stated_answers(text) or ([unwrapped(text)] if text else [])


def unwrapped(answer: str) -> str:
    """`answer` without markdown, quotes, LaTeX delimiters or a final period around it."""
    for _ in range(LAYERS):
        inner = answer.strip()
        inner = inner.removesuffix(".") if not inner.endswith("..") else inner
        for before, after in WRAPPINGS:
            if len(inner) > len(before) + len(after) and inner.startswith(before) and inner.endswith(after):
                inner = inner[len(before) : -len(after)]
                break
        if inner == answer:
            break
        answer = inner
    return answer


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


def _phrased(text: str) -> Iterator[str]:
    phrases = list(PHRASE.finditer(text))
    ends = [phrase.start() for phrase in phrases[1:]] + [len(text)]
    for phrase, end in zip(phrases, ends, strict=False):
        answer = text[phrase.end() : end].strip().partition("\n")[0]
        # "**Answer: x**" opens its emphasis before the phrase
        yield answer.replace("**", "") if answer.count("**") == 1 else answer
