"""Files are written in one place, `adapters/durable.py`."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.architecture.parsers import PACKAGES
from tests.paths import ROOT

MAY_WRITE = {
    "adapters/durable.py": "everybody else writes through it",
    "adapters/block_store.py": "SQLite sees to what it writes",
    "adapters/modes/mpc/link.py": "ssl takes a key from a file alone; it goes at once",
    "adapters/modes/mpc/memory.py": "it cuts off what a crash left by half",
    "cli/baselines.py": "lines that the demo reads meanwhile, and then deletes",
    "cli/interrupts.py": "standard error: a signal's handler may use no stream",
    "cli/stack/fork_server.py": "a child's output",
    "cli/stack/processes.py": "a child's output",
    "cli/stack/fetch.py": "a folder that gets its name when it is verified",
    "cli/main.py": "the null device, where output goes that nobody reads",
    "consumers/audit/bundle.py": "a spool that goes with the audit",
}
WRITERS = {
    *("write_bytes", "write_text", "touch", "rename", "hardlink_to", "symlink_to"),
    *("link_to", "mkstemp", "NamedTemporaryFile", "TemporaryFile", "truncate"),
    *("copyfile", "copy2", "copytree", "copyfileobj", "savez", "tofile", "save_file"),
}
NAMED = {"os.replace", "os.link", "os.write", "shutil.move", "sqlite3.connect"}
OPENERS = {"open", "fdopen"}


def find_writes(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield the line and the name of each call that writes a file, or renames one."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        function = node.func
        name = getattr(function, "attr", getattr(function, "id", ""))
        of = ast.unparse(getattr(function, "value", ast.Constant("")))
        arguments = [*node.args, *(word.value for word in node.keywords)]
        modes = [
            argument.value
            for argument in arguments
            if isinstance(argument, ast.Constant) and isinstance(argument.value, str)
        ]
        is_opened = name in OPENERS and (
            any(set(mode) & set("wax+") and len(mode) <= 4 for mode in modes)
            or any("os.O_WRONLY" in ast.unparse(a) for a in arguments)
            or any("os.O_RDWR" in ast.unparse(a) for a in arguments)
        )
        # A path's; a text's takes two arguments.
        is_moved = name == "replace" and len(node.args) == len(arguments) == 1
        is_named = f"{of}.{name}" in NAMED
        if is_opened or is_moved or is_named or name in WRITERS:
            yield node.lineno, name


def list_modules() -> list[Path]:
    return [p for name in PACKAGES for p in sorted((ROOT / name).rglob("*.py"))]


def show(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_files_are_written_in_one_place() -> None:
    found = {
        show(path): list(find_writes(ast.parse(path.read_text(encoding="utf-8"))))
        for path in list_modules()
    }
    writers = {name: places for name, places in found.items() if places}
    assert writers.keys() <= MAY_WRITE.keys(), {
        name: places for name, places in writers.items() if name not in MAY_WRITE
    }
    assert MAY_WRITE.keys() <= writers.keys(), "one that writes none any more"


@pytest.mark.parametrize(
    "line",
    [
        'path.open("wb")',
        'path.open(mode="a")',
        'open(path, "r+b")',
        "os.open(path, os.O_WRONLY | os.O_CREAT)",
        "os.open(path, flags=os.O_RDWR)",
        'os.fdopen(descriptor, "w", encoding="ascii")',
        'tarfile.open(path, "w")',
        "path.write_bytes(data)",
        "path.write_text(text, encoding='utf-8')",
        "draft.replace(path)",
        "draft.rename(path)",
        "os.replace(draft, path)",
        "os.link(draft, path)",
        "path.touch()",
        "sqlite3.connect(path)",
    ],
)
def test_a_write_is_seen(line: str) -> None:
    assert list(find_writes(ast.parse(line)))


@pytest.mark.parametrize(
    "line",
    [
        'path.open("rb")',
        "open(path)",
        "os.open(path, os.O_RDONLY)",
        'text.replace("a", "b")',
        "replace(state, votes=votes)",
        "now.replace(tzinfo=UTC)",
        "names.copy()",
    ],
)
def test_what_writes_nothing_is_not(line: str) -> None:
    assert not list(find_writes(ast.parse(line)))
