"""Lines that recur over the documents of a source (notices, navigation): found in one pass, removed in another."""

from __future__ import annotations

import hashlib
import re
from collections import Counter, defaultdict

import numpy as np
import numpy.typing as npt

from mengya.corpus.normalise import BLANK_LINES, HAN

_HAN = re.compile(f"[{HAN}]")
_MIN_BOILERPLATE = 6
# "传染性：无传染性" and "# 总结" recur in half of the entries of a reference work and are content there.
_CONTENT = re.compile(r"^(?:#|\W{0,3}\w{1,8}[：:])")
_COPYRIGHT = re.compile("copyright|rights reserved|©", re.IGNORECASE)
_NOTICE = re.compile(
    "声明|版权|转载|编辑|来源|投稿|出自|不代表|扫码|公众号|点击|关注|点赞|收藏|分享|评论|热线|客服|联系我们|网站|首页|"
    "上一篇|下一篇|返回|登录|注册|打印本页|阅读全文|查看更多|http|www|©|copyright",
    re.IGNORECASE,
)


_SENTENCE_END = "。！？!?…；”」』"


def _tail(text: str) -> str:
    """What follows the last sentence end of the last line, where pages that are one long line keep their notice."""
    line = text[text.rfind("\n") + 1 :]
    return line[max(map(line.rfind, _SENTENCE_END)) + 1 :].strip()


def _line_key(line: str) -> int:
    return int.from_bytes(hashlib.blake2b(line.encode(), digest_size=8).digest(), "little")


def _may_be_boilerplate(line: str) -> bool:
    if len(line) < _MIN_BOILERPLATE or not (_HAN.search(line) or _COPYRIGHT.search(line)):
        return False
    return not _CONTENT.match(line) or _NOTICE.search(line) is not None


class Boilerplate:
    """Lines that recur over a source: `count` every document first, then `strip` each.

    A line that reads like a notice (版权, 转载, 上一篇 …) is boilerplate in more than `min_documents` documents
    of a source; any other, which may be a phrase that people repeat, must stand in more than `min_share` of them too.
    Lines without Han characters (code), shorter than 6 characters, headings, and entries "name：value" are left alone.
    A line counts once a document, by its hash (8 bytes a distinct line). What follows a document's last sentence end
    counts as a line too.
    """

    def __init__(self, min_documents: int, min_share: float) -> None:
        self.min_documents, self.min_share = min_documents, min_share
        self._lines: defaultdict[str, Counter[int]] = defaultdict(Counter)
        self._documents: Counter[str] = Counter()

    def count(self, source: str, text: str) -> None:
        self._documents[source] += 1
        lines = {line.strip() for line in text.split("\n")} | {_tail(text)}
        self._lines[source].update(_line_key(line) for line in lines if _may_be_boilerplate(line))

    def counts(self) -> dict[str, tuple[int, npt.NDArray[np.uint64], npt.NDArray[np.int64]]]:
        """{source: (documents counted, keys of lines in order, documents that each stands in)}, for `restored`."""
        found = {}
        for source, lines in self._lines.items():
            keys = np.array(sorted(lines), dtype=np.uint64)
            found[source] = (self._documents[source], keys, np.array([lines[key] for key in keys.tolist()], np.int64))
        return found

    def restore(
        self, source: str, num_documents: int, keys: npt.NDArray[np.uint64], counts: npt.NDArray[np.int64]
    ) -> None:
        """Set a source's counts to what was added up elsewhere; keys that are no boilerplate may be left out."""
        self._documents[source] = num_documents
        self._lines[source] = Counter(dict(zip(keys.tolist(), counts.tolist(), strict=True)))

    def _recurs(self, source: str, line: str) -> bool:
        count = self._lines[source][_line_key(line)]
        if count <= self.min_documents:
            return False
        return _NOTICE.search(line) is not None or count > self.min_share * self._documents[source]

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
        if removed:
            text = BLANK_LINES.sub("\n\n", "\n".join(kept)).strip()
        tail = _tail(text)
        if _may_be_boilerplate(tail) and self._recurs(source, tail):
            removed.append(tail)
            text = text[: -len(tail)].rstrip()
        return text, removed
