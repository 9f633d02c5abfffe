"""How people write numbers and dates: marks of decimals and thousands, currencies, the order of day and month."""

from __future__ import annotations

import datetime
import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from zoo.errors import DataError

__all__ = [
    "AmbiguousDateError",
    "NumberFormat",
    "Spelling",
    "date_format",
    "parse_dates",
]

_EXPONENT = r"(?:[eE][-+]?[0-9]+)?"
_CURRENCY = r"[$€£¥₹]|USD|EUR|GBP|CHF|JPY"
_NUMBER = re.compile(
    rf"(?P<sign>[-+]?)\s*(?P<prefix>{_CURRENCY})?\s*(?P<inner>[-+]?)"
    rf"(?P<body>(?:[0-9][0-9.,' ]*|[.,][0-9]+){_EXPONENT})\s*"
    rf"(?P<suffix>%|{_CURRENCY}|(?<= )[A-Za-zµ°][A-Za-z0-9µ°/²³^]{{0,9}})?"
)
_INFINITE = {"inf": np.inf, "+inf": np.inf, "-inf": -np.inf, "infinity": np.inf, "-infinity": -np.inf}
_PLAIN = frozenset("0123456789.eE+-")
_MARKS = frozenset(".,' ")
_WAYS = ((".", ""), (",", ""), (".", ","), (",", "."), (".", " "), (",", " "), (".", "'"), (",", "'"))
_TYPOGRAPHY = str.maketrans({"\u00a0": " ", "\u202f": " ", "\u2009": " ", "\u2019": "'", "\u2212": "-"})


@dataclass(frozen=True, slots=True, kw_only=True)
class NumberFormat:
    """How the numbers of a column are written.

    Args:
        decimal: Mark before the decimals.
        thousands: Mark between groups of three digits; empty for none.
        prefix: Currency in front.
        suffix: Currency, percent sign or unit behind.
    """

    decimal: str = "."
    thousands: str = ""
    prefix: str = ""
    suffix: str = ""

    def to_text(self) -> str:
        """Return the format as an example, ``1.234,5``; empty for the usual one."""
        if self == NumberFormat():
            return ""
        return f"{self.prefix}1{self.thousands}234{self.decimal}5{self.suffix}"

    @classmethod
    def from_text(cls, text: str) -> NumberFormat:
        """Return the format of an example.

        Args:
            text: What :meth:`to_text` returned.

        Returns:
            The format.

        Raises:
            DataError: If the text is no such example.
        """
        if not text:
            return cls()
        found = re.fullmatch(r"(?P<prefix>\D*)1(?P<thousands>\D?)234(?P<decimal>\D)5(?P<suffix>\D*)", text)
        if found is None:
            raise DataError(f"'{text}' is no format of numbers; an example such as 1.234,5 was expected")
        return cls(**found.groupdict())

    def exact(self, word: str) -> int | float | None:
        """Read one number.

        Args:
            word: Text.

        Returns:
            A whole number exactly, another one as a float; ``None`` for what is no number of this format.
        """
        text = word.translate(_TYPOGRAPHY)
        if text.lower() in _INFINITE:
            return _INFINITE[text.lower()]
        found = _NUMBER.fullmatch(text)
        if found is None or (found["sign"] and found["inner"]):
            return None
        if (found["prefix"] or "") not in ("", self.prefix) or (found["suffix"] or "") not in ("", self.suffix):
            return None
        body = found["body"].strip()
        if not _body(self.decimal, self.thousands).fullmatch(body):
            return None
        plain = (body.replace(self.thousands, "") if self.thousands else body).replace(self.decimal, ".")
        signed = (found["sign"] or found["inner"]) + plain
        return int(signed) if re.fullmatch(r"[-+]?[0-9]+", signed) else float(signed)

    def parse(self, words: Sequence[str]) -> NDArray[np.float64]:
        """Read numbers.

        Args:
            words: Texts.

        Returns:
            Numbers; NaN for what is none.
        """
        plain = _plain_values(words) if self == NumberFormat() else None
        if plain is not None:
            return plain
        found = (self.exact(word) for word in words)
        return np.array([np.nan if value is None else _float(value) for value in found], dtype=np.float64)


@dataclass(frozen=True, slots=True, kw_only=True)
class Spelling:
    """How the numbers of a column may be written.

    Args:
        ways: Marks of decimals and thousands by which all can be read, the usual ones first.
        marked: Whether any has such a mark; else they are whole.
        prefix: Currency in front of all.
        suffix: Currency, percent sign or unit behind all.
        values: The numbers, if they are written as programs write them.
    """

    ways: tuple[tuple[str, str], ...]
    marked: bool
    prefix: str = ""
    suffix: str = ""
    values: NDArray[np.float64] | None = None

    @classmethod
    def of(cls, words: Sequence[str]) -> Spelling | None:
        """Find it.

        Args:
            words: The distinct texts of the column.

        Returns:
            It, or ``None`` if some text is no number.
        """
        values = _plain_values(words)
        if values is not None:
            dots = [word for word in words if "." in word]
            grouped = bool(dots) and all(_body(",", ".").fullmatch(word.lstrip("+-")) for word in dots)
            either = ((".", ""), (",", "."))
            return cls(ways=either if grouped else either[:1], marked=bool(dots), values=values)
        affixes = set()
        bodies = []
        for word in words:
            text = word.translate(_TYPOGRAPHY)
            if text.lower() in _INFINITE:
                continue
            found = _NUMBER.fullmatch(text)
            if found is None or (found["sign"] and found["inner"]):
                return None
            affixes.add((found["prefix"] or "", found["suffix"] or ""))
            bodies.append(found["body"].strip())
            if len(affixes) > 1:
                return None
        if not affixes:
            return None
        prefix, suffix = affixes.pop()
        used = set("".join(bodies)) & _MARKS
        ways = tuple(
            (decimal, thousands)
            for decimal, thousands in _WAYS
            if (thousands in used if thousands else decimal in used or not used)
            and all(_body(decimal, thousands).fullmatch(body) for body in bodies)
        )
        return (
            cls(ways=ways[:1] if not used else ways, marked=bool(used), prefix=prefix, suffix=suffix) if ways else None
        )

    @property
    def marks(self) -> set[str]:
        """Marks of decimals that are possible; none of a column that shows no mark."""
        return {decimal for decimal, _ in self.ways} if self.marked else set()

    def format(self, words: Sequence[str], *, name: str, mark: str = "", separator: str = "") -> NumberFormat:
        """Choose one way.

        Args:
            words: The distinct texts of the column.
            name: Of the column.
            mark: Decimal mark of other columns of the table; empty if they do not show one.
            separator: What stands between the cells of the file.

        Returns:
            The format.

        Raises:
            DataError: If 1,234 may be 1234 or 1.234.
        """
        ways = list(self.ways)
        if not self.marked:
            ways = [(mark or ".", "")]
        elif len(ways) > 1:
            marks = [way for way in ways if way[0] == mark]
            if marks:
                ways = marks
            elif any("," in word for word in words):
                # Semicolons between cells leave the comma to the decimals; a comma in quotes stands between thousands.
                wanted = {";": ",", ",": "."}.get(separator)
                ways = [way for way in ways if way[0] == wanted]
                if not ways:
                    shown = next(word for word in words if "," in word)
                    raise DataError(
                        f"column '{name}' holds numbers such as '{shown}', in which the comma may stand before "
                        "decimals or between thousands; write a decimal point, or no mark between thousands"
                    )
        decimal, thousands = ways[0]
        return NumberFormat(decimal=decimal, thousands=thousands, prefix=self.prefix, suffix=self.suffix)


def _plain_values(words: Sequence[str]) -> NDArray[np.float64] | None:
    """Return numbers as programs write them; ``float`` alone would also take ``1_000`` and ``nan``."""
    if not words or not _PLAIN.issuperset(set("".join(words))):
        return None
    try:
        return np.array(list(map(float, words)), dtype=np.float64)
    except ValueError:
        return None


@functools.cache
def _body(decimal: str, thousands: str) -> re.Pattern[str]:
    point = re.escape(decimal)
    digits = r"[0-9]+"
    if thousands:
        digits = rf"(?:[1-9][0-9]{{0,2}}(?:{re.escape(thousands)}[0-9]{{3}})+|[0-9]+)"
    return re.compile(rf"(?:{digits}(?:{point}[0-9]*)?|{point}[0-9]+){_EXPONENT}")


def _float(value: float) -> float:
    try:
        return float(value)
    except OverflowError:
        return float("inf") if value > 0 else float("-inf")


# ------------------------------------------------------------------------------------------------------- dates
class AmbiguousDateError(ValueError):
    """Day and month of no row can be told apart.

    Attributes:
        word: A date of the column.
    """

    def __init__(self, word: str) -> None:
        super().__init__(word)
        self.word = word


_CLOCK = r"(?:(?:T|,?\s+)[0-9]{1,2}:[0-9]{2}(?::[0-9]{2}(?:\.[0-9]+)?)?(?:\s?[AaPp][Mm])?)?"
_ZONE = r"(?:Z|UTC|[-+][0-9]{2}:?[0-9]{2})"
_ISO = re.compile(
    rf"[0-9]{{4}}-[0-9]{{2}}-[0-9]{{2}}(?:[T ][0-9]{{2}}:[0-9]{{2}}(?::[0-9]{{2}}(?:\.[0-9]+)?)?\s?{_ZONE}?)?"
)
_YEAR_FIRST = re.compile(rf"[0-9]{{4}}([-/.])[0-9]{{1,2}}\1[0-9]{{1,2}}{_CLOCK}")
_MONTH = re.compile(r"[12][0-9]{3}-(?:0[1-9]|1[0-2])")
_YEAR_LAST = re.compile(rf"[0-9]{{1,2}}([-/.])[0-9]{{1,2}}\1([0-9]{{4}}|[0-9]{{2}}){_CLOCK}")
_NAMED = re.compile(
    rf"(?:[0-9]{{1,2}}[- ][A-Za-z]{{3,9}}[- ,]+[0-9]{{2,4}}|[A-Za-z]{{3,9}} [0-9]{{1,2}},? [0-9]{{4}}){_CLOCK}"
)
_CLOCKS = ("", " %H:%M", " %H:%M:%S", "T%H:%M:%S", "T%H:%M", " %H:%M:%S.%f", " %I:%M %p", " %I:%M:%S %p", ", %H:%M")
_WITH_NAMES = (
    "%d %b %Y", "%d %B %Y", "%d-%b-%Y", "%d-%B-%Y", "%d-%b-%y", "%d %b %y", "%d %b, %Y", "%d %B, %Y", "%b %d, %Y",
    "%B %d, %Y", "%b %d %Y", "%B %d %Y",
)  # fmt: skip


def date_format(words: Sequence[str], day_first: bool | None = None) -> str | None:
    """Find how the dates of a column are written.

    Args:
        words: Its distinct texts.
        day_first: Whether the day stands before the month where the rows do not say; ``None`` refuses to guess.

    Returns:
        A format of :func:`time.strftime`, or ``ISO8601``; ``None`` if some text is no date.

    Raises:
        AmbiguousDateError: If day and month can be told apart in no row.
    """
    if not words:
        return None
    if all(map(_ISO.fullmatch, words)):
        zoned = {re.search(_ZONE + "$", word[10:]) is not None for word in words}
        return "ISO8601" if len(zoned) == 1 and not np.isnan(parse_dates(words, "ISO8601")).any() else None
    if all(map(_MONTH.fullmatch, words)):
        return "%Y-%m"
    if all(map(_YEAR_FIRST.fullmatch, words)):
        mark = words[0][4]
        return _first(words, [f"%Y{mark}%m{mark}%d{clock}" for clock in _CLOCKS])
    if all(map(_NAMED.fullmatch, words)):
        return _first(words, [f"{day}{clock}" for clock in _CLOCKS for day in _WITH_NAMES])
    found = [_YEAR_LAST.fullmatch(word) for word in words]
    if not all(found):
        return None
    shapes = {(match[1], len(match[2])) for match in found if match}
    if len(shapes) > 1:
        return None
    mark, digits = shapes.pop()
    year = "%Y" if digits == 4 else "%y"
    by_day = _first(words, [f"%d{mark}%m{mark}{year}{clock}" for clock in _CLOCKS])
    by_month = _first(words, [f"%m{mark}%d{mark}{year}{clock}" for clock in _CLOCKS])
    if by_day is None or by_month is None:
        return by_day or by_month
    # Where points stand, the day comes first: nobody writes the month first that way.
    day_first = True if day_first is None and mark == "." else day_first
    if day_first is not None:
        return by_day if day_first else by_month
    if np.array_equal(parse_dates(words, by_day), parse_dates(words, by_month)):
        return by_day
    raise AmbiguousDateError(words[0])


def parse_dates(words: Sequence[str], format: str) -> NDArray[np.float64]:
    """Read dates.

    Args:
        words: Texts.
        format: What :func:`date_format` returned.

    Returns:
        Days since 1970-01-01, in universal time where the texts name a zone; NaN for what is no such date.
    """
    stamps = pd.to_datetime(pd.Series(list(words), dtype=object), format=format, errors="coerce", utc=True)
    day = datetime.timedelta(days=1) / datetime.timedelta(microseconds=1)
    values = stamps.dt.tz_localize(None).to_numpy("datetime64[us]")
    return np.where(np.isnat(values), np.nan, values.astype(np.int64) / day)


def _first(words: Sequence[str], formats: Sequence[str]) -> str | None:
    sample = list(words[:5])
    for format in formats:
        if not np.isnan(parse_dates(sample, format)).any() and not np.isnan(parse_dates(words, format)).any():
            return format
    return None
