"""Takes out of texts what is private: keys, passwords and tokens, and whose home folder a path is in.

Equal secrets get equal marks and different ones different marks, so that settings that differed still do.
Every pattern is linear in the length of a text: models may write anything."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from gspo_cli.config.typed import override
from gspo_cli.plain_files import bounded_json

# ends of names whose values are secret; the second ones also count tokens, or name those of a model
SECRET = re.compile(
    r"(?:api[_-]?key|access[_-]?key|password|passwd|passphrase|pwd|secret|credential)s?(?:_?\d{1,3})?$",
    re.IGNORECASE,
)
SECRET_TEXT = re.compile(
    r"(?:^|[^A-Za-z]|(?<=[a-z])(?=[A-Z]))(?i:key|token|auth|authorization|bearer|cookie|sig|signature)(?i:s?)"
    r"(?:_?\d{1,3})?$"
)
OF_MODEL = re.compile(r"(?:^|_)(?:pad|bos|eos|unk|sep|cls|mask|special|stop|image)_tokens?$")  # not secret
NUMBER = re.compile(r"[-+]?\d+(?:\.\d*)?(?:e[-+]?\d+)?|null|true|false", re.IGNORECASE)
SHORTEST = 8  # characters of a value of the environment that is looked for in texts
# tokens that are known by their form: of hubs, model servers, forges, clouds, chats, JSON web tokens
FORMS = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{16,}|sk-[\w-]{16,}|gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|glpat-[\w-]{16,}"
    r"|wandb_v1_\w{16,}|A[KS]IA[0-9A-Z]{16}|AIza[\w-]{30,}|ya29\.[\w-]{16,}|xox[abeprs]-[\w-]{10,}"
    r"|[sr]k_(?:live|test)_[A-Za-z0-9]{16,}|npm_[A-Za-z0-9]{20,}|pypi-[\w-]{16,}|SG\.[\w-]{16,}\.[\w-]{16,}"
    r"|eyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]{8,})"
)
PEM = re.compile(r"(?<=PRIVATE KEY-----)[^-]+")
BEFORE = (  # what stands before a secret, and the secret
    re.compile(r"(\b(?:bearer|basic)\s+)([\w.~+/=-]{12,})", re.IGNORECASE),
    re.compile(
        r"((?<=://))(?!:?@)([^\s/@:\"']{0,100}(?::(?!\d+/)[^\s\"']{0,200})?)(?=@)"
    ),  # user, password of an address
    re.compile(r"((?<=hooks\.slack\.com/services/))([\w/]+)"),
)
# a name, what joins it to its value, and the value: name="value", "name": "value", escaped or not
QUOTED = re.compile(
    r"(?<![\w.-])([\w.-]+)((?:\\{0,7}[\"'])?\s*[:=]\s*(\\{0,7})([\"']))(?!\3\4)(.+?)(?=(?<!\\)\3\4|\Z)",
    re.DOTALL,
)
NAMED = (  # the same of values without quotes: name=value, {name: value}, --name value
    re.compile(r"(?<![\w.-])([\w.-]+)(=)([^\s\"',;&}\]]+)"),
    re.compile(r"(?<![\w.-])([\w.-]+)(:[ ]+)([^\s\"',}\]]+)(?=\s*[,}])"),
    re.compile(r"(?<=--)([A-Za-z][\w.-]{0,60})([ ])([^\s\"'-][^\s\"']*)"),
)
LOOSE = (  # of SECRET names only: "name: words" as a line, "name: value" that ends one, "name = value"
    re.compile(r"^((?:- )?[ \t]*[\w.-]+)([ \t]+=(?!=)[ \t]*|[:=][ \t]+)([^\s\"'].*)", re.MULTILINE),
    re.compile(r"(?<![\w.-])([\w.-]+)(:[ ]+)([^\s\"']\S*)(?=\s*$)", re.MULTILINE),
    re.compile(r"(?<![\w.-])([\w.-]+)([ \t]*=(?!=)[ \t]*)([^\s\"',;&}\]]+)"),
)
MARK = re.compile(r"<secret-\d+>")
HOMES = re.compile(
    r"(?:(?<![\w.~])/(?:home|Users)/|\b[A-Za-z]:\\{1,2}Users\\{1,2})[^/\\\s\"':,;]+"
    r"|(?<![\w.~])/root(?=[/\s\"':,;]|$)"
)


class Mask:
    """What has been masked so far. `places` counts where a home folder or the name of a user stood. Values
    in `known` are masked wherever they are, and so are the names of `users` in paths."""

    def __init__(self, known: Iterable[str] = (), home: str = "", users: Iterable[str] = ()) -> None:
        self._known = sorted({each for each in known if len(each) >= SHORTEST}, key=lambda s: (-len(s), s))
        self._home = re.compile(re.escape(home) + r"(?=[/\s\"':,;]|$)") if home.count("/") > 1 else None
        names = "|".join(re.escape(each) for each in sorted(set(users)) if each and each != "root")
        self._user = re.compile(rf"(?<![A-Za-z0-9])(?:{names})(?![A-Za-z0-9])") if names else None
        self._marks: dict[str, str] = {}
        self._keys: dict[str, str] = {}
        self.places = 0

    @property
    def secrets(self) -> int:
        """How many different secrets were masked."""
        return len(self._marks)

    def value(self, value: Any, name: str = "", numbers: bool = True) -> Any:
        """`value`, stored under `name`, with what is secret in it masked, at any depth. `numbers` are masked
        in settings; in logs they are measurements, whatever a reward is called."""
        if isinstance(value, Mapping):
            above = _is_secret(name, "text")
            return {
                self._key(key): self.value(inner, name if above else key, numbers)
                for key, inner in value.items()
            }
        if isinstance(value, list | tuple):
            return [self.value(inner, name, numbers) for inner in value]
        if value is None or isinstance(value, bool) or value == "":
            return value
        if not (numbers or isinstance(value, str)):
            return value
        if name == "overrides" and isinstance(value, str):
            return self._override(value)
        if _is_secret(name, value):
            return self._mark(str(value))
        return self._text(value) if isinstance(value, str) else value

    def _key(self, key: Any) -> str:
        if key not in self._keys:
            self._keys[key] = self._text(str(key))
        return self._keys[key]

    def _text(self, text: str) -> str:
        for known in self._known:
            text = text.replace(known, self._mark(known)) if known in text else text
        for pattern in (FORMS, PEM):
            text = pattern.sub(lambda found: self._mark(found[0]), text)
        for pattern in BEFORE:
            text = pattern.sub(lambda found: found[1] + self._mark(found[2]), text)
        if re.search("[=:]|--", text):
            text = QUOTED.sub(self._quoted, text)
            for pattern in LOOSE:
                text = pattern.sub(lambda found: self._named(found, loose=True), text)
            for pattern in NAMED:
                text = pattern.sub(self._named, text)
        return self._without_user(text) if "/" in text or "\\" in text else text

    def _quoted(self, found: re.Match[str]) -> str:
        name, joined, _, _, value = found.groups()
        if not _is_secret(name, value):  # quotes in it are others than around it: of 16 kinds at most
            return f"{name}{joined}{QUOTED.sub(self._quoted, value)}"
        return f"{name}{joined}{self._mark(value)}"

    def _named(self, found: re.Match[str], loose: bool = False) -> str:
        name, joined, value = found.groups()
        secret = SECRET.search(name) if loose else _is_secret(name, value)
        secret = secret and value not in ("[", "{")  # before masked values in quotes
        return f"{name}{joined}{self._mark(value)}" if secret else found[0]

    def _override(self, text: str) -> str:
        """An override, key=value with lists and numbers as JSON has them, quoted for a shell."""
        key, _, typed = text.strip("'").partition("=")
        try:
            value = bounded_json(typed)
        except ValueError:
            if not (typed and _is_secret(key, typed)):
                return self._text(text)
            value = typed
        masked = self.value(value, key)
        return text if masked == value else override(key, masked)

    def _mark(self, secret: str) -> str:
        if MARK.fullmatch(secret):  # of runs that were packed before
            return secret
        return self._marks.setdefault(secret, f"<secret-{len(self._marks) + 1}>")

    def _without_user(self, text: str) -> str:
        """A text with a path, without home folders and names of users in its paths."""
        if self._home is not None:
            text = self._counted(self._home, lambda _: "~", text)
        text = self._counted(HOMES, lambda _: "~", text)
        if self._user is None:
            return text
        parts = re.split(r"(\s+)", text)
        return "".join(
            self._counted(self._user, lambda _: "<user>", p) if "/" in p or "\\" in p else p for p in parts
        )

    def _counted(self, pattern: re.Pattern[str], new: Callable[[re.Match[str]], str], text: str) -> str:
        text, count = pattern.subn(new, text)
        self.places += count
        return text


def mask_here(configs: Iterable[Mapping[str, Any]]) -> Mask:
    """The mask for runs with these settings, on this machine: it knows the secrets of this process's
    environment, and who the user is."""
    variables = {name for name in os.environ if _is_secret(name, "text")}
    variables |= {name for config in configs for name in _variables(config)}
    home = str(Path.home())
    users = [os.environ.get(name, "") for name in ("USER", "LOGNAME")]
    known = [os.environ.get(name, "").strip() for name in sorted(variables)]
    return Mask(known, home, [*users, Path(home).name if home.count("/") > 1 else ""])


def _is_secret(name: str, value: Any) -> bool:
    """Whether the value of this name is secret."""
    if SECRET.search(name):
        return True
    text = isinstance(value, str) and not NUMBER.fullmatch(value)
    return text and bool(SECRET_TEXT.search(name)) and not OF_MODEL.search(name)


def _variables(value: Any, name: str = "") -> Iterator[str]:
    """Names of environment variables that settings have, as those of keys do: `api_key_variable`."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _variables(inner, str(key))
    elif isinstance(value, str) and name.endswith("variable"):
        yield value
