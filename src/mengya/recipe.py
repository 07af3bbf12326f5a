"""Recipe: one YAML file that holds every stage of a run, validated whole before anything is spent.

`load_recipe` reads YAML (safe loader), applies `--set KEY=VALUE`, fills `${VARIABLE}` and `${VARIABLE:-default}`, and
validates; each mistake is one line with file:line, key and mend. What one key alone cannot tell (do the heads divide
the width? is the file there?) is checked in `stages.check`, also before anything runs.
"""

from __future__ import annotations

import difflib
import os
import re
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from mengya.errors import UserError
from mengya.settings import Recipe, Source


class _Loader(yaml.SafeLoader):
    """YAML 1.1 with the floats people write: `1e-3` is a number, not a string; and duplicate keys are an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} stands here twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:[0-9][0-9_]*)(?:\.[0-9_]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)

_VARIABLE = re.compile(r"\$\{(\w+)(?::-([^}]*))?\}")


def _line_numbers(node: yaml.Node | None, prefix: tuple[Any, ...] = ()) -> dict[tuple[Any, ...], int]:
    """{key path: line} of every key of a YAML tree, for messages."""
    lines: dict[tuple[Any, ...], int] = {}
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            path = (*prefix, key.value)
            lines[path] = key.start_mark.line + 1
            lines |= _line_numbers(value, path)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            lines[(*prefix, index)] = value.start_mark.line + 1
            lines |= _line_numbers(value, (*prefix, index))
    return lines


def _fill_variables(value: Any, where: str) -> Any:
    if isinstance(value, dict):
        return {key: _fill_variables(item, where) for key, item in value.items()}
    if isinstance(value, list):
        return [_fill_variables(item, where) for item in value]
    if not isinstance(value, str):
        return value

    def fill(match: re.Match[str]) -> str:
        filled = os.environ.get(match[1], match[2])
        if filled is None:
            raise UserError(
                f"the environment variable {match[1]} is not set",
                where=where,
                mend=f"export {match[1]}=… or write the path out",
            )
        return filled

    return _VARIABLE.sub(fill, value)


def _parse_yaml(text: str, where: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise UserError(
            f"not valid YAML: {error.problem}",
            where=f"{where}:{mark.line + 1}" if mark else where,
            mend="check indentation, colons and quotes on that line",
        ) from None
    except yaml.YAMLError as error:
        raise UserError(f"not valid YAML: {error}", where=where, mend="save the file as UTF-8 text") from None


def _apply_override(data: dict[str, Any], override: str) -> tuple[Any, ...]:
    """Set one `a.b=value` in `data`; the key path that was set."""
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise UserError("not KEY=VALUE", where=f"--set {override}", mend="write for example --set sft.epochs=3")
    path = key.strip().split(".")
    node: Any = data
    steps: list[Any] = []
    for depth, part in enumerate(path):
        if isinstance(node, list):
            if not part.isdigit() or int(part) >= len(node):
                raise UserError(
                    f"{'.'.join(path[:depth])} is a list of {len(node)}; {part!r} is not an index into it",
                    where=f"--set {override}",
                    mend="use a number counted from 0",
                )
            step: Any = int(part)
        elif isinstance(node, dict):
            step = part
        else:
            raise UserError(
                f"{'.'.join(path[:depth])} has no keys inside", where=f"--set {override}", mend="set it as a whole"
            )
        steps.append(step)
        if depth == len(path) - 1:
            node[step] = _parse_yaml(text, f"--set {override}")
        else:
            if isinstance(node, dict):
                node.setdefault(step, {})
            node = node[step]
    return tuple(steps)


def _fields_at(path: tuple[Any, ...]) -> list[str]:
    """The keys that are allowed beside the unknown one at `path`."""
    model: Any = Recipe
    for part in path[:-1]:
        if isinstance(part, int):
            model = Source
            continue
        field = model.model_fields.get(part) if hasattr(model, "model_fields") else None
        model = field.annotation if field else None
    return list(model.model_fields) if hasattr(model, "model_fields") else []


def _user_error(error: ValidationError, path: Path, lines: dict[tuple[Any, ...], int], overridden: set) -> UserError:
    """The first thing wrong, in one line."""
    first = error.errors()[0]
    location = tuple(first["loc"])
    key = ".".join(str(part) for part in location)
    # pydantic adds names of union members to `loc`; the longest known prefix is what the user wrote.
    known = next((location[:n] for n in range(len(location), 0, -1) if location[:n] in lines), ())
    where = f"{path}:{lines[known]}" if known else str(path)
    if any(location[: len(set_)] == set_[: len(location)] for set_ in overridden):
        where = f"--set {key}"
    if first["type"] == "extra_forbidden":
        names = _fields_at(location)
        close = difflib.get_close_matches(str(location[-1]), names, n=1, cutoff=0.5)
        mend = f"did you mean {close[0]!r}?" if close else f"known keys here: {', '.join(names)}"
        return UserError(f"unknown key {key!r}", where=where, mend=mend)
    if first["type"] == "missing":
        return UserError(f"the key {key!r} is missing", where=where, mend=f"add {location[-1]}: …")
    given = repr(first["input"])
    given = given if len(given) <= 80 else given[:77] + "…"
    return UserError(f"{key}: {given} is not allowed", where=where, mend=first["msg"][0].lower() + first["msg"][1:])


def load_recipe(path: Path | str, overrides: list[str] | tuple[str, ...] = ()) -> Recipe:
    """The validated recipe at `path` with `--set` overrides applied; UserError for the first mistake in it."""
    path = Path(path)
    if not path.is_file():
        raise UserError("no such recipe", where=path, mend="ships with Mengya: recipes/quickstart.yaml")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise UserError("not UTF-8 text", where=path, mend="save the recipe as UTF-8") from None
    data = _parse_yaml(text, str(path))
    if not isinstance(data, dict):
        raise UserError("a recipe is a mapping of keys", where=path, mend="start with `name: my-run`")
    lines = _line_numbers(yaml.compose(text, Loader=_Loader))
    overridden = {_apply_override(data, override) for override in overrides}
    data = _fill_variables(data, str(path))
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        raise _user_error(error, path, lines, overridden) from None
