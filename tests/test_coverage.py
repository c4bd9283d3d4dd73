"""docs/coverage.yaml claims nothing that does not exist, and docs/coverage.md says what it says."""

from __future__ import annotations

import copy
import importlib.util
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]


def load(path: Path) -> Any:
    """tools/coverage.py, under a name that is not that of the coverage package."""
    spec = importlib.util.spec_from_file_location("coverage_page", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


tool = load(ROOT / "tools" / "coverage.py")
TABLE = yaml.safe_load(tool.TABLE.read_text())


@pytest.fixture
def table() -> dict[str, Any]:
    """The table, to be spoilt."""
    return copy.deepcopy(TABLE)


def row(table: dict[str, Any], number: int) -> dict[str, Any]:
    return next(r for r in table["systems"] if r["number"] == number)


def test_every_row_is_true() -> None:
    assert tool.faults(TABLE) == []


def test_the_page_is_what_the_table_gives() -> None:
    assert tool.PAGE.read_text() == tool.page(TABLE), "run `make coverage`"


def test_rows_of_the_page_have_as_many_columns_as_their_head() -> None:
    """A stray | in a formula would shift what follows."""
    tables = [block.splitlines() for block in tool.page(TABLE).split("\n\n") if block.startswith("|")]
    assert [len(rows) - 2 for rows in tables] == [5, 66, len(TABLE["also"])]
    for rows in tables:
        assert len({len(re.split(r"(?<!\\)\|", line)) for line in rows}) == 1


def test_every_method_is_compared_with_the_recurrences_of_its_cases(monkeypatch: pytest.MonkeyPatch) -> None:
    """The NumPy functions of a row are those that the conformance suite holds its menu entries to."""
    monkeypatch.syspath_prepend(str(ROOT / "tests" / "reference"))
    from small_problems import CASES

    for r in (*TABLE["systems"], *TABLE["also"]):
        has, compared = (list(tool.pairs(r.get(field))) for field in ("has", "compared"))
        cited = {
            getattr(sys.modules[Path(path).stem], name)
            for path, _, name in (what.partition("::") for kind, what in compared if kind == "numpy")
        }
        held = {case.paper for case in CASES if ("method", case.name) in has}
        assert held == cited, r["name"]


def add(field: str, thing: Any) -> Any:
    return lambda t: row(t, 2)[field].append(thing)


SPOILT = {
    "missing": (lambda t: t["systems"].remove(row(t, 12)), "system 12 is missing"),
    "doubled": (lambda t: t["systems"].append(dict(row(t, 12))), "system 12 has 2 rows"),
    "too many": (lambda t: t["systems"].append({**row(t, 12), "number": 67}), "there is no system 67"),
    "unlisted": (lambda t: t["also"].clear(), "menu entry zo_sign is in no row"),
    "method": (add("has", {"method": "mezzo"}), "MeZO: there is no method 'mezzo'"),
    "law": (add("has", {"law": "Cauchy"}), "there is no law 'Cauchy'"),
    "estimator": (add("has", {"estimator": "Backward"}), "there is no estimator 'Backward'"),
    "rule": (add("has", {"rule": "Shampoo"}), "there is no rule 'Shampoo'"),
    "space": (add("has", {"space": "Torus"}), "there is no space 'Torus'"),
    "set": (add("has", {"set": "Annulus"}), "there is no set 'Annulus'"),
    "diagnostic": (add("has", {"diagnostic": "horoscope"}), "there is no diagnostic 'horoscope'"),
    "control": (add("has", {"control": "Bandit"}), "there is no control 'Bandit'"),
    "interface": (add("has", {"interface": "maximize"}), "there is no interface 'maximize'"),
    "a module is no interface": (add("has", {"interface": "laws"}), "there is no interface 'laws'"),
    "oracle": (add("has", {"oracle": "delphi"}), "there is no oracle 'delphi'"),
    "an import is no oracle": (add("has", {"oracle": "Store"}), "there is no oracle 'Store'"),
    "schedule": (add("has", {"schedule": "sawtooth"}), "there is no schedule 'sawtooth'"),
    "problem": (add("has", {"problem": "world_hunger"}), "there is no problem 'world_hunger'"),
    "command": (add("has", {"command": "bench nothing"}), "there is no command 'bench nothing'"),
    "benchmark": (add("has", {"benchmark": "nothing"}), "there is no benchmark 'nothing'"),
    "kind": (add("has", {"miracle": "x"}), "'miracle' is no kind of thing"),
    "test": (add("tests", "tests/core/test_laws.py::test_nothing"), "there is no test tests/core/test_laws.py"),
    "test file": (add("tests", "tests/core/none.py::test_x"), "there is no test tests/core/none.py::test_x"),
    "helper": (add("tests", "tests/conftest.py::make_tiny_model"), "there is no test tests/conftest.py"),
    "numpy": (add("compared", {"numpy": "tests/reference/papers.py::mezzo"}), "there is no numpy reference"),
    "torch": (add("compared", {"torch": "torch.optim.MeZO"}), "there is no torch reference 'torch.optim.MeZO'"),
    "reference": (add("compared", {"hearsay": "x"}), "'hearsay' is no kind of reference"),
    "no test": (lambda t: row(t, 2).pop("tests"), "MeZO: no test proves it"),
    "not compared": (lambda t: row(t, 2).pop("compared"), "MeZO: it was compared with nothing"),
    "no note": (lambda t: row(t, 8).pop("note"), "no note"),
    "extent": (lambda t: row(t, 2).update(extent="most"), "unknown extent 'most'"),
    "what is missing": (lambda t: row(t, 12).update(note="A coarse solver."), "it is a mechanism, and its note has no"),
    "nothing and more": (lambda t: row(t, 2)["has"].insert(0, "nothing yet"), "there cannot be more beside"),
    "nothing, tested": (lambda t: row(t, 2).update(has=["nothing yet"]), "nothing yet, but there are tests"),
    "example": (add("has", {"example": "perpetual_motion"}), "there is no example 'perpetual_motion'"),
    "design": (add("has", {"design": "intelligent"}), "there is no design 'intelligent'"),
    "solver": (add("compared", {"solver": "scipy.optimize.oracle"}), "there is no solver reference"),
    "field": (lambda t: row(t, 2).update(score=11), "unknown field 'score'"),
}


@pytest.mark.parametrize("case", SPOILT)
def test_a_false_claim_is_found(table: dict[str, Any], case: str) -> None:
    spoil, said = SPOILT[case]
    spoil(table)
    assert any(said in fault for fault in tool.faults(table))


def test_a_false_table_writes_no_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, table: dict[str, Any]) -> None:
    monkeypatch.setattr(tool, "TABLE", tmp_path / "coverage.yaml")
    monkeypatch.setattr(tool, "PAGE", tmp_path / "coverage.md")
    tool.TABLE.write_text(yaml.safe_dump(table))
    assert tool.main([]) == 0
    assert tool.main(["--check"]) == 0
    page = tool.PAGE.read_text()
    table["systems"].pop()
    tool.TABLE.write_text(yaml.safe_dump(table))
    assert tool.main([]) == 1
    assert tool.PAGE.read_text() == page


def test_a_page_that_was_edited_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tool, "PAGE", tmp_path / "coverage.md")
    tool.PAGE.write_text(tool.page(TABLE).replace("nothing yet", "everything", 1))
    assert tool.main(["--check"]) == 1
