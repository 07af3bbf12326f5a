"""The house's layers: imports point one way only, every module imports, and torch stays where it is used."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src" / "mengya"

# Each room may import itself and what stands to its left (on an earlier line). DESIGN.md, "Rooms".
LAYERS: tuple[tuple[str, ...], ...] = (
    ("errors", "files", "__init__"),
    ("console", "settings", "recipe", "environment", "run"),
    ("corpus", "tokenizer", "model", "objectives"),
    ("data",),
    ("train", "generate"),
    ("evaluate",),
    ("rl",),
    ("stages",),
    ("report", "serve", "cli", "__main__"),
)
LEVEL = {room: level for level, rooms in enumerate(LAYERS) for room in rooms}
MODULES = sorted(SOURCE.rglob("*.py"))


def _room(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def _imports(file: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            if node.module == "mengya":
                found |= {f"mengya.{alias.name}" for alias in node.names if (SOURCE / f"{alias.name}.py").exists()}
    return {name for name in found if name == "mengya" or name.startswith("mengya.")}


@pytest.mark.parametrize("file", MODULES, ids=lambda file: str(file.relative_to(SOURCE)))
def test_imports_point_to_the_left(file):
    room = _room("mengya." + ".".join(file.relative_to(SOURCE).with_suffix("").parts))
    for imported in _imports(file):
        other = _room(imported)
        assert LEVEL[other] <= LEVEL[room], f"{room} imports {imported}"
        if {room, other} == {"train", "generate"}:
            pytest.fail("train and generate do not import each other")
        if room in ("model", "objectives"):
            assert other in ("model", "objectives", "errors", "files", "__init__"), f"{room} imports {imported}"


@pytest.mark.parametrize("file", MODULES, ids=lambda file: str(file.relative_to(SOURCE)))
def test_every_module_imports(file):
    if file.name == "__main__.py":
        pytest.skip("running it is the command line")
    parts = file.relative_to(SOURCE).with_suffix("").parts
    importlib.import_module(".".join(("mengya", *(part for part in parts if part != "__init__"))))


def test_help_and_recipes_load_neither_torch_nor_transformers():
    code = (
        "import sys; from mengya.cli import app; from mengya.recipe import load_recipe; "
        "load_recipe('recipes/quickstart.yaml'); from mengya.stages.check import check_recipe; "
        "print([m for m in ('torch', 'transformers', 'matplotlib', 'pyarrow') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=SOURCE.parents[1]
    )
    assert done.stdout.strip() == "[]"


def test_no_module_imports_transformers_or_pickle():
    for file in MODULES:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names.append(node.module or "")
            assert not {name.split(".")[0] for name in names} & {"transformers", "pickle"}, file
