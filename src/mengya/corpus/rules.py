"""The rules that say why a text is not worth training on.

A rule is a small function `(text, settings) -> reason | None`; RULES lists them in the order in which they are asked,
so a document is counted under the first reason that applies, and SETTING_OF says which key tunes each. Shares follow
Gopher (arXiv:2112.11446, A1.1), with characters in the place of words; thresholds were set by reading what they drop
from real Chinese web text (docs/results/cleaning.md).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from mengya.corpus.advertising import advertising_terms, calls, is_report, sells
from mengya.corpus.encyclopaedia import encyclopaedia_reason
from mengya.corpus.normalise import CHINESE_PUNCTUATION, HAN
from mengya.corpus.web_pages import notice_share, offers_spam
from mengya.settings import CleaningSettings

# The commonest characters of modern prose, then those of the classical language.
COMMON = (
    "的一是不了在人有我他这个们中来上大为和国地到以说时要就出会可也你对生能而子那得于着下自之年过发后作里用道行所然家种事成方多"
    "经么去法学如都同现当没动面起看定天分还进好小部其些主样理心她本前开但因只从想实日月此与及被把给让将已由"
    "乎者曰乃夫则何无若吾尔矣焉"
)
_STOPS = "，。！？；…,!?;"

_NUMBER = re.compile(r"\d{3,}")
_URL = re.compile(r"(?:https?://|www\.)[\w\-./?%&=#:~+@]+|[\w\-.]+@[\w\-]+\.\w+", re.ASCII)
_NOT_SYMBOLS = re.compile(rf"[\w\s{CHINESE_PUNCTUATION},.;:?!'\"()\[\]\-/%·～~]+")
# "，" "。" "“" "的" "是" "在" "一" "了" "们" and others, read as GBK; then what U+FFFD and stack filling turn into.
_GBK_MOJIBAKE = re.compile("锟斤拷|[锛銆鈥鐨鏄鍦浜嗕鍙鎴杩瑙缁闂\ufffd]|涓€|烫烫烫+|屯屯屯+")
_SPACE = re.compile(r"\s+")
_NGRAM = 10  # characters; the hash below is written for ten
# A polynomial hash modulo 2^64, by doubling: of 2 characters, 4, 8, and of 8 and 2 that of 10.
_BASE = {power: np.uint64(pow(0x9E3779B97F4A7C15, power, 1 << 64)) for power in (1, 2, 4)}
_ADVERTISING_DENSITY = 100  # at least one term in so many characters
_STUFFED = 8  # mentions of one term: written for search engines
_SHORT_ADVERTISEMENT = 200  # characters; up to here one distinct term less suffices
_MIN_STATISTICS = 100  # Han characters from which shares of common characters and of punctuation mean something
_PROSE = 0.24  # of Han characters common ones: posters and subtitles have no punctuation either, but prose in them
_SNIPPET = 400  # characters of a result page, at most
_AGO = re.compile(r"\d+\s*(?:分钟|小时|天)前\s*[?？]?\s*[-—]|[-—]\s*[?？]?\s*\d+\s*(?:分钟|小时|天)前")
_CUT_OFF = re.compile(r"[^.]\.{2,3}(?=[^.]|$)")

_IS_HAN, _IS_COMMON, _IS_STOP, _IS_SPACE, _IS_SYMBOL = (np.uint8(1 << bit) for bit in range(5))


class Counts(NamedTuple):
    """How many characters of each kind a text has; `visible` are those that are not white space, at least 1."""

    visible: int
    han: int
    common: int
    stops: int
    symbols: int


@lru_cache(1)
def _kinds() -> np.ndarray:
    """The kinds of every code point, as bits; made from the same patterns once a process (50 ms)."""
    characters = "".join(map(chr, range(0x110000)))
    kinds = np.full(len(characters), _IS_SYMBOL)
    for pattern, add, keep in (
        (_NOT_SYMBOLS, 0, 0),
        (re.compile(f"[{HAN}]+"), _IS_HAN, 0xFF),
        (re.compile(f"[{COMMON}]+"), _IS_COMMON, 0xFF),
        (re.compile(f"[{_STOPS}]+"), _IS_STOP, 0xFF),
        (re.compile(r"\s+"), _IS_SPACE, 0xFF),
    ):
        for run in pattern.finditer(characters):
            kinds[run.start() : run.end()] &= np.uint8(keep)
            kinds[run.start() : run.end()] |= np.uint8(add)
    return kinds


@lru_cache(1)
def _codes(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)


@lru_cache(1)
def counts(text: str) -> Counts:
    """Counted in one pass, and remembered for the next rule that asks about the same text."""
    of_kind = np.bincount(_kinds()[_codes(text)], minlength=32)
    total = [int(of_kind[[kind for kind in range(32) if kind >> bit & 1]].sum()) for bit in range(5)]
    han, common, stops, spaces, symbols = total
    return Counts(max(len(text) - spaces, 1), han, common, stops, symbols)


def too_short(text: str, settings: CleaningSettings) -> str | None:
    return "too_short" if counts(text).han < settings.min_han else None


def too_long(text: str, settings: CleaningSettings) -> str | None:
    limit = settings.max_characters
    return "too_long" if limit is not None and len(text) > limit else None


def encyclopaedia(text: str, settings: CleaningSettings) -> str | None:
    """A stub, or nothing but tables of parameters."""
    return encyclopaedia_reason(text) if settings.encyclopaedia else None


def low_han_share(text: str, settings: CleaningSettings) -> str | None:
    share, of = settings.min_han_share, counts(text)
    return "low_han_share" if share is not None and of.han < share * of.visible else None


def mojibake(text: str, settings: CleaningSettings) -> str | None:
    """What ftfy cannot mend: the marks of UTF-8 read as GBK, where lost bytes leave rare characters or 锟斤拷."""
    share = settings.max_mojibake_share
    if share is None:
        return None
    characters = sum(map(len, _GBK_MOJIBAKE.findall(text)))
    return "mojibake" if characters > share * counts(text).visible else None


def many_symbols(text: str, settings: CleaningSettings) -> str | None:
    """Neither letters nor digits nor the punctuation of prose: icons, box drawing, what mojibake leaves (U+FFFD)."""
    share, of = settings.max_symbol_share, counts(text)
    return "many_symbols" if share is not None and of.symbols > share * of.visible else None


def many_urls(text: str, settings: CleaningSettings) -> str | None:
    """More than one, for a short report may end with the long address that it came from."""
    share = settings.max_url_share
    if share is None:
        return None
    urls = _URL.findall(text)
    characters = sum(map(len, urls)) if len(urls) > 1 else 0
    return "many_urls" if characters > share * counts(text).visible else None


def many_digits(text: str, settings: CleaningSettings) -> str | None:
    """Digits of numbers of three or more places: telephone lists and tables, but not a page of sums."""
    share = settings.max_digit_share
    if share is None:
        return None
    characters = sum(map(len, _NUMBER.findall(text)))
    return "many_digits" if characters > share * counts(text).visible else None


def repeated_lines(text: str, settings: CleaningSettings) -> str | None:
    """The share of characters in lines that stood there before; lines under 5 characters (braces, numbers) are free."""
    share = settings.max_repeated_line_share
    if share is None:
        return None
    lines = [line for line in (raw.strip() for raw in text.split("\n")) if len(line) >= 5]
    seen: set[str] = set()
    repeated = 0
    for line in lines:
        if line in seen:
            repeated += len(line)
        seen.add(line)
    return "repeated_lines" if repeated > share * sum(map(len, lines)) else None


def repeated_ngrams(text: str, settings: CleaningSettings) -> str | None:
    """The share of 10-character n-grams that are not the first of their kind."""
    limit = settings.max_repeated_ngram_share
    if limit is None:
        return None
    codes = _codes(text)
    codes = codes[(_kinds()[codes] & _IS_SPACE) == 0].astype(np.uint64)
    if len(codes) < 4 * _NGRAM:
        return None
    two = codes[:-1] * _BASE[1] + codes[1:]
    four = two[:-2] * _BASE[2] + two[2:]
    eight = four[:-4] * _BASE[4] + four[4:]
    hashes = eight[:-2] * _BASE[2] + two[8:]
    share = 1 - len(np.unique(hashes)) / len(hashes)
    return "repeated_ngrams" if share > limit else None


def few_common_characters(text: str, settings: CleaningSettings) -> str | None:
    """Random characters, lists of names and keywords: the stop-word rule of Gopher, for a script without words."""
    share, of = settings.min_common_share, counts(text)
    if share is None or of.han < _MIN_STATISTICS:
        return None
    return "few_common_characters" if of.common < share * of.han else None


def few_stops(text: str, settings: CleaningSettings) -> str | None:
    """Tables, schedules and lists of names: hardly any punctuation, and few of the characters of prose."""
    share, of = settings.min_stop_share, counts(text)
    if share is None or of.han < _MIN_STATISTICS:
        return None
    return "few_stops" if of.stops < share * of.han and of.common < _PROSE * of.han else None


def notices(text: str, settings: CleaningSettings) -> str | None:
    """Nothing but a headline said twice, "follow us" and copyright."""
    limit = settings.max_notice_share
    return "notices" if limit is not None and notice_share(text) > limit else None


def search_snippet(text: str, settings: CleaningSettings) -> str | None:
    """A result of a search engine: an age and a dash, or sentences cut off, in a short text."""
    if not settings.search_snippets or len(text) > _SNIPPET:
        return None
    cut_off = text.endswith("..") and len(_CUT_OFF.findall(text)) >= 2
    return "search_snippet" if cut_off or _AGO.search(text) else None


def spam(text: str, settings: CleaningSettings) -> str | None:
    """Gambling, sex, forged goods or papers offered in the title, over whatever text; and the pages of shops."""
    return "spam" if settings.spam and offers_spam(text) else None


def advertisement(text: str, settings: CleaningSettings) -> str | None:
    """Enough distinct advertising terms, or one over and over, standing densely.

    Long news may name three of them and sell nothing.
    """
    needed = settings.max_advertising_terms
    if needed is None:
        return None
    terms = advertising_terms(text)
    if not sells(terms) or len(terms) * _ADVERTISING_DENSITY < len(text):
        return None
    if is_report(text):
        needed *= 2
    elif max(map(terms.count, set(terms))) >= _STUFFED and calls(terms):
        return "advertisement"
    elif len(text) <= _SHORT_ADVERTISEMENT:
        needed -= 1
    return "advertisement" if len(set(terms)) >= needed else None


Rule = Callable[[str, CleaningSettings], str | None]
RULES: tuple[Rule, ...] = (
    too_short,
    too_long,
    encyclopaedia,
    low_han_share,
    mojibake,
    many_symbols,
    many_urls,
    many_digits,
    repeated_lines,
    repeated_ngrams,
    spam,
    search_snippet,
    notices,
    few_common_characters,
    few_stops,
    advertisement,
)
SETTING_OF: dict[str, str] = {
    "too_short": "min_han",
    "too_long": "max_characters",
    "encyclopaedia_stub": "encyclopaedia",
    "encyclopaedia_table": "encyclopaedia",
    "low_han_share": "min_han_share",
    "mojibake": "max_mojibake_share",
    "many_symbols": "max_symbol_share",
    "many_urls": "max_url_share",
    "many_digits": "max_digit_share",
    "repeated_lines": "max_repeated_line_share",
    "repeated_ngrams": "max_repeated_ngram_share",
    "spam": "spam",
    "search_snippet": "search_snippets",
    "notices": "max_notice_share",
    "few_common_characters": "min_common_share",
    "few_stops": "min_stop_share",
    "advertisement": "max_advertising_terms",
}
"""{reason: the key of `CleaningSettings` that tunes its rule}"""


def first_reason(text: str, settings: CleaningSettings) -> str | None:
    """The reason of the first rule of RULES that drops a normalised text; None for a text worth keeping."""
    for rule in RULES:
        if reason := rule(text, settings):
            return reason
    return None
