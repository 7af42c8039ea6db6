"""What a record says of its date, as the last second that it can mean.

Text is ISO 8601: a year, a month, a week, a day (with or without hyphens, or of a week), or a day with a time and
perhaps a zone; without a zone it is UTC. A number is a year where it has four digits, and seconds since 1970 where no
day or month written without hyphens could be meant. Dates of tables (.parquet) are taken as they are.

A date that says less than a second stands for its last: 2015 for the end of 31 December. So dates of any kind are
compared as one number, and what is called earlier ended before.
"""

import argparse
import re
from calendar import monthrange
from datetime import UTC, date, datetime, timedelta
from typing import Any

from retro.corpus.files import Damaged
from retro.corpus.records import kind, plain

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
DAY = timedelta(days=1)
YEARS = (1000, 9999)  # numbers that are years
LEAST = 10**8  # seconds from 1970 that no day or month is written as: 20150301 has eight digits
FIRST, LAST = -62_135_596_800, 253_402_300_799  # the beginning of year 1, the end of 9999
WANTED = "wanted a date, such as 2015, 2015-03-01 or 2015-03-01T10:00:00Z"


def last_second(value: Any, field: str) -> int:
    """Seconds from 1970 to the last second of a date, UTC; negative before. Raises `Damaged` for what is no date."""
    try:
        seconds = _end(value)
    except (ValueError, OverflowError):
        seconds = LAST + 1
    if FIRST <= seconds <= LAST:
        return seconds
    found = repr(value[:40]) if isinstance(value, str) else plain(value)
    raise Damaged(f"field {field!r} is {found or kind(value)}, {WANTED}, or a number of seconds since 1970")


def _end(value: Any) -> int:
    """As `last_second`; `ValueError` for what is no date."""
    if isinstance(value, datetime):
        return _of_time(value)
    if isinstance(value, date):
        return _of_day(value)
    if isinstance(value, str):
        return _of_text(value)
    text = None if isinstance(value, bool) else plain(value)
    if text is None:
        raise ValueError
    seconds = int(float(text)) if "." in text or "e" in text else int(text)
    if YEARS[0] <= seconds <= YEARS[1] and str(seconds) == text:
        return _of_text(text)
    if abs(seconds) < LEAST:
        raise ValueError
    return seconds


def _of_text(text: str) -> int:
    if re.fullmatch(r"[0-9]{4}", text):
        return _of_day(date(int(text), 12, 31))
    if re.fullmatch(r"[0-9]{4}-[0-9]{2}", text):
        year, month = int(text[:4]), int(text[5:])
        return _of_day(date(year, month, monthrange(year, month)[1] if 1 <= month <= 12 else 1))
    if re.fullmatch(r"[0-9]{4}-?W[0-9]{2}", text):
        return _of_day(date.fromisoformat(text) + 6 * DAY)
    try:
        return _of_day(date.fromisoformat(text))
    except ValueError:
        coarse = re.fullmatch(r".{8,10}[T ][0-9]{2}(:?[0-9]{2})?(Z|[+-].*)?", text)
        rest = 0 if coarse is None else 59 if coarse[1] else 3599
        return _of_time(datetime.fromisoformat(text)) + rest


def _of_day(day: date) -> int:
    return (datetime(day.year, day.month, day.day, tzinfo=UTC) - EPOCH + DAY) // timedelta(seconds=1) - 1


def _of_time(time: datetime) -> int:
    return ((time if time.tzinfo else time.replace(tzinfo=UTC)) - EPOCH) // timedelta(seconds=1)


def date_argument(text: str) -> int:
    """The type of an argument that is a date."""
    try:
        return last_second(text, "date")
    except Damaged:
        raise argparse.ArgumentTypeError(f"{text!r}: {WANTED}") from None


def told(seconds: int) -> str:
    """A stored date for people: its day, and its time unless that is the day's last second."""
    moment = EPOCH + timedelta(seconds=int(seconds))
    day = moment.date().isoformat()
    return day if (seconds + 1) % 86_400 == 0 else f"{day}T{moment.time().isoformat()}Z"
