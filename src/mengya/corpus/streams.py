"""A user's file as decoded text, whatever its compression and encoding; and the tally of what was unreadable."""

from __future__ import annotations

import codecs
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import zstandard

from mengya.errors import UserError

MAX_LINE_BYTES = 16 << 20  # no document of any public Chinese corpus comes near; a longer "line" is a broken file
COMPRESSIONS = (".gz", ".zst")
SNIFF_BYTES = 1 << 20
LONE_SURROGATE = re.compile("[\ud800-\udfff]")
_CHUNK_BYTES = 1 << 16  # small, because a chunk of .zst may grow a thousandfold when it is decompressed
_BYTE_ORDER_MARKS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))


@dataclass(frozen=True, slots=True)
class Reject:
    reason: str
    file: str
    line: int
    excerpt: str


class Rejects:
    """What could not be read: a count per reason, and the first samples of each, beside the number of rows tried.

    `encodings` counts the files per detected encoding, so that a GB18030 file is announced rather than guessed quietly.
    """

    def __init__(self, max_samples: int = 200) -> None:
        self.max_samples = max_samples
        self.num_rows = 0  # rows tried, good or bad
        self.counts: Counter[str] = Counter()
        self.samples: list[Reject] = []
        self.encodings: Counter[str] = Counter()

    def add(self, reason: str, file: object, line: int, excerpt: str | bytes = "") -> None:
        self.counts[reason] += 1
        # Half of the room is kept for reasons not seen yet: a thousand broken lines must not hide the one NUL byte.
        if len(self.samples) < self.max_samples // 2 or (
            self.counts[reason] <= 5 and len(self.samples) < self.max_samples
        ):
            if isinstance(excerpt, bytes):
                excerpt = excerpt[:800].decode("utf-8", "replace")
            self.samples.append(Reject(reason, str(file), line, LONE_SURROGATE.sub("�", excerpt[:200])))

    def add_at(self, reason: str, origin: str, excerpt: str = "") -> None:
        """As `add`, for an origin "file:line" that `read_rows` gave."""
        file, _, line = origin.rpartition(":")
        self.add(reason, file, int(line), excerpt)

    def share(self) -> float:
        """Rejected rows over rows tried; 0 before anything was tried."""
        return sum(self.counts.values()) / max(self.num_rows, 1) if self.counts else 0.0

    def check(self, maximum_share: float) -> None:
        """Raise UserError when more than `maximum_share` of the rows tried were rejected."""
        if self.share() <= maximum_share:
            return
        reason, count = self.counts.most_common(1)[0]
        first = next(sample for sample in self.samples if sample.reason == reason)
        raise UserError(
            f"{sum(self.counts.values())} of {self.num_rows} rows rejected ({self.share():.1%}, allowed "
            f"{maximum_share:.1%}); commonest reason: {reason} ({count}), first: {first.excerpt[:80]!r}",
            where=f"{first.file}:{first.line}",
            mend="mend the file, set the source's format or columns, or raise corpus.max_reject_share",
        )

    def rows(self) -> Iterator[dict[str, Any]]:
        """The samples as JSON objects, for rejects.jsonl."""
        for sample in self.samples:
            yield {"reason": sample.reason, "file": sample.file, "line": sample.line, "excerpt": sample.excerpt}

    def dump(self) -> dict[str, Any]:
        """All of it as JSON, for `absorb` in another process."""
        return {
            "num_rows": self.num_rows,
            "counts": dict(self.counts),
            "samples": list(self.rows()),
            "encodings": dict(self.encodings),
        }

    def absorb(self, dumped: dict[str, Any]) -> None:
        """Add what another process counted."""
        self.num_rows += dumped["num_rows"]
        self.encodings.update(dumped["encodings"])
        for sample in dumped["samples"]:
            self.add(sample["reason"], sample["file"], sample["line"], sample["excerpt"])
            self.counts[sample["reason"]] -= 1  # the samples are among the counts
        self.counts.update(dumped["counts"])

    def summary(self) -> dict[str, Any]:
        return {
            "rows": self.num_rows,
            "rejected": dict(self.counts.most_common()),
            "share": round(self.share(), 6),
            "encodings": dict(self.encodings.most_common()),
        }


class BrokenFile(Exception):
    """The rest of a file cannot be read; the reason is the message."""


class TextStream:
    """A file's decompressed bytes as lines or chunks of text; `head` is the first MiB, `line` the line last read.

    `chunks` are the bytes where they do not come from the disk as they are (a member of a .zip); `file` is its name.
    """

    def __init__(self, file: Path, chunks: Iterator[bytes] | None = None) -> None:
        self.file = file
        self.line = 0
        self._chunks = chunks if chunks is not None else self._decompressed()
        self._broken: BrokenFile | None = None
        self.head = b""
        try:
            while len(self.head) < SNIFF_BYTES:
                self.head += next(self._chunks)
        except StopIteration:
            pass
        except BrokenFile as broken:
            self._broken = broken  # raised again once the head has been read
        self.encoding, self._mark = _sniff_encoding(self.head)

    def _decompressed(self) -> Iterator[bytes]:
        suffix = self.file.suffix.lower()
        with open(self.file, "rb") as handle:
            if suffix not in COMPRESSIONS:
                while chunk := handle.read(_CHUNK_BYTES):
                    yield chunk
                return
            new = (lambda: zlib.decompressobj(31)) if suffix == ".gz" else zstandard.ZstdDecompressor().decompressobj
            frame: Any = None
            while data := handle.read(_CHUNK_BYTES):
                while data:  # several frames in one file are one stream
                    frame = frame or new()
                    try:
                        yield frame.decompress(data)
                    except (zlib.error, zstandard.ZstdError) as error:
                        raise BrokenFile("corrupt_file") from error
                    data = frame.unused_data if frame.eof else b""
                    if frame.eof:
                        frame = None
            if frame is not None:
                raise BrokenFile("truncated_file")

    def chunks(self) -> Iterator[bytes]:
        yield self.head[len(self._mark) :]
        if self._broken:
            raise self._broken
        yield from self._chunks

    def text_chunks(self) -> Iterator[str]:
        """Decoded text; bytes that do not decode become lone surrogates (UTF-16: U+FFFD)."""
        errors = "replace" if self.encoding.startswith("utf-16") else "surrogateescape"
        decoder = codecs.getincrementaldecoder(self.encoding)(errors)
        for chunk in self.chunks():
            yield decoder.decode(chunk)
        yield decoder.decode(b"", final=True)

    def whole_text(self) -> str:
        """All of it; BrokenFile("line_too_long") beyond MAX_LINE_BYTES characters."""
        parts: list[str] = []
        size = 0
        for text in self.text_chunks():
            size += len(text)
            if size > MAX_LINE_BYTES:
                raise BrokenFile("line_too_long")
            parts.append(text)
        return "".join(parts)

    def lines(self, rejects: Rejects) -> Iterator[str]:
        """Decoded lines without their end; what cannot be decoded is rejected. Blank lines come as ""."""
        chunks: Iterable[bytes] = self.chunks()
        encoding = self.encoding
        if encoding.startswith("utf-16"):  # "\n" is two bytes there, and so cannot be split on before decoding
            chunks, encoding = (text.encode("utf-8", "replace") for text in self.text_chunks()), "utf-8"
        for raw in self._split(chunks, rejects):
            if b"\0" in raw:
                self._reject("nul_bytes", raw, rejects)
                continue
            try:
                line = raw.decode(encoding)
            except UnicodeDecodeError:
                self._reject("undecodable", raw, rejects)
                continue
            yield line.removesuffix("\r")

    def _split(self, chunks: Iterable[bytes], rejects: Rejects) -> Iterator[bytes]:
        pending: list[bytes] = []
        size = 0
        try:
            for chunk in chunks:
                *whole, rest = chunk.split(b"\n")
                for part in whole:
                    self.line += 1
                    raw = b"".join([*pending, part]) if pending else part
                    pending = []
                    if size + len(part) > MAX_LINE_BYTES:
                        self._reject("line_too_long", raw, rejects)
                    else:
                        yield raw
                    size = 0
                size += len(rest)
                if size <= MAX_LINE_BYTES and rest:  # beyond the limit, count only: memory stays bounded
                    pending.append(rest)
        except BrokenFile:
            self.line += 1  # the half line at the break is the one to look at
            raise
        if pending:
            self.line += 1
            raw = b"".join(pending)
            if size > MAX_LINE_BYTES:
                self._reject("line_too_long", raw, rejects)
            else:
                yield raw

    def _reject(self, reason: str, raw: bytes, rejects: Rejects) -> None:
        rejects.num_rows += 1
        rejects.add(reason, self.file, self.line, raw[:800].decode(self.encoding, "replace"))


def _sniff_encoding(head: bytes) -> tuple[str, bytes]:
    """(encoding, its byte order mark): the mark decides, or UTF-16 without one; else GB18030 when half of what is not ASCII is no UTF-8.

    A few broken bytes do not turn a UTF-8 file into GB18030: nearly every Chinese character of GB18030 is an error in
    UTF-8, so the two cases lie far apart.
    """
    for mark, encoding in _BYTE_ORDER_MARKS:
        if head.startswith(mark):
            return encoding, mark
    # Without a mark UTF-16 shows itself by two ASCII characters at the beginning, as JSON and CSV have (RFC 4627, 3).
    first = head[:4]
    if len(first) == 4 and all(first[::2]) and not any(first[1::2]):
        return "utf-16-le", b""
    if len(first) == 4 and all(first[1::2]) and not any(first[::2]):
        return "utf-16-be", b""
    num_high_bytes = len(head.translate(None, bytes(range(128))))
    num_errors = head.decode("utf-8", "replace").count("\ufffd")
    if num_errors > 2 and num_errors * 2 >= num_high_bytes:
        num_gb_errors = head.decode("gb18030", "replace").count("\ufffd")
        if num_gb_errors * 4 < num_errors:
            return "gb18030", b""
    return "utf-8", b""
