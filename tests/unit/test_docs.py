"""What the documents say of the package is so: its files, its formats, its dependencies, its links, its functions."""

from __future__ import annotations

import ast
import json
import re
import sys
import tomllib
from pathlib import Path

import pytest

from mengya.corpus.formats import FORMATS

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "mengya"
READMES = ("README.md", "README.zh.md")
IMPORT_NAMES = {"PyYAML": "yaml", "OpenCC": "opencc"}
# jinja2's own dependency and part of its interface: what a template must not escape again is marked with it.
# datatrove's log and its processes, which are told to keep off the terminal and to end with the command.
COMES_WITH = {"markupsafe": "jinja2", "loguru": "datatrove", "multiprocess": "datatrove"}


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def tree_of(text: str) -> list[str]:
    """The paths, relative to src/mengya, that the tree of a README names; folders end with a slash."""
    block = re.search(r"```text\nsrc/mengya/\n(.*?)```", text, re.DOTALL)
    assert block, "no tree that begins with src/mengya/"
    folders: list[str] = []
    paths = []
    for line in block[1].splitlines():
        depth = (len(line) - len(line.lstrip())) // 2 - 1
        name, _, remark = line.strip().partition(" ")
        assert remark.strip(), f"{name} is named without saying what it is"
        folders = folders[:depth]
        paths.append("".join(folders) + name)
        if name.endswith("/"):
            folders.append(name)
    return paths


def commands_of(text: str) -> list[str]:
    """Every line of every ```sh block."""
    return [line for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL) for line in block.splitlines() if line]


def dependencies(group: str | None = None) -> list[str]:
    project = tomllib.loads(read("pyproject.toml"))["project"]
    found = project["dependencies"] if group is None else project["optional-dependencies"][group]
    names = [re.split(r"[<>=!~\[; ]", requirement)[0] for requirement in found]
    return [name for name in names if name != "mengya"]  # a group that takes in others


def groups() -> set[str]:
    """The optional groups of dependencies, "dev" among them."""
    return set(tomllib.loads(read("pyproject.toml"))["project"]["optional-dependencies"])


def imported() -> set[str]:
    """The top-level packages that src/ imports anywhere, Python's own and ours left out."""
    names: set[str] = set()
    for file in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names.add(node.module.split(".")[0])
    return names - sys.stdlib_module_names - {"mengya"}


@pytest.mark.parametrize("readme", READMES)
def test_the_tree_of_a_readme_is_the_tree_of_the_package(readme: str) -> None:
    named = tree_of(read(readme))
    assert len(set(named)) == len(named), "a name stands twice"
    for path in named:
        place = PACKAGE / path
        assert place.is_dir() if path.endswith("/") else place.is_file(), f"{path} does not exist"
    modules = {str(file.relative_to(PACKAGE)) for file in PACKAGE.rglob("*.py")}
    # A package's __init__ is its folder's line.
    expected = {path.removesuffix("__init__.py") for path in modules} - {""}
    assert expected - set(named) == set(), "modules without a line"


@pytest.mark.parametrize("readme", READMES)
def test_a_readme_names_every_format(readme: str) -> None:
    section = read(readme).split("<!-- formats -->")[1]
    assert set(re.findall(r"`(\w+)`", section)) == set(FORMATS)


def test_both_readmes_hold_the_same_commands() -> None:
    english, chinese = (commands_of(read(name)) for name in READMES)
    assert english == chinese
    assert len(english) > 10


def test_every_dependency_has_a_section_with_its_reason() -> None:
    text = read("docs/DEPENDENCIES.md")
    sections = dict(re.findall(r"^### (\S+)\n(.+?)(?=^#|\Z)", text, re.DOTALL | re.MULTILINE))
    declared = [*dependencies(), *(name for group in groups() for name in dependencies(group))]
    assert set(sections) == set(declared)
    for name, reason in sections.items():
        assert len(reason.strip()) > 40, f"{name}: a word is not a reason"


def test_what_is_declared_is_imported_and_what_is_imported_is_declared() -> None:
    extras = [name for group in groups() - {"dev", "bench"} for name in dependencies(group)]
    declared = {IMPORT_NAMES.get(name, name) for name in [*dependencies(), *extras]}
    assert imported() - declared == set(COMES_WITH)
    assert declared - imported() == set()
    assert set(COMES_WITH.values()) <= declared


def documents() -> list[Path]:
    return [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]


@pytest.mark.parametrize("document", documents(), ids=lambda path: str(path.relative_to(ROOT)))
def test_relative_links_lead_somewhere(document: Path) -> None:
    text = re.sub(r"```.*?```", "", document.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, _ = target.partition("#")
        if path and "://" not in path:
            assert (document.parent / path).exists(), f"{target} leads nowhere"


def test_functions_named_in_the_algorithms_exist() -> None:
    """Names written as `mengya.package.module.name` or `mengya.package.module`."""
    named = re.findall(r"`mengya\.([\w.]+)`", read("docs/algorithms.md"))
    assert len(named) > 20
    for dotted in named:
        *folders, last = dotted.split(".")
        module = PACKAGE.joinpath(*folders, last).with_suffix(".py")
        if module.is_file():
            continue
        holder = PACKAGE.joinpath(*folders)
        if not holder.with_suffix(".py").is_file():
            *folders, class_name = folders  # `module.Class.method`
            holder = PACKAGE.joinpath(*folders)
            assert class_name[0].isupper(), dotted
        source = holder.with_suffix(".py").read_text(encoding="utf-8")
        assert re.search(rf"^\s*(def|class) {last}\b|^{last}\b", source, re.MULTILINE), f"{dotted} does not exist"


@pytest.mark.parametrize("readme", READMES)
def test_the_recipe_in_a_readme_is_the_recipe_in_the_repository(readme: str) -> None:
    block = re.search(r"```yaml\n(.*?)```", read(readme), re.DOTALL)
    assert block
    assert block[1].strip() == read("recipes/own-data.yaml").strip()


@pytest.mark.parametrize("readme", READMES)
def test_rows_shown_in_a_readme_are_rows_of_the_example(readme: str) -> None:
    rows = [json.loads(line) for file in (ROOT / "examples/teahouse").glob("*.jsonl") for line in file.open()]
    shown = [
        json.loads(line)
        for block in re.findall(r"```json\n(.*?)```", read(readme), re.DOTALL)
        for line in block.splitlines()
    ]
    assert len(shown) == 4
    for row in shown:
        assert any(row.items() <= other.items() for other in rows), row
