"""The tests mirror the product: a test module for each of its modules, and what tests share in tests/support."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.commands import ROOT

TESTS = ROOT / "tests"
TEST_MODULES = sorted(TESTS.rglob("test_*.py"))


def imported(path: Path) -> Iterator[str]:
    """The dotted names that a module imports, also within its functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module or '.'}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", TEST_MODULES, ids=lambda path: str(path.relative_to(TESTS)))
def test_a_test_module_imports_of_the_tests_only_what_they_share(path: Path) -> None:
    ours = {name for name in imported(path) if name.split(".")[0] == "tests"}
    assert not {name for name in ours if not name.startswith("tests.support.")}


@pytest.mark.parametrize("path", sorted((TESTS / "support").glob("*.py")), ids=lambda path: path.stem)
def test_what_tests_share_imports_no_test_module(path: Path) -> None:
    ours = {name for name in imported(path) if name.split(".")[0] == "tests"}
    assert not {name for name in ours if not name.startswith("tests.support.")}


def test_each_product_module_has_a_test_module_of_its_name() -> None:
    untested = set()
    for path in (ROOT / "pipeline").rglob("*.py"):
        inside = path.relative_to(ROOT / "pipeline")
        if path.name in ("__init__.py", "__main__.py") or "template" in inside.parts:  # which has tests of its own
            continue
        if not (TESTS / inside.parent / f"test_{inside.name}").exists():
            untested.add(inside.as_posix())
    assert untested == set()
