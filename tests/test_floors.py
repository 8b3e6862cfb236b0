"""The house has floors: a module imports only from floors below its own, and each heavy library has one door."""

import ast
import re
from collections.abc import Iterator
from graphlib import TopologicalSorter
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import pytest
from repository import ROOT

PACKAGE = ROOT / "gritrag"

# lowest first; the parts of one floor do not know each other
FLOORS = [
    {"records", "config", "progress", "folders", "processor", "complements", "arguments"},
    {"clock"},
    {"prompts", "corpus"},
    {"tokens", "codecs", "documents"},
    {"chunks"},
    {"model"},
    {"index", "train", "export"},
    {"modes"},
    {"relevance"},
    {"plan"},
    {"answered"},
    {"answer"},
    {"gritrag"},  # the names that gritrag/__init__.py offers
    {"langchain", "serve", "mcp", "tracing", "mteb", "evaluate"},
    {"capacity"},
    {"forecast"},
    {"doctor", "ingest", "mine", "render"},  # what the commands of the CLI do and show
    {"demo"},
    {"cli"},
    {"__main__"},
]
FLOOR = {part: height for height, parts in enumerate(FLOORS) for part in parts}
ONE_DOOR = ("faiss", "peft", "datasets", "accelerate", "langchain_core", "fastapi", "ray", "mteb", "sklearn", "tqdm")
ONE_DOOR += ("qdrant_client", "fsspec", "mcp", "opentelemetry", "pypdf", "docx", "pptx", "openpyxl", "lxml")
NO_TORCH = ("records", "config", "prompts")
LOADS_MODELS = ("gritrag.index.reader", "gritrag.model.grit")
"""By the name that a manifest holds, and for nothing else: it gives back what any reader of an index is."""
IMPORTED_WHEN_NEEDED = {
    ("gritrag.model.load", "peft"),
    ("gritrag.model.gguf_copy", "gritrag.model.gguf_file"),
    ("gritrag.index.parts", "gritrag.index.storage.qdrant"),
}
"""Each takes a quarter of a second or more of every start, and few models and indexes need it."""
SEES_STATES = {"gritrag.index.storage.states", "gritrag.index.storage.packed", "gritrag.index.protocol"}


class Import(NamedTuple):
    module: str  # who imports
    target: str  # the module that is imported, as precisely as the tree knows it
    line: int
    in_function: bool


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def part(module: str) -> str:
    """The file or folder of gritrag/ that a module belongs to."""
    return module.split(".")[1] if "." in module else module


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imports(module: str) -> Iterator[Import]:
    tree = ast.parse(MODULES[module].read_text("utf-8"))
    functions = [
        node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
    ]
    inside = {id(node) for function in functions for node in ast.walk(function)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}:{node.lineno}: write imports in full"
            longer = [f"{node.module}.{alias.name}" for alias in node.names]
            targets = [name if name in MODULES else str(node.module) for name in longer]
        else:
            continue
        for target in dict.fromkeys(targets):
            yield Import(module, target, node.lineno, id(node) in inside)


IMPORTS = [found for module in MODULES for found in imports(module)]
OURS = [found for found in IMPORTS if found.target.split(".")[0] == "gritrag"]


def where(found: Import) -> str:
    return f"{found.module}, line {found.line}: imports {found.target}"


def test_every_module_has_a_floor() -> None:
    assert {part(module) for module in MODULES} <= set(FLOOR)


def test_the_table_of_layers_has_every_part_on_its_floor() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text("utf-8")
    table = page.partition("| layer |")[2].partition("\n\n")[0]
    layers = [re.findall(r"`gritrag\.(\w+)`", row.split("|")[1]) for row in table.splitlines()[2:]]
    told = [name for layer in layers for name in layer]
    assert sorted(told) == sorted(set(FLOOR) - {"gritrag", "__main__"})
    for upper, lower in pairwise(layers):
        assert min(FLOOR[name] for name in upper) > max(FLOOR[name] for name in lower), (upper, lower)


def test_a_module_imports_only_from_floors_below() -> None:
    wrong = [
        where(found)
        for found in OURS
        if part(found.module) != part(found.target) and FLOOR[part(found.target)] >= FLOOR[part(found.module)]
    ]
    assert wrong == []


def test_no_circles() -> None:
    graph: dict[str, set[str]] = {module: set() for module in MODULES}
    for found in OURS:
        graph[found.module].add(found.target)
    order = list(TopologicalSorter(graph).static_order())  # raises CycleError, which names the circle
    assert set(order) >= set(MODULES)


def test_imports_of_our_own_name_a_module_that_exists() -> None:
    assert [where(found) for found in OURS if found.target not in MODULES] == []


@pytest.mark.parametrize("library", ONE_DOOR)
def test_a_heavy_library_appears_in_one_file_or_folder(library: str) -> None:
    doors = {part(found.module) for found in IMPORTS if found.target.split(".")[0] == library}
    assert len(doors) <= 1


def test_the_lowest_floors_know_no_torch() -> None:
    heavy = {"torch", "transformers", "numpy", "peft"}
    wrong = [
        where(found) for found in IMPORTS if part(found.module) in NO_TORCH and found.target.split(".")[0] in heavy
    ]
    assert wrong == []


def test_an_index_sees_no_model_but_the_state_as_a_value() -> None:
    wrong = [
        where(found)
        for found in OURS
        if part(found.module) == "index"
        and part(found.target) == "model"
        and not (found.module in SEES_STATES and found.target == "gritrag.model.state")
        and (found.module, found.target) != LOADS_MODELS
    ]
    assert wrong == []


def test_nothing_imports_the_adapters() -> None:
    adapters = {"langchain", "serve", "mcp", "tracing", "mteb"}
    wrong = [
        where(found)
        for found in OURS
        if part(found.target) in adapters and part(found.module) not in adapters | {"cli"}
    ]
    assert wrong == []


def test_only_the_cli_imports_inside_functions_and_what_takes_long() -> None:
    inside = {(found.module, found.target) for found in IMPORTS if found.in_function and part(found.module) != "cli"}
    assert inside == IMPORTED_WHEN_NEEDED
