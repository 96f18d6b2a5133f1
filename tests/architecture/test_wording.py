"""What people read says "1 block" and "2 blocks"."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from adapters.wording import counted
from tests.architecture.test_layout import modules, parse, show

PLURAL = re.compile(r" (?:[a-z]+ )?[a-z]{2,}s\b")
NUMBER = re.compile(
    r"\b(?:len\(|(?:num|count)(?:_[a-z_]+)?\b|[a-z_]*size(?:_bytes)?\b)"
)
NO_PLURAL = re.compile(r" (?:[a-z]+ )?(?:is|was|has|as|does|this|its|bytes)\b")
"""A unit among them: facts' details have bytes, and what quotes them says the same."""


def find_uncounted(tree: ast.AST) -> Iterator[str]:
    """Yield texts with a number and a plural that is one whatever the number is."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.JoinedStr):
            continue
        for value, after in zip(node.values, node.values[1:], strict=False):
            if not (
                isinstance(value, ast.FormattedValue)
                and isinstance(after, ast.Constant)
                and isinstance(after.value, str)
            ):
                continue
            spec = ast.unparse(value.format_spec) if value.format_spec else ""
            said = ast.unparse(value.value)
            is_number = NUMBER.search(said) or "," in spec
            if (
                is_number
                and not said.startswith("counted(")
                and PLURAL.match(after.value)
                and not NO_PLURAL.match(after.value)
            ):
                yield ast.unparse(node)


@pytest.mark.parametrize(
    "path", [*modules("cli"), *modules("consumers/audit")], ids=show
)
def test_nouns_are_counted_in_one_place(path: Path) -> None:
    assert list(find_uncounted(parse(path))) == []


def test_one_that_is_not_would_be_seen() -> None:
    seen = 'f"{len(x)} blocks"', 'f"{r.num_final:,} more leaves"', 'f"{n:,} facts"'
    unseen = 'f"{len(x)} is"', 'f"{name} asks"', 'f"{counted(n)} behind"'

    assert all(list(find_uncounted(ast.parse(text))) for text in seen)
    assert not any(list(find_uncounted(ast.parse(text))) for text in unseen)


@pytest.mark.parametrize(
    ("number", "shown"),
    [(0, "0 blocks"), (1, "1 block"), (2, "2 blocks"), (1_000, "1,000 blocks")],
)
def test_a_noun_has_its_number(number: int, shown: str) -> None:
    assert counted(number, "block") == shown


def test_a_plural_may_be_irregular() -> None:
    assert counted(1, "leaf", "leaves") == "1 leaf"
    assert counted(3, "leaf", "leaves") == "3 leaves"
