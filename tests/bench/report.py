"""How benchmarks show what they measured: tables and targets in Markdown."""

from __future__ import annotations

import cProfile
import os
import platform
import pstats
import re
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Final

from cli.stack.fetch import DEFINITIONS
from tests.paths import ROOT

PACKAGES: Final = (
    "faust-streaming", "aiokafka", "confluent-kafka", "fastavro", "minio", "numpy",
    "pynacl", "py-arkworks-bls12381", "cryptography",
)  # fmt: skip
SERVERS: Final = {
    "Kafka": r"kafka_2\.\d+-([\d.]+)\.jar",
    "Apicurio Registry": r"apicurio-registry-app-([\w.]+)-all\.tar\.gz",
    "MinIO": r"github\.com/minio/minio@v0\.0\.0-(\d{8})",
}
NUM_HOT_SPOTS: Final = 6
NUM_REPEATS: Final = 3
MEGA: Final = 1e6

median = statistics.median


def make_table(rows: Iterable[Mapping[str, object]]) -> str:
    """Return a table in Markdown.

    Args:
        rows: Cells under their headings, the same in each row. The first column is
            text. None is an empty cell, and numbers that are not whole are shown short.
    """
    rows = list(rows)
    align = ["---", *["---:"] * (len(rows[0]) - 1)]
    cells = [[_show_cell(value) for value in row.values()] for row in rows]
    return "\n".join(
        f"| {' | '.join(line)} |" for line in [list(rows[0]), align, *cells]
    )


def _show_cell(value: object) -> str:
    match value:
        case None:
            return ""
        case float():
            return show(value)
        case int():
            return f"{value:,}"
    return str(value)


def show(value: float) -> str:
    """Return a number with about three digits that count."""
    if value == 0:
        return "0"
    if abs(value) >= 100:  # three digits before the point
        return f"{round(value, -len(str(int(abs(value)))) + 3):,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"  # as above


def show_target(
    value: float, target: float, unit: str, *, at_least: bool = False
) -> str:
    """Return whether a target is met, as a sentence."""
    met = value >= target if at_least else value <= target
    return (
        f"**Target** {'at least' if at_least else 'at most'} {target:,g} {unit}: "
        f"{'met' if met else 'MISSED'}, {show(value)}."
    )


def name_size(num_agents: int, num_parameters: int) -> dict[str, object]:
    """Return a row's first cell."""
    return {"agents × parameters": f"{num_agents} × {num_parameters:,}"}


def describe_machine() -> str:
    """Return what this is: nothing that names the machine or its owner."""
    load = os.getloadavg()[0]
    is_busy = load > count_cores() / 4
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    checksums = (DEFINITIONS / "checksums.txt").read_text(encoding="utf-8")
    servers = (
        f"{name} {found[1]}"
        for name, pattern in SERVERS.items()
        if (found := re.search(pattern, checksums))
    )
    versions = (
        f"Python {platform.python_version()}",
        *(f"{package} {version(package)}" for package in PACKAGES),
        *servers,
    )
    return (
        f"Measured on {_find_cpu()}, {count_cores()} cores, "
        f"{memory_bytes / 2**30:.0f} GiB of memory, {platform.system()} "
        f"{platform.machine()}; {datetime.now(UTC).date()}; "
        f"load average before the run {load:.1f}"
        + (": the machine was not idle, so wall times are too long" if is_busy else "")
        + f"; {', '.join(versions)}."
    )


def count_cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _find_cpu() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or platform.machine()
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found[1].strip() if found else platform.machine()


def measure_rate(work: Callable[[], object], count: int) -> float:
    """Return how many of the things that a call does one core does in a second.

    Args:
        work: Does ``count`` things in this thread.
        count: How many.
    """
    seconds = []
    for _ in range(NUM_REPEATS):
        began = time.thread_time()
        work()
        seconds.append(time.thread_time() - began)
    return count / max(min(seconds), 1e-9)


def find_hot_spots(work: Callable[[], object]) -> dict[str, float]:
    """Return the functions in which a call spends most of its time, most first.

    Returns:
        Each function's own share of the time, callees left out.
    """
    profile = cProfile.Profile()
    profile.runcall(work)
    stats = pstats.Stats(profile).stats  # type: ignore[attr-defined]  # not in the stubs
    own = {_name(place): entry[2] for place, entry in stats.items()}
    total = sum(own.values()) or 1e-9
    hottest = sorted(own.items(), key=lambda item: -item[1])[:NUM_HOT_SPOTS]
    return {name: seconds / total for name, seconds in hottest}


def _name(place: tuple[str, int, str]) -> str:
    path, _, function = place
    if path == "~":  # built in: "<built-in method _sodium.crypto_sign_open>"
        found = re.search(r"(?:method|function) '?([\w.]+)", function)
        return found[1].removeprefix("_sodium.") if found else function.strip("<>")
    package, module = Path(path).parent.name, Path(path).stem
    if Path(path).is_relative_to(ROOT) and "site-packages" not in path:
        module = ".".join(Path(path).relative_to(ROOT).with_suffix("").parts)
    elif not package.startswith("python"):  # not the standard library
        module = f"{package}.{module}"
    return f"{module}.{function.strip('<>')}"


def show_hot_spots(of_what: str, work: Callable[[], object]) -> str:
    """Profile a call and say where its time goes."""
    spots = (f"`{name}` {share:.0%}" for name, share in find_hot_spots(work).items())
    return f"**Hot spot** of {of_what}: {', '.join(spots)}."
