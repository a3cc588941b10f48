"""The one error users see."""

from __future__ import annotations

import re
import unicodedata
from urllib.parse import unquote

MAX_MESSAGE = 300
# The password in a URL, up to the last @ of the word: it may contain one itself.
_SCHEME = r"(?:://|(?<![^\s='\"(,\[])[A-Za-z][\w+.]*:/?)"
_PASSWORD = re.compile(rf"({_SCHEME}[^\s:@]*):(?!//)[^\s]*@")
# ... with spaces in it, or without a host behind it. What is a port is no password.
_NO_PORT = r"(?!\d{1,5}(?:[^\w@]|$))"
_SPACED = re.compile(rf"(://[^\s:@]*):{_NO_PORT}[^\s@]+(?:\s[^\s@:]+){{1,8}}@")
_BARE = re.compile(rf"(://[^\s:@/'\"]+):{_NO_PORT}[^\s@/?*]+(?=$|[\s/?])")
# What settings of a connection are called, in the query of a URL or with spaces between them.
_SETTING = re.compile(r"(?<=[?&;\s])([\w.%-]{1,60})=([^&;\s]+)|^([\w.%-]{1,60})=([^&;\s]+)")
_SECRET = re.compile(r"pass(?!file)|pwd|secret|token|api_?key|odbc_connect", re.IGNORECASE)


class InputError(ValueError):
    """Something given from outside is wrong. The message is one line: what, where, what to do.

    Commands print the message and exit with a code other than 0; everything else keeps its traceback.
    What a message quotes comes from outside too: it is made one printable line of bounded length, without
    passwords.
    """

    def __init__(self, message: object = "") -> None:
        super().__init__(shorten(str(message)))


def masked(text: str) -> str:
    """A text in which no URL, nor any setting of a connection, tells its password any longer."""
    if ":" in text:
        for pattern, end in ((_PASSWORD, "@"), (_SPACED, "@"), (_BARE, "")):
            text = pattern.sub(lambda found, end=end: f"{found[1]}:***{end}", text)  # type: ignore[misc]
    return _SETTING.sub(_without_secret, text) if "=" in text else text


def _without_secret(found: re.Match[str]) -> str:
    name = found[1] or found[3]
    return f"{name}=***" if _SECRET.search(unquote(name)) else found[0]


def is_text(text: str) -> bool:
    """False of what holds half characters, as names of files with bytes that are no text: no page can."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def printable(text: str, kept: str = "") -> str:
    """A text that moves no cursor, changes no colour and reorders nothing where it is shown.

    Args:
        text: from anywhere.
        kept: characters besides those that show: lines may break there.
    """
    if text.isprintable():
        return text
    return "".join(
        each
        if each.isprintable() or each in kept or unicodedata.category(each) == "Zs"
        else each.encode("unicode_escape").decode()
        for each in text
    )


def shorten(text: str, most: int = MAX_MESSAGE) -> str:
    """One printable line of at most ``most`` characters; of a longer one the middle is left out.

    Where it went wrong stands at the beginning of a message, what to do at its end.
    """
    text = text if len(text) <= 4 * most else f"{text[: 2 * most]} … {text[-2 * most :]}"
    line = printable(masked(" ".join(text.split())))
    if len(line) <= most:
        return line
    end = most // 3
    return f"{line[: most - end - 3]} … {line[-end:]}"
