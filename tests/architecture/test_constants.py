"""A number that is written twice, as an expression and as its value, is one number."""

from __future__ import annotations

import ast
import importlib
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.architecture.parsers import PACKAGES
from tests.paths import ROOT

VALUE = re.compile(r"# = (-?[0-9][0-9,]*|2\^[0-9]+)(?![0-9,.^])")


def list_modules() -> list[Path]:
    return [p for name in PACKAGES for p in sorted((ROOT / name).rglob("*.py"))]


def show(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def find_constants(path: Path) -> dict[int, str]:
    """Return which constant of a module each line belongs to."""
    lines = {}
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            numbers = range(node.lineno, (node.end_lineno or node.lineno) + 1)
            lines.update(dict.fromkeys(numbers, node.target.id))
    return lines


def read_values(path: Path) -> Iterator[tuple[int, int]]:
    """Yield the line and the number of each comment that gives a value."""
    with path.open("rb") as file:
        for token in tokenize.tokenize(file.readline):
            if token.type == tokenize.COMMENT and (found := VALUE.match(token.string)):
                base, _, exponent = found[1].replace(",", "").partition("^")
                yield token.start[0], int(base) ** int(exponent or 1)


VALUES = [
    pytest.param(path, line, value, id=f"{show(path)}:{line}")
    for path in list_modules()
    for line, value in read_values(path)
]


@pytest.mark.parametrize(("path", "line", "value"), VALUES)
def test_a_value_beside_an_expression_is_its_value(path, line, value):
    names = find_constants(path)
    assert line in names, "of a constant"
    module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    assert getattr(importlib.import_module(module), names[line]) == value


def test_there_are_such_values():
    assert len(VALUES) > 20
