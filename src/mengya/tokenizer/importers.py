"""Tokenizers that others made: their special tokens, and their chat template, rendered in jinja2's sandbox."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer

from mengya.corpus.records import Message
from mengya.errors import UserError


def special_token(config: dict[str, Any], name: str) -> str | None:
    """The text of e.g. `eos_token`, which transformers writes as a string or as an object."""
    value = config.get(name)
    return value["content"] if isinstance(value, dict) else value


def chat_template_of(directory: Path, config: dict[str, Any]) -> str | None:
    """The Jinja source, from chat_template.jinja or tokenizer_config.json; of several named ones, "default"."""
    file = directory / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    template = config.get("chat_template")
    if isinstance(template, list):
        return next((entry["template"] for entry in template if entry["name"] == "default"), None)
    return template


def add_declared_tokens(backend: Tokenizer, config: dict[str, Any], where: Path) -> None:
    """Add the tokens that only tokenizer_config.json declares (`added_tokens_decoder`), each at its declared id."""
    for index, token in sorted(config.get("added_tokens_decoder", {}).items(), key=lambda item: int(item[0])):
        if backend.token_to_id(token["content"]) is None:
            flags = {name: token[name] for name in ("single_word", "lstrip", "rstrip", "normalized") if name in token}
            special = token.get("special", True)
            added = AddedToken(token["content"], special=special, **{"normalized": False, **flags})
            (backend.add_special_tokens if special else backend.add_tokens)([added])
        if backend.token_to_id(token["content"]) != int(index):
            raise UserError(
                f"{token['content']!r} has id {backend.token_to_id(token['content'])} in tokenizer.json, not {index}",
                where=where,
                mend="make both files agree",
            )


class ForeignTemplate:
    """A Jinja chat template and the special tokens that it may name."""

    def __init__(self, source: str | None, config: dict[str, Any], backend: Tokenizer, directory: Path) -> None:
        self._where = directory
        self._backend = backend  # reads special tokens in the text, unlike the plain one that `render` is given
        self._source = source
        self._specials = {
            name: special_token(config, name)
            for name in ("bos_token", "eos_token", "pad_token", "unk_token")
            if special_token(config, name) is not None
        }
        self._compiled: Any = None

    def render(
        self, plain: Tokenizer, messages: Sequence[Message], *, add_generation_prompt: bool = False
    ) -> tuple[list[int], list[bool]]:
        """Ids and trained mask as of `template.render`; an assistant's turn is what the text grows by when it is added.

        Special tokens inside a content stay plain text: each is rendered as a placeholder and encoded by itself.
        """
        specials = sorted(
            (token.content for token in plain.get_added_tokens_decoder().values() if token.special),
            key=len,
            reverse=True,
        )
        forged: list[str] = []

        def hide(match: re.Match[str]) -> str:
            forged.append(match.group())
            return f"\ue000{len(forged) - 1}\ue001"

        pattern = re.compile("|".join(map(re.escape, specials)) or r"(?!)")
        rows = [{"role": message.role, "content": pattern.sub(hide, message.content)} for message in messages]
        text = self._text(rows, add_generation_prompt)
        spans = [self._span(rows, index, text) for index, row in enumerate(rows) if row["role"] == "assistant"]

        ids: list[int] = []
        trained: list[bool] = []
        start = 0
        written = {f"\ue000{number}\ue001": token for number, token in enumerate(forged)}
        for piece in re.split(f"({'|'.join(written)})", text) if forged else [text]:
            hidden = piece in written
            encoder = plain if hidden else self._backend
            encoding = encoder.encode(written.get(piece, piece), add_special_tokens=False)
            ids += encoding.ids
            for first, last in encoding.offsets:
                middle = start if hidden else start + (first + last) // 2
                trained.append(any(begin <= middle < end for begin, end in spans))
            start += len(piece)
        return ids, trained

    def _span(self, rows: list[dict[str, str]], index: int, text: str) -> tuple[int, int]:
        """Where the answer of message `index` stands in the text, its end token in, white space after that out."""
        before = self._text(rows[:index], True)
        through = self._text(rows[: index + 1], False)
        if not (through.startswith(before) and text.startswith(through)):
            raise UserError(
                "the chat template rewrites earlier turns, so that no answer has a fixed place",
                where=self._where,
                mend="train on single-turn conversations, or use a template that only appends",
            )
        return len(before), len(through.rstrip())

    def _text(self, rows: list[dict[str, str]], add_generation_prompt: bool) -> str:
        import jinja2

        if self._source is None:
            raise UserError("this tokenizer has no chat template", where=self._where, mend="add chat_template.jinja")
        try:
            if self._compiled is None:
                self._compiled = _environment().from_string(self._source)
            return self._compiled.render(messages=rows, add_generation_prompt=add_generation_prompt, **self._specials)
        except jinja2.TemplateError as error:
            raise UserError(f"the chat template fails: {error}", where=self._where) from error


def _environment() -> Any:
    """jinja2's sandbox with what transformers offers to a template (transformers.utils.chat_template_utils)."""
    import jinja2
    from jinja2 import nodes
    from jinja2.ext import Extension
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %}` without effect: the answers' places are found in the text itself."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> nodes.Node | list[nodes.Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False, **options)
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment
