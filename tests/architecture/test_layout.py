"""The layout of DESIGN.md section 2, and what may import what."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.paths import ROOT

MAY_IMPORT = {
    "schemas": set(),
    "ledger": {"schemas"},
    "protocol": {"ledger", "schemas"},
    "adapters": {"protocol", "ledger", "schemas"},
    "streams": {"adapters", "protocol", "ledger", "schemas"},
    "producers": {"adapters", "protocol", "ledger", "schemas"},
    "consumers": {"adapters", "protocol", "ledger", "schemas"},
}
PACKAGES = {*MAY_IMPORT, "cli"}
CORE = ("schemas", "ledger", "protocol")
HEAVY = ("torch", "lightning", "pytorch_lightning", "opacus", "crypten", "faust")
TOPIC_NAME = re.compile(
    r"\bmoot\.(agents|control|updates|partials|proofs|rounds|aggregates|registry|"
    r"rewards|privacy|ledger|checkpoints|rejected)\b"
)
MAX_AGENT_LINES = 40


def modules(*packages: str) -> list[Path]:
    return [path for name in packages for path in sorted((ROOT / name).rglob("*.py"))]


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), path.name)


def imported(tree: ast.AST) -> Iterator[str]:
    """Yield the top-level names that a module imports, anywhere in it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "no relative imports: path = import"
            yield (node.module or "").partition(".")[0]


def show(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


every_module = pytest.mark.parametrize("path", modules(*sorted(PACKAGES)), ids=show)


def test_the_wheel_holds_the_packages_of_the_design_and_nothing_else() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert sorted(wheel) == sorted(PACKAGES)
    found = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert found == PACKAGES
    assert not list((ROOT / "ops").rglob("*.py")), "ops is no Python package"


def test_the_contract_is_in_the_wheel() -> None:
    """Hatch takes everything in a package that git does not ignore."""
    assert (ROOT / "schemas" / "lock.json").exists()
    ignored = (ROOT / ".gitignore").read_text(encoding="utf-8").split()
    assert not {"*.avsc", "*.json"} & set(ignored)


@every_module
def test_imports_go_one_way(path: Path) -> None:
    package = path.relative_to(ROOT).parts[0]
    allowed = MAY_IMPORT.get(package, PACKAGES) | {package}
    assert set(imported(parse(path))) & PACKAGES <= allowed


@every_module
def test_only_streams_know_faust(path: Path) -> None:
    if path.relative_to(ROOT).parts[0] != "streams":
        assert "faust" not in set(imported(parse(path)))


@pytest.mark.parametrize("path", modules(*CORE), ids=show)
def test_the_core_reads_no_clock_no_entropy_no_environment(path: Path) -> None:
    outside = {
        "time",
        "random",
        "secrets",
        "os",
        "socket",
        "logging",
        "uuid",
        "asyncio",
    }
    assert set(imported(parse(path))) & outside == set()


@every_module
def test_topics_have_their_names_in_one_place(path: Path) -> None:
    if path == ROOT / "schemas" / "topics.py":
        return
    tree = parse(path)
    docstrings = {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    found = [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant)
        and id(node) not in docstrings
        and isinstance(node.value, str)
        and TOPIC_NAME.search(node.value)
        and not re.search(r"\s", node.value)  # prose may name them
    ]
    assert found == []


def agents() -> list[tuple[str, ast.AsyncFunctionDef]]:
    """Return every function that is decorated as a Faust agent."""
    return [
        (f"{show(path)}:{node.name}", node)
        for path in modules("streams")
        for node in ast.walk(parse(path))
        if isinstance(node, ast.AsyncFunctionDef)
        and any(
            isinstance(decorator, ast.Call)
            and isinstance(decorator.func, ast.Attribute)
            and decorator.func.attr == "agent"
            for decorator in node.decorator_list
        )
    ]


STARTERS = {"Thread", "create_task", "ensure_future"}
MAY_START = {
    "adapters/alive.py": "everybody else starts through it",
    "consumers/node/peers.py": "it asks each, every second, how it ended",
}


@every_module
def test_no_thread_or_task_can_end_unnoticed(path: Path) -> None:
    if show(path) in MAY_START:
        return
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Call):
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            assert name not in STARTERS, (
                f"line {node.lineno}: adapters/alive.py starts threads and tasks"
            )


def test_there_are_agents() -> None:
    assert len(agents()) >= 2


@pytest.mark.parametrize(
    ("name", "agent"), agents(), ids=[name for name, _ in agents()]
)
def test_an_agent_is_short_and_decides_nothing(
    name: str, agent: ast.AsyncFunctionDef
) -> None:
    assert agent.end_lineno is not None
    assert agent.end_lineno - agent.lineno < MAX_AGENT_LINES, name
    branches = (ast.If, ast.IfExp, ast.Match, ast.BoolOp, ast.Compare)
    assert [node for node in ast.walk(agent) if isinstance(node, branches)] == []


def light_modules() -> list[str]:
    """Return what must start without torch and Faust."""
    names = [
        show(path).removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        for path in modules(*CORE, "adapters")
    ]
    audit = ROOT / "consumers" / "audit.py"
    if audit.exists() or (audit.with_suffix("") / "__init__.py").exists():
        names.append("consumers.audit.auditor")
    return names


def test_the_core_the_adapters_and_the_auditor_load_neither_torch_nor_faust() -> None:
    program = (
        "import importlib, sys\n"
        f"for name in {light_modules()!r}: importlib.import_module(name)\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == "" or done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def test_the_core_loads_no_client_of_anything() -> None:
    names = [name for name in light_modules() if name.partition(".")[0] in CORE]
    outside = ("confluent_kafka", "aiokafka", "minio", "opentelemetry", "pydantic")
    program = (
        "import importlib, sys\n"
        f"for name in {names!r}: importlib.import_module(name)\n"
        f"print([name for name in {outside!r} if name in sys.modules])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"


MAY_PRINT = {
    "cli/show.py",
    "cli/stack/guard.py",  # a process of its own, which says one line of ours
    "adapters/log_lines.py",  # what nobody caught
}
MAY_USE_RICH = {"cli/demo.py", "cli/audit.py"}


@pytest.mark.parametrize(
    "path",
    [
        p
        for p in modules(*sorted(PACKAGES))
        if str(p.relative_to(ROOT)) not in MAY_PRINT
    ],
    ids=show,
)
def test_everything_is_printed_in_one_place(path: Path) -> None:
    """What others wrote reaches no terminal as it is (`cli.show`)."""
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [name.name for name in node.names]
            module = getattr(node, "module", None) or ""
            assert "echo" not in names, ast.unparse(node)
            if any(n.split(".")[0] == "rich" for n in (module, *names)):
                assert str(path.relative_to(ROOT)) in MAY_USE_RICH, ast.unparse(node)
        if isinstance(node, ast.Attribute):
            name = ast.unparse(node)
            assert not name.startswith(("sys.stdout.write", "sys.stderr.write"))
            assert not name.startswith(("sys.__stdout__", "sys.__stderr__"))
            assert not name.endswith((".echo", ".secho")), name
            assert not name.startswith(("traceback.print_", "faulthandler.")), name
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        assert name != "print", ast.unparse(node)
        if name.endswith("console.print") and node.args:
            # Markup of ours alone: a literal, or something that holds no markup.
            shown = node.args[0]
            assert isinstance(shown, ast.Constant | ast.Name), ast.unparse(node)
