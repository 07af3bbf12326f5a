"""One file of a hub on disk: fetched by HTTP with Range, resumed where it stopped, verified, then given its name."""

from __future__ import annotations

import errno
import hashlib
import http.client
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

from mengya import __version__
from mengya.console import say
from mengya.errors import UserError
from mengya.files import sha256

PAUSE_SECONDS = 1.0
"""Before the first retry; doubled at each further one that brings nothing."""
_ATTEMPTS = 5
_TIMEOUT_SECONDS = 30
_CHUNK_BYTES = 1 << 20
_SECRETS = ("Authorization", "Cookie")
_DROPPED = (ConnectionError, TimeoutError, http.client.HTTPException, urllib.error.URLError)


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file as its repository lists it. `url` is http(s), or the path of a file here.

    `git_sha1` is the id of a git blob, which is what Hugging Face tells of small files in place of a SHA-256.
    """

    path: str
    url: str
    size: int | None
    sha256: str | None = None
    git_sha1: str | None = None

    @property
    def content(self) -> str | None:
        """A digest that names the content, if the repository gave one."""
        return self.sha256 or self.git_sha1


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Takes a token along to the same host only: urllib would send it to any, or (unredirected) to none."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Message, newurl: str
    ) -> urllib.request.Request | None:
        request = super().redirect_request(req, fp, code, msg, headers, newurl)  # type: ignore[arg-type]
        if request is not None and urlsplit(newurl)[:2] == urlsplit(req.full_url)[:2]:
            for name in _SECRETS:
                if req.has_header(name):
                    request.add_unredirected_header(name, str(req.get_header(name)))
        return request


def open_url(url: str, headers: Mapping[str, str]) -> http.client.HTTPResponse:
    """The response to a GET. A token among `headers` goes to no other host."""
    request = urllib.request.Request(url, headers={"User-Agent": f"mengya/{__version__}"})
    for name, value in headers.items():
        if name in _SECRETS:
            request.add_unredirected_header(name, value)
        else:
            request.add_header(name, value)
    opener = urllib.request.build_opener(_Redirects)
    response: http.client.HTTPResponse = opener.open(request, timeout=_TIMEOUT_SECONDS)
    return response


def retried(attempt: Callable[[], Any], url: str) -> Any:
    """The result of `attempt`, tried again after a dropped connection or a busy server; UserError when it stays so."""
    failures = 0
    while True:
        try:
            return attempt()
        except _DROPPED as error:
            reason = as_retriable(error, url)
        failures += 1
        if failures == _ATTEMPTS:
            raise unreachable(url, reason)
        _wait(url, reason, failures - 1)


def _wait(url: str, error: BaseException, doublings: int) -> None:
    seconds = PAUSE_SECONDS * 2**doublings
    say(f"{urlsplit(url).netloc}: {_words(error)}; trying again in {seconds:.0f} s")
    time.sleep(seconds)


def _words(error: BaseException) -> str:
    return str(getattr(error, "reason", None) or error) or type(error).__name__


def as_retriable(error: BaseException, url: str) -> BaseException:
    """`error`, if trying again may help; UserError for an answer that will stay as it is."""
    if not isinstance(error, urllib.error.HTTPError) or error.code in (408, 416, 429) or error.code >= 500:
        return error
    host = urlsplit(url).netloc
    if error.code in (401, 403):
        raise UserError(
            f"{host} refuses access (HTTP {error.code}): gated or private",
            where=url,
            mend="accept its terms on its page and set HF_TOKEN (or MODELSCOPE_API_TOKEN), or take --from another hub",
        ) from None
    if error.code in (404, 410):
        raise UserError(
            f"{host} has it not (HTTP {error.code}): gone, renamed or private",
            where=url,
            mend="take --from another hub, or --from a folder that has it",
        ) from None
    raise UserError(
        f"{host} answers HTTP {error.code}", where=url, mend="try again later, or --from another hub"
    ) from None


def unreachable(url: str, error: BaseException) -> UserError:
    """One line for a network that does not come back."""
    return UserError(
        f"cannot reach {urlsplit(url).netloc} ({_words(error)})",
        mend="check the network, or set HF_ENDPOINT (or MODELSCOPE_ENDPOINT) to a mirror; the same command goes on "
        "from there",
    )


def fetch(
    file: RemoteFile, target: Path, headers: Mapping[str, str], progress: Callable[[int], None] = lambda done: None
) -> str:
    """The SHA-256 of `target`, which is the file whole and verified when this returns.

    What is there already and is the same is left. A part that an interrupted call left (hidden, beside the target,
    named by the content's digest) is gone on from; without a digest nothing says that the part is of the same
    content, so the file is begun anew. `progress` gets the number of bytes there. UserError: no network, no access,
    no such file, another content than its repository announced, a full disk.
    """
    if target.is_file():
        digest = _verified(target, file)
        if digest is not None:
            progress(target.stat().st_size)
            return digest
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".{target.name}.{(file.content or 'unknown')[:16]}.download")
        for leftover in target.parent.glob(f".{_escaped(target.name)}.*.download"):
            if leftover != partial or file.content is None:
                leftover.unlink()
        _complete(file, partial, headers, progress)
        digest = _verified(partial, file)
        if digest is None:
            partial.unlink()
            raise UserError(
                "what arrived is not what its repository announced (size or checksum differ)",
                where=target,
                mend="run the same command again; if it stays so, take --from another hub",
            )
        os.replace(partial, target)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(
                "the disk is full", where=target, mend="free some space; the same command goes on from there"
            ) from None
        raise
    return digest


def _escaped(name: str) -> str:
    return "".join(f"[{character}]" if character in "*?[" else character for character in name)


def _verified(path: Path, file: RemoteFile) -> str | None:
    """The SHA-256 of `path` if it is `file` by all that is known of it; None otherwise."""
    if file.size is not None and path.stat().st_size != file.size:
        return None
    digest = sha256(path)
    if file.sha256 is not None:
        return digest if digest == file.sha256 else None
    if file.git_sha1 is not None and _git_sha1(path) != file.git_sha1:
        return None
    return digest


def _git_sha1(path: Path) -> str:
    digest = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    with open(path, "rb") as handle:
        while chunk := handle.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _complete(file: RemoteFile, partial: Path, headers: Mapping[str, str], progress: Callable[[int], None]) -> None:
    """Bring `partial` to the file's end, over as many connections as it takes while each brings something."""
    fruitless = 0
    while True:
        begin = partial.stat().st_size if partial.exists() else 0
        if file.size is not None and begin >= file.size and begin > 0:
            return
        try:
            if _append(file, partial, begin, headers, progress):
                return
            reason: BaseException = ConnectionError("the connection was closed half-way")
        except _DROPPED as error:
            reason = as_retriable(error, file.url)
        now = partial.stat().st_size if partial.exists() else 0
        fruitless = 0 if now > begin else fruitless + 1
        if fruitless >= _ATTEMPTS:
            raise unreachable(file.url, reason)
        _wait(file.url, reason, fruitless)


def _append(
    file: RemoteFile, partial: Path, begin: int, headers: Mapping[str, str], progress: Callable[[int], None]
) -> bool:
    """Write what one connection gives from byte `begin` on; whether that was all."""
    with closing(_open(file, begin, headers)) as stream:
        expected = file.size
        if isinstance(stream, http.client.HTTPResponse):
            if begin and not (stream.headers.get("Content-Range") or "").startswith(f"bytes {begin}-"):
                begin = 0  # the server knows no ranges and sends the file from its start
            length = stream.headers.get("Content-Length")
            expected = begin + int(length) if length is not None else file.size
        with open(partial, "ab" if begin else "wb") as output:
            done = begin
            progress(done)
            while chunk := stream.read(_CHUNK_BYTES):
                output.write(chunk)
                done += len(chunk)
                progress(done)
            output.flush()
            os.fsync(output.fileno())
    return expected is None or done >= expected


def _open(file: RemoteFile, begin: int, headers: Mapping[str, str]) -> http.client.HTTPResponse | IO[bytes]:
    if urlsplit(file.url).scheme in ("http", "https"):
        try:
            return open_url(file.url, {**headers, "Range": f"bytes={begin}-"} if begin else headers)
        except urllib.error.HTTPError as error:
            if error.code == 416:  # there is nothing after `begin`: what is here cannot be a part of it
                return open_url(file.url, headers)
            raise
    local = open(file.url, "rb")  # noqa: SIM115 - closed by the caller
    local.seek(begin)
    return local
