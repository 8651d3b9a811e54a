"""Filters as text, as they are written on the command line, and back.

::

    filter      = alternative { "or" alternative }
    alternative = term { "and" term }
    term        = "not" term | "(" filter ")" | "present" "(" key ")" | "from_node" "(" number ")"
                | key ( "==" | "!=" | "startswith" ) value
    key         = word | string          a word: letters, digits, "_", "." and "-", not first a digit, "." or "-"
    value       = string                 in double or single quotes; \\\\ \\" \\' \\n \\r \\t inside

``not`` binds closest, then ``and``, then ``or``. ``a != "x"`` is ``not a == "x"``: it holds without the property, too.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from ocfcluster.errors import FilterError, InvalidArgument
from ocfcluster.limits import FILTER_DEPTH, FILTER_TEXT_BYTES
from ocfcluster.wire.filter import (
    AllOf,
    AnyOf,
    Equals,
    Filter,
    FromNode,
    Not,
    Present,
    Property,
    StartsWith,
    filter_fault,
    from_node,
)

_TOKEN: Final = re.compile(
    r"""\s*(?:(?P<word>[A-Za-z_][A-Za-z0-9_.-]*)
      |(?P<number>[0-9]+)
      |(?P<string>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')
      |(?P<sign>==|!=|\(|\))
      |(?P<end>\Z))""",
    re.VERBOSE | re.DOTALL,
)
_ESCAPE: Final = re.compile(r"\\(.)", re.DOTALL)
_ESCAPES: Final = {"\\": "\\", '"': '"', "'": "'", "n": "\n", "r": "\r", "t": "\t"}
_WRITTEN: Final = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "\t": "\\t"}
_RESERVED: Final = frozenset({"and", "or", "not"})
_WORDS: Final = frozenset({*_RESERVED, "present", "from_node", "startswith"})
_WORD: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")
_DEEPEST: Final = 2 * FILTER_DEPTH  # parentheses and nots; some of them leave no trace in the filter


class _Token(NamedTuple):
    kind: str  # word, number, string, sign, end
    text: str  # of a string: what it stands for
    at: int


def parse_filter(text: str) -> Filter:
    """The filter that ``text`` says. Raises FilterError, which names the place."""
    if not isinstance(text, str):
        raise InvalidArgument(f"a filter is a Filter or its text, not {type(text).__name__}")
    if len(text.encode(errors="surrogatepass")) > FILTER_TEXT_BYTES:
        raise FilterError(f"the text has more than {FILTER_TEXT_BYTES} bytes", text, FILTER_TEXT_BYTES)
    return _Parser(text).whole()


class _Parser:
    __slots__ = ("_depth", "_text", "_token")

    def __init__(self, text: str) -> None:
        self._text = text
        self._depth = 0
        self._token = self._read(0)

    def whole(self) -> Filter:
        if self._token.kind == "end":
            raise self._error("the filter is empty", 0)
        made = self._filter()
        if self._token.kind != "end":
            raise self._expected("'and', 'or' or the end")
        fault = filter_fault(made)
        if fault:
            raise self._error(fault, 0)
        return made

    # --- tokens -------------------------------------------------------------------------------------------------

    def _read(self, at: int) -> _Token:
        found = _TOKEN.match(self._text, at)
        if found is None:
            at += len(self._text[at:]) - len(self._text[at:].lstrip())
            character = self._text[at]
            if character in "\"'":
                raise self._error("the quotes are not closed", at)
            hint = "; 'is equal' is written ==" if character == "=" else ""
            raise self._error(f"{character!r} means nothing here{hint}", at)
        kind = found.lastgroup or "end"
        text = found.group(kind)
        if kind == "string":
            text = self._unescaped(text[1:-1], found.start(kind) + 1)
        return _Token(kind, text, found.start(kind))

    def _unescaped(self, text: str, at: int) -> str:
        for escape in _ESCAPE.finditer(text):
            if escape[1] not in _ESCAPES:
                raise self._error(rf"\{escape[1]} is no escape; write \\ for \ itself", at + escape.start())
        return _ESCAPE.sub(lambda escape: _ESCAPES[escape[1]], text)

    def _next(self) -> _Token:
        token = self._token
        if token.kind == "string":  # what it stands for is shorter than what is written
            end = _TOKEN.match(self._text, token.at)
            self._token = self._read(end.end() if end is not None else token.at)
        elif token.kind != "end":
            self._token = self._read(token.at + len(token.text))
        return token

    def _is(self, kind: str, text: str) -> bool:
        return self._token.kind == kind and self._token.text == text

    def _error(self, why: str, at: int) -> FilterError:
        return FilterError(why, self._text, at)

    def _expected(self, what: str) -> FilterError:
        token = self._token
        seen = "the end" if token.kind == "end" else f"{token.text!r:.40}"
        return self._error(f"{what} is expected, not {seen}", token.at)

    # --- grammar ------------------------------------------------------------------------------------------------

    def _filter(self) -> Filter:
        made = self._alternative()
        while self._is("word", "or"):
            self._next()
            made = made | self._alternative()
        return made

    def _alternative(self) -> Filter:
        made = self._term()
        while self._is("word", "and"):
            self._next()
            made = made & self._term()
        return made

    def _term(self) -> Filter:
        token = self._token
        if not (self._is("word", "not") or self._is("sign", "(")):
            return self._comparison()
        self._depth += 1
        if self._depth > _DEEPEST:
            raise self._error(f"a filter is nested at most {FILTER_DEPTH} deep", token.at)
        self._next()
        if token.text == "not":
            made = ~self._term()
        else:
            made = self._filter()
            self._close()
        self._depth -= 1
        return made

    def _close(self) -> None:
        if not self._is("sign", ")"):
            raise self._expected("')'")
        self._next()

    def _comparison(self) -> Filter:
        token = self._token
        if token.kind not in ("word", "string") or (token.kind == "word" and token.text in _RESERVED):
            raise self._expected("the key of a property, 'present(', 'from_node(', 'not' or '('")
        self._next()
        if token.kind == "word" and self._is("sign", "("):
            return self._function(token)
        try:
            key = Property(token.text)
        except InvalidArgument as error:
            raise self._error(error.strerror or "", token.at) from None
        operator = self._token
        if operator.text not in ("==", "!=", "startswith") or operator.kind == "string":
            raise self._expected(f"'==', '!=' or 'startswith' behind {token.text!r:.40}")
        self._next()
        value = self._token
        if value.kind != "string":
            hint = ' (write it as "' + value.text + '")' if value.kind in ("word", "number") else ""
            raise self._expected(f"a value in quotes{hint}")
        self._next()
        try:
            if operator.text == "startswith":
                return key.startswith(value.text)
            return (key == value.text) if operator.text == "==" else (key != value.text)
        except InvalidArgument as error:
            raise self._error(error.strerror or "", value.at) from None

    def _function(self, name: _Token) -> Filter:
        if name.text not in ("present", "from_node"):
            raise self._error(f"{name.text!r:.40} is no function; there are present and from_node", name.at)
        self._next()
        operand = self._token
        try:
            if name.text == "present":
                if operand.kind not in ("word", "string"):
                    raise self._expected("the key of a property")
                made: Filter = Property(operand.text).present()
            else:
                if operand.kind != "number":
                    raise self._expected("the number of a node")
                made = from_node(int(operand.text) if len(operand.text) < 20 else -1)
        except FilterError:
            raise
        except InvalidArgument as error:
            raise self._error(error.strerror or "", operand.at) from None
        self._next()
        self._close()
        return made


# --- and back -----------------------------------------------------------------------------------------------------


def filter_text(term: Filter) -> str:
    """The text of a filter; ``parse_filter`` makes an equal filter of it."""
    if isinstance(term, Equals):
        return f"{_key(term.key)} == {_quoted(term.value)}"
    if isinstance(term, StartsWith):
        return f"{_key(term.key)} startswith {_quoted(term.prefix)}"
    if isinstance(term, Present):
        return f"present({_key(term.key)})"
    if isinstance(term, FromNode):
        return f"from_node({term.node_id})"
    if isinstance(term, Not):
        return f"not {_inner(term.term, AllOf, AnyOf)}"
    if isinstance(term, AllOf):
        return " and ".join(_inner(part, AllOf, AnyOf) for part in term.terms)
    if isinstance(term, AnyOf):
        return " or ".join(_inner(part, AnyOf) for part in term.terms)
    return repr(term)


def _inner(term: Filter, *in_parentheses: type[Filter]) -> str:
    text = filter_text(term)
    return f"({text})" if isinstance(term, in_parentheses) else text


def _key(key: str) -> str:
    return key if _WORD.fullmatch(key) and key not in _WORDS else _quoted(key)


def _quoted(value: str) -> str:
    return '"' + "".join(_WRITTEN.get(character, character) for character in value) + '"'
