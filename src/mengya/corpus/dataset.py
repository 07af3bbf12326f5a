"""What the catalogue says of one public dataset."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Literal

READ_THE_CARD = "not verified here: read the dataset's card"


@dataclass(frozen=True, slots=True)
class Dataset:
    """One public dataset: where it is, which of its files are read, and how.

    `files` are globs on the paths of the repository; `*` crosses folders, since mirrors nest the same files
    differently. `size` and `licence` are as its publishers, mirrors or users say, no promise of ours; a download says
    and records what the hub's card says that day. A hub is None where no repository is known to
    hold these files in this layout; `homepage` is then where to get them, and a recipe says `path:`.
    """

    name: str
    kind: Literal["document", "conversation", "preference", "tokens"]
    """tokens: already tokenised, so not a source of records but of `shards.token_files`."""
    format: str | None
    """A layout of `corpus.formats`; None for tokens."""
    files: tuple[str, ...]
    licence: str
    language: str
    note: str
    """What is odd about it."""
    huggingface: str | None = None
    huggingface_kind: Literal["dataset", "model"] = "dataset"
    modelscope: str | None = None
    homepage: str | None = None
    size: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    """Renamed columns, {format's name: file's name}."""

    def holds(self, path: str) -> bool:
        """Whether a repository's file is one of the dataset's."""
        return matches(path, self.files)


def matches(path: str, globs: tuple[str, ...]) -> bool:
    return any(fnmatchcase(path, glob) for glob in globs)
