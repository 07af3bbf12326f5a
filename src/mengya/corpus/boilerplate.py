"""Lines that recur over the documents of a source (notices, navigation): found in one pass, removed in another."""

from __future__ import annotations

import hashlib
import re
from collections import Counter, defaultdict

from mengya.corpus.clean import BLANK_LINES, HAN

_HAN = re.compile(f"[{HAN}]")
_MIN_BOILERPLATE = 6
# "传染性：无传染性" recurs in half of the entries of a reference work and is content there; a notice is not.
_ENTRY = re.compile(r"^\W{0,3}\w{1,8}[：:]")
_COPYRIGHT = re.compile("copyright|rights reserved|©", re.IGNORECASE)
_NOTICE = re.compile("声明|版权|转载|编辑|来源|扫码|公众号|点击|关注|热线|客服|网站|http|www")


def _line_key(line: str) -> int:
    return int.from_bytes(hashlib.blake2b(line.encode(), digest_size=8).digest(), "little")


def _may_be_boilerplate(line: str) -> bool:
    if len(line) < _MIN_BOILERPLATE or not (_HAN.search(line) or _COPYRIGHT.search(line)):
        return False
    return not _ENTRY.match(line) or _NOTICE.search(line) is not None


class Boilerplate:
    """Lines that recur over a source: `count` every document first, then `strip` each.

    A line counts once a document, by its hash (8 bytes a distinct line). Lines without Han characters (code),
    shorter than 6 characters, or of an entry's form "name：value" are left alone.
    """

    def __init__(self, min_documents: int, min_share: float) -> None:
        self.min_documents, self.min_share = min_documents, min_share
        self._lines: defaultdict[str, Counter[int]] = defaultdict(Counter)
        self._documents: Counter[str] = Counter()

    def count(self, source: str, text: str) -> None:
        self._documents[source] += 1
        lines = {line.strip() for line in text.split("\n")}
        self._lines[source].update(_line_key(line) for line in lines if _may_be_boilerplate(line))

    def _recurs(self, source: str, line: str) -> bool:
        count = self._lines[source][_line_key(line)]
        return count > self.min_documents and count > self.min_share * self._documents[source]

    def strip(self, source: str, text: str) -> tuple[str, list[str]]:
        """(the text without its boilerplate lines, those lines)."""
        kept: list[str] = []
        removed: list[str] = []
        for raw in text.split("\n"):
            line = raw.strip()
            if _may_be_boilerplate(line) and self._recurs(source, line):
                removed.append(line)
            else:
                kept.append(raw)
        return (BLANK_LINES.sub("\n\n", "\n".join(kept)).strip(), removed) if removed else (text, removed)
