"""The order of the packages: `.importlinter` states it, `make lint` checks it; here that it covers everything."""

from __future__ import annotations

import configparser
import re
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

grimp = pytest.importorskip("grimp")

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def imports() -> dict[str, set[str]]:
    """module -> what it imports, at the top or in a function, but for types alone."""
    graph = grimp.build_graph("zograd", exclude_type_checking_imports=True, cache_dir=None)
    return {module: set(graph.find_modules_directly_imported_by(module)) for module in graph.modules}


def test_no_circle_of_files(imports: dict[str, set[str]]) -> None:
    assert len(imports) > 150
    TopologicalSorter(imports).prepare()


def test_a_circle_would_be_found(imports: dict[str, set[str]]) -> None:
    circle = {**imports, "zograd.core.vector": imports["zograd.core.vector"] | {"zograd.core.run"}}
    with pytest.raises(CycleError):
        TopologicalSorter(circle).prepare()


def test_every_module_stands_on_a_floor(imports: dict[str, set[str]]) -> None:
    parser = configparser.ConfigParser()
    parser.read(ROOT / ".importlinter")
    layers = re.split(r"[\s|:]+", parser["importlinter:contract:floors"]["layers"].strip())
    apart = {"zograd", "zograd.__main__", "zograd.addresses"}  # what starts the package
    packages = {m for m in imports if any(other.startswith(f"{m}.") for other in imports)}
    homeless = {
        module
        for module in imports.keys() - apart
        if not any(module == layer or module.startswith(f"{layer}.") for layer in layers) and module not in packages
    }
    assert homeless == set()
