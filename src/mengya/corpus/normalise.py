"""Chinese text made uniform: every transformation is a function `text -> text`, and STEPS says in which order they run.

Each step has a key of its own name in the recipe's cleaning settings and can be switched off there. Groups of several
steps are repeated until nothing changes, so that cleaning a clean text changes nothing more.
"""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Callable
from functools import cache

import ftfy

from mengya.errors import UserError
from mengya.settings import CleaningSettings

HAN = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff〇"
CHINESE_PUNCTUATION = "，。、；：？！“”‘’（）《》〈〉【】「」『』…—"
BLANK_LINES = re.compile(r"\n{3,}")

Transformation = Callable[[str], str]

# --- characters -------------------------------------------------------------------------------------------------------

_MOJIBAKE = re.compile("[\u0080-\u024f][\u0080-\u024f\u2010-\u2122]")  # UTF-8 read as Latin-1 or Windows-1252
_ENTITY = re.compile(r"&(?:nbsp|amp|lt|gt|quot|apos|[lr][ds]quo|hellip|mdash|middot|#\d{1,6}|#x[0-9a-fA-F]{1,5});")


def _control_table() -> dict[int, str | None]:
    table: dict[int, str | None] = dict.fromkeys([*range(0x20), *range(0x7F, 0xA0)])
    # Zero-width joiners (U+200C, U+200D) stay: emoji are spelt with them.
    invisible = (0xAD, 0x200B, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2060, 0x2065), 0xFEFF, 0xFFFE, 0xFFFF)
    table |= dict.fromkeys(invisible)
    table |= dict.fromkeys(range(0xD800, 0xF900))  # lone surrogates and private use, the icons of web fonts
    table |= dict.fromkeys((0xA0, 0x1680, *range(0x2000, 0x200B), 0x202F, 0x205F, 0x3000), " ")
    return table | {0x09: "\t", 0x0A: "\n", 0x0B: "\n", 0x0C: "\n", 0x0D: "\n", 0x85: "\n", 0x2028: "\n", 0x2029: "\n"}


_CONTROL = _control_table()
_FULL_WIDTH_LETTERS = {code: chr(code - 0xFEE0) for code in range(0xFF10, 0xFF5B) if chr(code - 0xFEE0).isalnum()}
_ANY_CONTROL = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\xa0\xad\u1680\u2000-\u200b\u200e\u200f\u2028-\u202f\u205f-\u2064\u3000\ud800-\uf8ff"
    "\ufeff\ufffe\uffff]"
)
_ANY_FULL_WIDTH_LETTER = re.compile("[０-９Ａ-Ｚａ-ｚ]")


def mojibake(text: str) -> str:
    """Repaired by ftfy where UTF-8 was read as Latin-1 or Windows-1252."""
    return ftfy.fix_encoding(text) if _MOJIBAKE.search(text) else text


def control_characters(text: str) -> str:
    """Without control, invisible and private-use characters; one kind of line end, one kind of space."""
    if not _ANY_CONTROL.search(text):
        return text
    return text.replace("\r\n", "\n").translate(_CONTROL)


def half_width(text: str) -> str:
    """Latin letters and digits half width; Chinese punctuation keeps its width."""
    return text.translate(_FULL_WIDTH_LETTERS) if _ANY_FULL_WIDTH_LETTER.search(text) else text


def entities(text: str) -> str:
    """HTML entities unescaped where no markup stands beside them: beside a tag they are an example of HTML."""
    if "&" not in text or "<" in text:
        return text
    return _ENTITY.sub(lambda entity: html.unescape(entity[0]), text)


def unicode(text: str) -> str:
    """In NFC; not NFKC, which would make Chinese punctuation half width."""
    return text if unicodedata.is_normalized("NFC", text) else unicodedata.normalize("NFC", text)


@cache
def _converter() -> Transformation:
    try:
        from opencc import OpenCC  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        raise UserError(
            "converting traditional characters needs OpenCC, which is not installed",
            where="corpus.simplified",
            mend="pip install 'mengya[opencc]', or leave the key out",
        ) from None
    convert: Transformation = OpenCC("t2s").convert
    return convert


def simplified(text: str) -> str:
    """Traditional characters simplified by OpenCC, with its phrases (乾隆 stays, 乾燥 becomes 干燥)."""
    return _converter()(text)


# --- what web pages leave ---------------------------------------------------------------------------------------------

# Not before a quotation mark or a bracket: print("你好\\n") means it.
_NOT_ASCII = "\u0080-\U0010ffff"
_LITERAL_NEWLINE = re.compile(rf"(?<=[{_NOT_ASCII}\d)\].:;!?\s])(?:(?:\\r)?\\n)+(?=[{_NOT_ASCII}\d\s\-(\[]|$)")
# Two and more in a row, outside any tag: HTML that is meant has its tag around them.
_STYLES = re.compile(r'(?:\b(?:white)?style="[^"<>\n]{0,300}"\s*){2,}')
_ATTACHMENT = re.compile(
    r"(?:[\w.\-]{1,80}\.(?:jpe?g|png|gif|bmp|webp)\s*\([\d.]+ ?[KMkm][Bb][，,]\s*(?:下载次数|!downloads!)[:：]\s*\d+\)\s*)?"
    r"(?:下载附件|!download!)\s*(?:保存到相册|!?save_to_album!?)\s*"
    r"(?:(?:\d{4}-\d{1,2}-\d{1,2}|今天|昨天|前天)\s*\d{1,2}:\d{2}|半?\s*\d*\s*(?:秒|分钟|小时|天)前)\s*上传"
)
_REFERENCE_MARK = re.compile(rf"(?<=[{HAN}{CHINESE_PUNCTUATION}])(?:\[\d{{1,3}}(?:[-–,，]\d{{1,3}})*\])+")
# An icon that some page's encoding had no letter for: "编辑 ? ? 王蓉". Not the "条件 ? 甲 : 乙" of code.
_HAN_OR_PUNCTUATION = f"[{HAN}{CHINESE_PUNCTUATION}]"
_LOST_ICON = re.compile(rf"(?<={_HAN_OR_PUNCTUATION}) +\?(?: *\?)* +(?=[{HAN}])(?![^\n]* : )")


def literal_newlines(text: str) -> str:
    r"""A line end where a page has a literal \n between Chinese sentences."""
    return _LITERAL_NEWLINE.sub("\n", text) if "\\n" in text else text


def markup(text: str) -> str:
    """Without style attributes that lost their tags, and the captions of forum attachments (Discuz)."""
    if 'style="' in text:
        text = _STYLES.sub("", text)
    if "上传" in text:
        text = _ATTACHMENT.sub("", text)
    return text


def reference_marks(text: str) -> str:
    """Without [1-2] and [3][4] after Chinese text; array[1] stays."""
    return _REFERENCE_MARK.sub("", text) if "[" in text else text


def lost_icons(text: str) -> str:
    """Without the question marks that stand where an icon was lost."""
    return _LOST_ICON.sub(" ", text) if " ?" in text else text


# --- punctuation and white space --------------------------------------------------------------------------------------

_FULL_WIDTH = str.maketrans(",;:!?", "，；：！？")
# At a line's end neither ":" nor ";", which are code there: "for 数 in 数列:".
_HALF_WIDTH = re.compile(
    rf"(?<=[{HAN}”’》）】」』])(?:[,;:!?](?=[{HAN}“‘《（【「『”’》）】」』])|[,!?]$)", re.MULTILINE
)
_SPACED_OUT = re.compile(rf"(?<![^\s])[{HAN}](?: [{HAN}]){{3,}}(?![^\s{CHINESE_PUNCTUATION}])")
_SPACE_AT_PUNCTUATION = re.compile(rf"(?<=[{CHINESE_PUNCTUATION}]) +(?=\S)|(?<=\S) +(?=[{CHINESE_PUNCTUATION}])")
_WIDE_GAP = re.compile(rf"(?<={_HAN_OR_PUNCTUATION}) {{2,}}(?={_HAN_OR_PUNCTUATION})")
_INDENT = re.compile(rf"^[ \t]+(?=[{HAN}“《【「（])", re.MULTILINE)
_LINE_END = re.compile(r"[ \t]+$", re.MULTILINE)
_REPEATED = re.compile(r"([，、；：？！～])\1+|([!?~])\2{3,}|(。{2,}|…{3,}|\.{7,})|—{3,}")


def full_width(text: str) -> str:
    """Punctuation between Chinese characters full width."""
    return _HALF_WIDTH.sub(lambda mark: mark[0].translate(_FULL_WIDTH), text)


def white_space(text: str) -> str:
    """Without spaces in and around Chinese text, at line ends and at both ends, and with one blank line at most.

    Chinese text spelt with a space after each character is joined; indentation and spaces of code are left alone.
    """
    if " " in text or "\t" in text:
        text = _SPACED_OUT.sub(lambda run: run[0].replace(" ", ""), text)
        text = _SPACE_AT_PUNCTUATION.sub("", text)
        text = _WIDE_GAP.sub(" ", text)
        text = _INDENT.sub("", text)
        text = _LINE_END.sub("", text)
    return BLANK_LINES.sub("\n\n", text).strip()


def repeated_punctuation(text: str) -> str:
    """Runs of one mark cut to one, of full stops to an ellipsis, of dashes to a Chinese dash."""
    return _REPEATED.sub(lambda run: run[1] or run[2] or ("……" if run[3] else "——"), text)


_STEPS: tuple[tuple[tuple[str, Transformation], ...], ...] = (
    (("mojibake", mojibake),),
    (
        ("control_characters", control_characters),
        ("half_width", half_width),
        ("entities", entities),
        ("unicode", unicode),
    ),
    (("simplified", simplified),),
    (
        ("literal_newlines", literal_newlines),
        ("markup", markup),
        ("reference_marks", reference_marks),
        ("full_width", full_width),
        ("lost_icons", lost_icons),
        ("white_space", white_space),
        ("repeated_punctuation", repeated_punctuation),
    ),
)
STEPS: tuple[tuple[str, Transformation], ...] = tuple(step for group in _STEPS for step in group)

_DEFAULTS = CleaningSettings()


def normalise(text: str, settings: CleaningSettings = _DEFAULTS, changed: list[str] | None = None) -> str:
    """`text` in the one form that training sees; normalising twice changes nothing more.

    Names of the steps that changed it are added to `changed`. UserError when OpenCC is asked for and absent.
    """
    for group in _STEPS:
        steps = [step for step in group if getattr(settings, step[0])]
        again = bool(steps)
        while again:  # a removed mark may bring a space beside a full stop, and a removed space two full stops
            before = text
            for name, function in steps:
                tidier = function(text)
                if tidier != text:
                    text = tidier
                    if changed is not None and name not in changed:
                        changed.append(name)
            again = len(group) > 1 and text != before
    return text


_PARAGRAPH = 20  # characters; shorter lines may repeat on purpose: refrains, headings, code
_ANY_HAN = re.compile(f"[{HAN}]")


def repeated_paragraphs(text: str) -> str:
    """`text` with each longer line of Chinese once: web pages often hold an article, or its captions, twice."""
    if "\n" not in text:
        return text
    seen: set[str] = set()
    kept: list[str] = []
    for line in text.split("\n"):
        paragraph = line.strip()
        if (
            len(paragraph) >= _PARAGRAPH
            and paragraph in seen
            and len(_ANY_HAN.findall(paragraph)) * 2 >= len(paragraph)
        ):
            continue
        seen.add(paragraph)
        kept.append(line)
    joined = "\n".join(kept)
    return text if joined == text else BLANK_LINES.sub("\n\n", joined).strip()
