"""Chinese text made uniform, and the rules that say why a text is not worth training on.

A rule is a small function `(text, settings) -> reason | None`; RULES lists them in the order in which they are asked,
so a document is counted under the first reason that applies. Shares follow Gopher (arXiv:2112.11446, A1.1), with
characters in the place of words; thresholds were set by reading what they drop from real Chinese web text.
"""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

import ftfy
import numpy as np

from mengya.corpus.advertising import advertising_terms, is_report, sells

HAN = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff〇"
_CHINESE_PUNCTUATION = "，。、；：？！“”‘’（）《》〈〉【】「」『』…—"
_HAN = re.compile(f"[{HAN}]")


class Thresholds(Protocol):
    """What the rules ask of their settings; the recipe's `corpus` section has it all."""

    @property
    def min_han(self) -> int: ...
    @property
    def max_characters(self) -> int: ...
    @property
    def min_han_share(self) -> float: ...
    @property
    def max_symbol_share(self) -> float: ...
    @property
    def max_url_share(self) -> float: ...
    @property
    def max_digit_share(self) -> float: ...
    @property
    def max_mojibake_share(self) -> float: ...
    @property
    def max_repeated_line_share(self) -> float: ...
    @property
    def max_repeated_ngram_share(self) -> float: ...
    @property
    def max_advertising_terms(self) -> int: ...


# --- normalisation ----------------------------------------------------------------------------------------------------

_MOJIBAKE = re.compile("[\u0080-\u024f][\u0080-\u024f\u2010-\u2122]")  # UTF-8 read as Latin-1 or Windows-1252
_ENTITY = re.compile(r"&(?:nbsp|amp|lt|gt|quot|apos|[lr][ds]quo|hellip|mdash|middot|#\d{1,6}|#x[0-9a-fA-F]{1,5});")
# Not before a quotation mark or a bracket: print("你好\\n") means it.
_NOT_ASCII = "\u0080-\U0010ffff"
_LITERAL_NEWLINE = re.compile(rf"(?<=[{_NOT_ASCII}\d)\].:;!?\s])(?:(?:\\r)?\\n)+(?=[{_NOT_ASCII}\d\s\-(\[]|$)")
_REFERENCE_MARK = re.compile(rf"(?<=[{HAN}{_CHINESE_PUNCTUATION}])(?:\[\d{{1,3}}(?:[-–,，]\d{{1,3}})*\])+")
_HAN_OR_PUNCTUATION = f"[{HAN}{_CHINESE_PUNCTUATION}]"
_SPACED_OUT = re.compile(rf"(?<![^\s])[{HAN}](?: [{HAN}]){{3,}}(?![^\s{_CHINESE_PUNCTUATION}])")
_SPACE_AT_PUNCTUATION = re.compile(rf"(?<=[{_CHINESE_PUNCTUATION}]) +(?=\S)|(?<=\S) +(?=[{_CHINESE_PUNCTUATION}])")
_FULL_WIDTH = str.maketrans(",;:!?", "，；：！？")
# At a line's end neither ":" nor ";", which are code there: "for 数 in 数列:".
_HALF_WIDTH = re.compile(
    rf"(?<=[{HAN}”’》）】」』])(?:[,;:!?](?=[{HAN}“‘《（【「『”’》）】」』])|[,!?]$)", re.MULTILINE
)
# An icon that some page's encoding had no letter for: "编辑 ? ? 王蓉". Not the "条件 ? 甲 : 乙" of code.
_LOST_ICON = re.compile(rf"(?<={_HAN_OR_PUNCTUATION}) +\?(?: *\?)* +(?=[{HAN}])(?![^\n]* : )")
_WIDE_GAP = re.compile(rf"(?<={_HAN_OR_PUNCTUATION}) {{2,}}(?={_HAN_OR_PUNCTUATION})")
_INDENT = re.compile(rf"^[ \t]+(?=[{HAN}“《【「（])", re.MULTILINE)
_LINE_END = re.compile(r"[ \t]+$", re.MULTILINE)
BLANK_LINES = re.compile(r"\n{3,}")
_REPEATED = (
    (re.compile(r"([，、；：？！～])\1+"), r"\1"),
    (re.compile(r"([!?~])\1{3,}"), r"\1"),
    (re.compile("。{2,}|…{3,}|\\.{7,}"), "……"),
    (re.compile("—{3,}"), "——"),
)


def _character_table() -> dict[int, str | None]:
    table: dict[int, str | None] = {}
    for start, end in ((0xFF10, 0xFF19), (0xFF21, 0xFF3A), (0xFF41, 0xFF5A)):  # full-width digits and Latin letters
        table |= {code: chr(code - 0xFEE0) for code in range(start, end + 1)}
    for code in [*range(0x20), *range(0x7F, 0xA0)]:
        table[code] = None  # control characters
    # Zero-width joiners (U+200C, U+200D) stay: emoji are spelt with them.
    for code in (0xAD, 0x200B, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2060, 0x2065), 0xFEFF, 0xFFFE, 0xFFFF):
        table[code] = None
    for code in [*range(0xD800, 0xE000), *range(0xE000, 0xF900)]:
        table[code] = None  # lone surrogates and private use, the icons of web fonts
    for code in (0xA0, 0x1680, *range(0x2000, 0x200B), 0x202F, 0x205F, 0x3000):
        table[code] = " "
    table |= {0x09: "\t", 0x0A: "\n", 0x0B: "\n", 0x0C: "\n", 0x0D: "\n", 0x85: "\n", 0x2028: "\n", 0x2029: "\n"}
    return table


_CHARACTERS = _character_table()


def normalise(text: str) -> str:
    """`text` in the one form that training sees; normalising twice changes nothing more.

    Mojibake repaired (ftfy), NFC, HTML entities unescaped where no markup stands beside them, Latin letters and
    digits half width, punctuation between Chinese characters full width, control and invisible characters removed,
    line ends "\\n" (a literal backslash-n between Chinese sentences too), no white space beside Chinese punctuation or
    at line ends, no Chinese text spelt with a space after each character, no "?" where an icon was lost, runs of
    punctuation cut, reference marks like [1-2] after Chinese text removed. Indentation and spaces of code are left
    alone.
    """
    if _MOJIBAKE.search(text):
        text = ftfy.fix_encoding(text)
    text = text.replace("\r\n", "\n").translate(_CHARACTERS)
    while "&" in text and "<" not in text and _ENTITY.search(text):
        text = _ENTITY.sub(lambda entity: html.unescape(entity[0]), text).translate(_CHARACTERS)
    if not unicodedata.is_normalized("NFC", text):
        text = unicodedata.normalize("NFC", text)
    tidier = _tidied(text)
    while tidier != text:  # a removed mark may bring a space beside a full stop, and a removed space two full stops
        text, tidier = tidier, _tidied(tidier)
    return text


def _tidied(text: str) -> str:
    """One pass over punctuation and white space."""
    if "\\n" in text:
        text = _LITERAL_NEWLINE.sub("\n", text)
    if "[" in text:
        text = _REFERENCE_MARK.sub("", text)
    text = _HALF_WIDTH.sub(lambda mark: mark[0].translate(_FULL_WIDTH), text)
    if " " in text or "\t" in text:
        text = _LOST_ICON.sub(" ", text)
        text = _SPACED_OUT.sub(lambda run: run[0].replace(" ", ""), text)
        text = _SPACE_AT_PUNCTUATION.sub("", text)
        text = _WIDE_GAP.sub(" ", text)
        text = _INDENT.sub("", text)
        text = _LINE_END.sub("", text)
    for pattern, replacement in _REPEATED:
        text = pattern.sub(replacement, text)
    return BLANK_LINES.sub("\n\n", text).strip()


_PARAGRAPH = 20  # characters; shorter lines may repeat on purpose: refrains, headings, code


def without_repeated_paragraphs(text: str) -> str:
    """`text` with each longer line of Chinese once: web pages often hold an article, or its captions, twice."""
    seen: set[str] = set()
    kept: list[str] = []
    for line in text.split("\n"):
        paragraph = line.strip()
        if len(paragraph) >= _PARAGRAPH and paragraph in seen and len(_HAN.findall(paragraph)) * 2 >= len(paragraph):
            continue
        seen.add(paragraph)
        kept.append(line)
    return BLANK_LINES.sub("\n\n", "\n".join(kept)).strip()


# --- rules ------------------------------------------------------------------------------------------------------------

_VISIBLE = re.compile(r"\S")
_SPACE = re.compile(r"\s+")
_NUMBER = re.compile(r"\d{3,}")
_URL = re.compile(r"(?:https?://|www\.)[\w\-./?%&=#:~+@]+|[\w\-.]+@[\w\-]+\.\w+", re.ASCII)
_SYMBOL = re.compile(rf"[^\w\s{_CHINESE_PUNCTUATION},.;:?!'\"()\[\]\-/%·～~]")
# "，" "。" "“" "的" "是" "在" "一" "了" "们" and others, read as GBK; then what U+FFFD and stack filling turn into.
_GBK_MOJIBAKE = re.compile("锟斤拷|[锛銆鈥鐨鏄鍦浜嗕鍙鎴杩瑙缁闂\ufffd]|涓€|烫烫烫+|屯屯屯+")
_NGRAM = 10
_ADVERTISING_DENSITY = 100  # at least one term in so many characters
_STUFFED = 8  # mentions of one term: written for search engines
_SHORT_ADVERTISEMENT = 200  # characters; up to here one distinct term less suffices


def _visible_length(text: str) -> int:
    return max(len(_SPACE.sub("", text)), 1)


def too_short(text: str, settings: Thresholds) -> str | None:
    return "too_short" if len(_HAN.findall(text)) < settings.min_han else None


def too_long(text: str, settings: Thresholds) -> str | None:
    return "too_long" if len(text) > settings.max_characters else None


def low_han_share(text: str, settings: Thresholds) -> str | None:
    return "low_han_share" if len(_HAN.findall(text)) < settings.min_han_share * _visible_length(text) else None


def many_symbols(text: str, settings: Thresholds) -> str | None:
    """Neither letters nor digits nor the punctuation of prose: icons, box drawing, what mojibake leaves (U+FFFD)."""
    return "many_symbols" if len(_SYMBOL.findall(text)) > settings.max_symbol_share * _visible_length(text) else None


def many_urls(text: str, settings: Thresholds) -> str | None:
    """More than one, for a short report may end with the long address that it came from."""
    urls = _URL.findall(text)
    characters = sum(map(len, urls)) if len(urls) > 1 else 0
    return "many_urls" if characters > settings.max_url_share * _visible_length(text) else None


def many_digits(text: str, settings: Thresholds) -> str | None:
    """Digits of numbers of three or more places: telephone lists and tables, but not a page of sums."""
    characters = sum(map(len, _NUMBER.findall(text)))
    return "many_digits" if characters > settings.max_digit_share * _visible_length(text) else None


def mojibake(text: str, settings: Thresholds) -> str | None:
    """What ftfy cannot mend: the marks of UTF-8 read as GBK, where lost bytes leave rare characters or 锟斤拷."""
    characters = sum(map(len, _GBK_MOJIBAKE.findall(text)))
    return "mojibake" if characters > settings.max_mojibake_share * _visible_length(text) else None


def repeated_lines(text: str, settings: Thresholds) -> str | None:
    """The share of characters in lines that stood there before; lines under 5 characters (braces, numbers) are free."""
    lines = [line for line in (raw.strip() for raw in text.split("\n")) if len(line) >= 5]
    seen: set[str] = set()
    repeated = 0
    for line in lines:
        if line in seen:
            repeated += len(line)
        seen.add(line)
    return "repeated_lines" if repeated > settings.max_repeated_line_share * sum(map(len, lines)) else None


def repeated_ngrams(text: str, settings: Thresholds) -> str | None:
    """The share of 10-character n-grams that are not the first of their kind."""
    text = _SPACE.sub("", text)
    if len(text) < 4 * _NGRAM:
        return None
    codes = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32).astype(np.uint64)
    hashes = np.zeros(len(codes) - _NGRAM + 1, dtype=np.uint64)
    for offset in range(_NGRAM):
        hashes = hashes * np.uint64(0x9E3779B97F4A7C15) + codes[offset : offset + len(hashes)]
    share = 1 - len(np.unique(hashes)) / len(hashes)
    return "repeated_ngrams" if share > settings.max_repeated_ngram_share else None


def advertisement(text: str, settings: Thresholds) -> str | None:
    """Enough distinct advertising terms, or one over and over, standing densely.

    Long news may name three of them and sell nothing.
    """
    terms = advertising_terms(text)
    if not sells(terms) or len(terms) * _ADVERTISING_DENSITY < len(text):
        return None
    needed = settings.max_advertising_terms
    if is_report(text):
        needed *= 2
    elif max(map(terms.count, set(terms))) >= _STUFFED:
        return "advertisement"
    elif len(text) <= _SHORT_ADVERTISEMENT:
        needed -= 1
    return "advertisement" if len(set(terms)) >= needed else None


Rule = Callable[[str, Thresholds], str | None]
RULES: tuple[Rule, ...] = (
    too_short,
    too_long,
    low_han_share,
    mojibake,
    many_symbols,
    many_urls,
    many_digits,
    repeated_lines,
    repeated_ngrams,
    advertisement,
)


def first_reason(text: str, settings: Thresholds) -> str | None:
    """The reason of the first rule of RULES that drops a normalised text; None for a text worth keeping."""
    for rule in RULES:
        if reason := rule(text, settings):
            return reason
    return None


def clean_batch(texts: Iterable[str], settings: Thresholds) -> list[Cleaned]:
    """(normalised text, reason to drop it or None) of each: the work that a process is given."""
    cleaned = [without_repeated_paragraphs(normalise(text)) for text in texts]
    return [Cleaned(text, first_reason(text, settings)) for text in cleaned]


@dataclass(frozen=True, slots=True)
class Cleaned:
    text: str
    reason: str | None
    changed: tuple[str, ...] = ()
