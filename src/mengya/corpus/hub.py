"""What a hub has of a dataset: the files with size and digest, on Hugging Face, on ModelScope, or in a folder.

Endpoints are the hubs' own or those of HF_ENDPOINT and MODELSCOPE_ENDPOINT; tokens come from HF_TOKEN (or the login
of huggingface_hub) and MODELSCOPE_API_TOKEN. What a listing says is a stranger's: paths are checked before use.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote, urlencode

from mengya.corpus.catalogue import read_source
from mengya.corpus.dataset import Dataset, matches
from mengya.corpus.download import RemoteFile, open_url, retried, unreachable
from mengya.corpus.sources import SOURCE_FILE
from mengya.errors import UserError
from mengya.files import sha256

HUBS = ("huggingface", "modelscope")
_PAGE = 200
_MOST_PAGES = 10_000
_HEX64 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Listing:
    """The files of a dataset at one place. `revision` is a commit where the place has such; `licence` what it says."""

    origin: str
    """huggingface, modelscope or folder."""
    repository: str
    """The hub's id, or the folder."""
    revision: str | None
    licence: str | None
    files: tuple[RemoteFile, ...]
    headers: Mapping[str, str]
    """For every request of a file; may hold a token, so never shown."""


def list_dataset(dataset: Dataset, origin: str | None = None, only: str | None = None) -> Listing:
    """What `origin` (a hub's name or a folder; the first hub that has it when None) has of a dataset.

    `only` is a glob that replaces the dataset's own: a part of it, or a file that was renamed. UserError: the hub is
    not known to have it, cannot be reached, refuses, or has no such file.
    """
    globs = dataset.files if only is None else (only,)
    if origin is None:
        origin = next((hub for hub in HUBS if getattr(dataset, hub) is not None), None)
        if origin is None:
            raise UserError(
                f"no hub is known to hold {dataset.name}",
                mend=f"get it from {dataset.homepage}, then say --from the folder where it is",
            )
    if origin in HUBS:
        if getattr(dataset, origin) is None:
            other = next((hub for hub in HUBS if getattr(dataset, hub) is not None), None)
            raise UserError(
                f"{dataset.name} is not known to be there",
                where=f"--from {origin}",
                mend=f"say --from {other}" if other else f"get it from {dataset.homepage}, then say --from its folder",
            )
        listing = (_huggingface if origin == "huggingface" else _modelscope)(dataset, globs)
    else:
        listing = _folder(Path(origin), globs)
    if not listing.files:
        raise UserError(
            f"no file there is {' or '.join(globs)}",
            where=f"{listing.origin} {listing.repository}",
            mend="look at its files and name them by --files GLOB",
        )
    return listing


def _chosen(files: Iterator[RemoteFile], globs: tuple[str, ...]) -> tuple[RemoteFile, ...]:
    return tuple(sorted((file for file in files if matches(file.path, globs)), key=lambda file: file.path))


def _safe(path: object, where: str) -> str:
    """A repository's path, known to stay inside the folder that it is put into."""
    if isinstance(path, str) and path and "\\" not in path and "\0" not in path:
        parts = PurePosixPath(path)
        if not parts.is_absolute() and not any(part == ".." or part.startswith(".") for part in parts.parts):
            return parts.as_posix()
    raise UserError(f"the repository lists a file named {path!r}", where=where, mend="do not use this repository")


# ---------------------------------------------------------------------------------------------------- Hugging Face


def _huggingface(dataset: Dataset, globs: tuple[str, ...]) -> Listing:
    try:
        from huggingface_hub import HfApi, get_token, hf_hub_url
        from huggingface_hub.hf_api import RepoFile
    except ModuleNotFoundError:
        raise UserError(
            "huggingface_hub is not installed",
            where="--from huggingface",
            mend="pip install 'mengya[hub]', or say --from modelscope or a folder",
        ) from None
    repository, kind = str(dataset.huggingface), dataset.huggingface_kind
    endpoint = (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")
    api = HfApi(endpoint=endpoint)
    # A folder that all globs name: the listing of a repository of 100,000 files takes minutes, of a folder seconds.
    folders = {re.split(r"[*?\[]", glob)[0].rpartition("/")[0] for glob in globs}
    folder = folders.pop() if len(folders) == 1 else ""
    try:
        info = api.repo_info(repository, repo_type=kind)
        tree = list(api.list_repo_tree(repository, folder or None, recursive=True, revision=info.sha, repo_type=kind))
    except Exception as error:
        raise _huggingface_error(error, endpoint, repository) from error
    files = (
        RemoteFile(
            path=_safe(entry.path, repository),
            url=hf_hub_url(repository, entry.path, repo_type=kind, revision=info.sha, endpoint=endpoint),
            size=entry.size,
            sha256=entry.lfs.sha256 if entry.lfs else None,
            git_sha1=None if entry.lfs else entry.blob_id,
        )
        for entry in tree
        if isinstance(entry, RepoFile) and matches(entry.path, globs)
    )
    token = get_token()
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    return Listing("huggingface", repository, info.sha, _licence_of(info), _chosen(files, globs), headers)


def _licence_of(info: Any) -> str | None:
    """The licence on a repository's card."""
    licence = getattr(getattr(info, "card_data", None), "license", None)
    if isinstance(licence, list):
        return ", ".join(map(str, licence)) or None
    return str(licence) if licence else None


def _huggingface_error(error: Exception, endpoint: str, repository: str) -> Exception:
    """The UserError that says what the library's error means; `error` itself where it is none of the user's."""
    from huggingface_hub import errors

    elsewhere = "say --from modelscope or a folder"
    if isinstance(error, errors.OfflineModeIsEnabled):
        return UserError("huggingface_hub is told to stay offline", mend="unset HF_HUB_OFFLINE, or " + elsewhere)
    if isinstance(error, errors.GatedRepoError):
        return UserError(
            f"{repository} is gated", mend=f"accept its terms on its page and set HF_TOKEN, or {elsewhere}"
        )
    if isinstance(error, errors.RepositoryNotFoundError | errors.RevisionNotFoundError | errors.EntryNotFoundError):
        return UserError(
            f"{endpoint} has no {repository} (gone, renamed or private), or not these files", mend=elsewhere
        )
    response = getattr(error, "response", None)
    if isinstance(error, errors.HfHubHTTPError) and response is not None:
        return UserError(
            f"{endpoint} answers HTTP {response.status_code} for {repository}", mend=f"try again later, or {elsewhere}"
        )
    # The HTTP client below huggingface_hub has changed with its versions: requests, httpx, httpx2.
    if isinstance(error, ConnectionError | TimeoutError) or type(error).__module__.partition(".")[0] in (
        "httpx",
        "httpx2",
        "httpcore",
        "requests",
        "urllib3",
    ):
        return unreachable(endpoint, error)
    return error


# ------------------------------------------------------------------------------------------------------ ModelScope


def _modelscope(dataset: Dataset, globs: tuple[str, ...]) -> Listing:
    repository, revision = str(dataset.modelscope), "master"
    endpoint = (os.environ.get("MODELSCOPE_ENDPOINT") or "https://www.modelscope.cn").rstrip("/")
    base = f"{endpoint}/api/v1/datasets/{quote(repository)}/repo"
    token = os.environ.get("MODELSCOPE_API_TOKEN")
    headers = {"Cookie": f"m_session_id={token}"} if token else {}
    files = (
        RemoteFile(
            path=_safe(entry["Path"], repository),
            url=f"{base}?{urlencode({'Revision': revision, 'FilePath': entry['Path']})}",
            size=entry["Size"] if isinstance(entry.get("Size"), int) else None,
            sha256=_sha256_in(entry),
        )
        for entry in _modelscope_entries(base, revision, headers)
        if entry.get("Type") != "tree" and matches(str(entry.get("Path")), globs)
    )
    return Listing("modelscope", repository, revision, None, _chosen(files, globs), headers)


def _modelscope_entries(base: str, revision: str, headers: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    for page in range(1, _MOST_PAGES):
        query = urlencode({"Revision": revision, "Recursive": "True", "PageNumber": page, "PageSize": _PAGE})
        answer = _json(f"{base}/tree?{query}", headers)
        data = answer.get("Data") if isinstance(answer, dict) else None
        entries = data.get("Files") if isinstance(data, dict) else None
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            said = answer.get("Message") if isinstance(answer, dict) else None
            raise UserError(
                f"ModelScope lists no files ({said or 'an answer of another form'})",
                where=base,
                mend="look whether the repository is still there, or say --from huggingface or a folder",
            )
        yield from entries
        if len(entries) < _PAGE:
            return


def _json(url: str, headers: Mapping[str, str]) -> Any:
    def ask() -> Any:
        with open_url(url, headers) as response:
            return json.load(response)

    try:
        return retried(ask, url)
    except ValueError as error:
        if isinstance(error, UserError):
            raise
        raise UserError("the answer is not JSON", where=url, mend="is MODELSCOPE_ENDPOINT right?") from None


def _sha256_in(entry: dict[str, Any]) -> str | None:
    digest = str(entry.get("Sha256") or "").lower()
    return digest if _HEX64.fullmatch(digest) else None


# ---------------------------------------------------------------------------------------------------------- folder


def _folder(folder: Path, globs: tuple[str, ...]) -> Listing:
    """The files of a folder that has a repository's layout. A SOURCE.json in it tells the digests that they had."""
    if not folder.is_dir():
        raise UserError(
            "neither a hub nor a folder", where=f"--from {folder}", mend=f"say {', '.join(HUBS)} or an existing folder"
        )
    record = read_source(folder) or {"files": []}
    known = {file["path"]: file.get("sha256") for file in record["files"]}

    def found() -> Iterator[RemoteFile]:
        for file in folder.rglob("*"):
            path = file.relative_to(folder).as_posix()
            hidden = any(part.startswith(".") for part in PurePosixPath(path).parts)
            if file.is_file() and not hidden and path != SOURCE_FILE and matches(path, globs):
                digest = known.get(path) or sha256(file)
                yield RemoteFile(path, str(file), file.stat().st_size, digest)

    return Listing("folder", str(folder), record.get("revision"), record.get("licence"), _chosen(found(), globs), {})
