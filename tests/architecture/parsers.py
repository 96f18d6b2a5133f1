"""Which functions parse bytes or text of others, and which of them are fuzzed.

The first is read from the source: whatever uses one of `PRIMITIVES`, through which
alone bytes become something else, and whatever is called like a parser and takes bytes,
text or a path. The second is measured: all parsers of `tests.fuzz.targets` are run with
their seeds, and ``python -m tests.architecture.parsers`` prints what is called.
"""

from __future__ import annotations

import ast
import json
import logging
import re
import sys
from collections.abc import Iterator
from random import Random
from typing import Final

from tests.paths import ROOT

PACKAGES: Final = (
    *("schemas", "ledger", "protocol", "adapters"),
    *("streams", "producers", "consumers", "cli"),
)
PRIMITIVES: Final = frozenset(
    (
        *("from_bytes", "unpack", "unpack_from", "iter_unpack", "frombuffer"),
        *("b64decode", "fromhex", "a2b_hex", "unhexlify", "decode", "decode_as"),
        *("load", "loads", "fullmatch", "match", "finditer", "findall", "literal_eval"),
        *("schemaless_reader", "parse_schema", "InferenceSession", "urlsplit"),
        *("decompress", "decompressobj", "decompress_raw", "decompress_into"),
        *("from_compressed_bytes", "from_compressed_bytes_unchecked", "from_le_bytes"),
        *("from_public_bytes", "load_der_x509_certificate", "getmembers", "urlopen"),
        *("readexactly", "readline", "readuntil", "read_bytes", "read_text", "read1"),
        *("raw_path", "rel_url", "query", "iter_any", "getvalue", "from_buffer"),
    )
)
_PARSERS: Final = re.compile(
    r"_?(decode|parse|read|load|unpack|unframe|from|open|verify|take|hear)(_|$)"
)
_FOREIGN: Final = re.compile(r"\b(bytes|memoryview|str|Path|StreamReader|Record)\b")


def find_parsers() -> Iterator[str]:
    """Yield each function that may take bytes of others apart: path, colon, name."""
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            name = path.relative_to(ROOT).as_posix()
            tree = ast.parse(path.read_text(encoding="utf-8"))
            yield from (f"{name}:{found}" for found in _look(tree, ""))


def _look(node: ast.AST, prefix: str) -> Iterator[str]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef):
            yield from _look(child, f"{prefix}{child.name}.")
        elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            if _is_parser(child):
                yield f"{prefix}{child.name}"
            yield from _look(child, f"{prefix}{child.name}.<locals>.")
        else:
            yield from _look(child, prefix)


def _is_parser(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    arguments = function.args
    annotations = [
        ast.unparse(argument.annotation)
        for argument in (
            *arguments.posonlyargs,
            *arguments.args,
            *arguments.kwonlyargs,
        )
        if argument.annotation is not None
    ]
    if _PARSERS.match(function.name) and any(map(_FOREIGN.search, annotations)):
        return True
    return not PRIMITIVES.isdisjoint(_find_called(function))


def _find_called(function: ast.AST) -> Iterator[str]:
    """Yield what a function calls or reads by name, functions within it left out."""
    for child in ast.iter_child_nodes(function):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if isinstance(child, ast.Attribute):
            yield child.attr
        elif isinstance(child, ast.Name):
            yield child.id
        yield from _find_called(child)


def find_reached() -> set[str]:
    """Return what is called while all parsers read their seeds, and a little more."""
    from tests.fuzz.__main__ import read_corpus
    from tests.fuzz.mutations import mutate
    from tests.fuzz.targets import TARGETS

    logging.disable(logging.CRITICAL)
    root = f"{ROOT}/"
    reached: set[str] = set()
    codes: set[object] = set()

    def see(frame, event, _argument) -> None:
        code = frame.f_code
        if event == "call" and code not in codes:
            codes.add(code)
            path = code.co_filename.removeprefix(root)
            reached.add(f"{path}:{code.co_qualname}")

    for target in TARGETS:
        seeds = list(target.seeds())
        random = Random(target.name)
        mutants = [mutate(random.choice(seeds), random) for _ in range(5)]
        for data in (*seeds, *read_corpus(target.name), *mutants):
            sys.setprofile(see)
            try:
                target.parse(data)
            except target.errors:
                pass
            finally:
                sys.setprofile(None)
    return reached


if __name__ == "__main__":
    print(json.dumps(sorted(find_reached())))
