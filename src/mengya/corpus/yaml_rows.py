"""Rows of a YAML file, every scalar as the text it is written as."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import yaml

from mengya.corpus.json_rows import Row, as_row
from mengya.corpus.streams import Rejects, TextStream


class _PlainLoader(yaml.BaseLoader):
    """Strings, lists and mappings only: in YAML 1.1 an answer "是"/"Yes" or "12:30" would be a truth value or a number.

    No aliases: a few lines of them can mean gigabytes.
    """

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("an alias")
        return super().compose_node(parent, index)


def yaml_rows(stream: TextStream, rejects: Rejects) -> Iterator[tuple[int, Row]]:
    """One row an element of the list at the top, or of ChatterBot's "conversations"; else the whole is one row.

    ChatterBot's entries, lists of texts, come as {"items": […], "category"}. The file is held in memory
    (MAX_LINE_BYTES).
    """
    text = stream.whole_text()
    try:
        loader = _PlainLoader(text)
        node = loader.get_single_node()
        entries, category = _entries(loader, node)
        values = [(entry.start_mark.line + 1, loader.construct_object(entry, deep=True)) for entry in entries]
    except (yaml.YAMLError, RecursionError) as error:
        rejects.num_rows += 1
        mark = getattr(error, "problem_mark", None)
        rejects.add("invalid_yaml", stream.file, mark.line + 1 if mark else 1, str(error))
        return
    for line, value in values:
        rejects.num_rows += 1
        row = as_row(value)
        if row is None:
            rejects.add("not_an_object", stream.file, line, str(value))
        else:
            yield line, row | category


def _entries(loader: _PlainLoader, node: Any) -> tuple[list[Any], dict[str, str]]:
    if isinstance(node, yaml.SequenceNode):
        return node.value, {}
    if isinstance(node, yaml.MappingNode):
        fields = {key.value: value for key, value in node.value if isinstance(key, yaml.ScalarNode)}
        dialogues = fields.get("conversations")
        if isinstance(dialogues, yaml.SequenceNode) and all(
            isinstance(entry, yaml.SequenceNode) for entry in dialogues.value
        ):
            names = loader.construct_object(fields["categories"], deep=True) if "categories" in fields else []
            return dialogues.value, {"category": str(names[0])} if names and isinstance(names, list) else {}
    return [node] if node is not None else [], {}
