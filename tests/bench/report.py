"""How benchmarks say what they found: tables in Markdown, with the machine above."""

from __future__ import annotations

import cProfile
import os
import platform
import pstats
import re
import statistics
import textwrap
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Final

from tests.paths import ROOT

PACKAGES: Final = (
    "faust-streaming", "aiokafka", "confluent-kafka", "fastavro", "minio", "numpy",
    "pynacl", "py-arkworks-bls12381", "cryptography",
)  # fmt: skip
NUM_HOT_SPOTS: Final = 6
NUM_REPEATS: Final = 3
GIB: Final = 2**30

INTRODUCTION: Final = """\
# Benchmarks

What Folkmoot does in a second, what limits it, and where the time goes. Every figure
stands beside a limit that was measured in the same run on the same machine, because
times alone say more about the machine than about the program.

{command} made this page; the command under each heading repeats its part. Every
benchmark that needs Kafka or MinIO starts a stack of its own in a temporary folder,
empty before and gone afterwards: one broker, no replication, everything on one machine,
so that the services share its cores with Kafka, MinIO and the load. Real deployments
give each of them a machine; then the services' own processor time is what counts, and
where it can be measured it is given.

Words: *wall* is time on the clock, *per core* is per second of processor time, which
other programs on the machine disturb much less. Rates of functions in one process are
per core, the best of {repeats} repetitions. A hot spot is a function's own share of a
profiled run, callees left out; `crypto_sign_open` is libsodium verifying a signature.
"""


@dataclass(frozen=True, slots=True)
class Table:
    """Rows under headings; the first column is text, the others are numbers."""

    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    @classmethod
    def under(cls, headings: str, rows: Iterable[tuple[str, ...]]) -> Table:
        """Return a table under headings that are divided by " | "."""
        return cls(tuple(headings.split(" | ")), tuple(rows))

    def render(self) -> str:
        """Return it in Markdown."""
        align = ["---", *["---:"] * (len(self.headings) - 1)]
        lines = [self.headings, tuple(align), *self.rows]
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)


@dataclass(frozen=True, slots=True)
class Section:
    """What one benchmark found.

    Attributes:
        name: As `moot bench` takes it.
        title: Its heading.
        parts: Paragraphs and tables, in order.
    """

    name: str
    title: str
    parts: tuple[str | Table, ...]

    def render(self) -> str:
        """Return it in Markdown, with the command that repeats it."""
        texts = [
            _wrap(part) if isinstance(part, str) else part.render()
            for part in self.parts
        ]
        heading = f"## {self.title}\n\n`moot bench {self.name}`"
        return "\n\n".join([heading, *texts])


def _wrap(text: str) -> str:
    return textwrap.fill(
        " ".join(text.split()), 100, break_long_words=False, break_on_hyphens=False
    )


@dataclass(frozen=True, slots=True)
class Machine:
    """What the figures were measured on."""

    cpu: str
    cores: int
    memory_bytes: int
    system: str
    load: float
    date: str
    versions: tuple[str, ...] = field(default_factory=tuple)

    def render(self) -> str:
        """Return it in Markdown."""
        return "\n".join(["## Machine", "", *(f"- {line}" for line in self._say())])

    def render_note(self) -> str:
        """Return it as a paragraph, for a section that was measured by itself."""
        return _wrap(f"Measured by itself: {'; '.join(self._say())}.")

    def _say(self) -> tuple[str, ...]:
        memory = f"{self.memory_bytes / GIB:.0f} GiB" if self.memory_bytes else "?"
        return (
            f"{self.cpu}, {self.cores} cores, {memory} of memory, {self.system}",
            f"{self.date}; load average before the run {self.load:.1f}"
            + (
                ": the machine was not idle, so wall times are too long"
                if self.load > self.cores / 4
                else ""
            ),
            ", ".join(self.versions),
        )


def inspect_machine() -> Machine:
    """Return what this is: nothing that names the machine or its owner."""
    return Machine(
        cpu=_find_cpu(),
        cores=count_cores(),
        memory_bytes=_find_memory(),
        system=f"{platform.system()} {platform.machine()}",
        load=os.getloadavg()[0],
        date=datetime.now(UTC).date().isoformat(),
        versions=(
            f"Python {platform.python_version()}",
            *(f"{package} {version(package)}" for package in PACKAGES),
            *_find_servers(),
        ),
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


def _find_memory() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return 0


def _find_servers() -> list[str]:
    """Return the versions of what the local stack runs, from its definitions."""
    from cli.stack.fetch import DEFINITIONS

    checksums = (DEFINITIONS / "checksums.txt").read_text(encoding="utf-8")
    servers = []
    for name, pattern in (
        ("Kafka", r"kafka_2\.\d+-([\d.]+)\.jar"),
        ("Apicurio Registry", r"apicurio-registry-app-([\w.]+)-all\.tar\.gz"),
        ("MinIO", r"github\.com/minio/minio@v0\.0\.0-(\d{8})"),
    ):
        found = re.search(pattern, checksums)
        if found:
            servers.append(f"{name} {found[1]}")
    return servers


def render_document(machine: Machine, sections: Iterable[Section], command: str) -> str:
    """Return the whole document in Markdown."""
    introduction = INTRODUCTION.format(command=f"`{command}`", repeats=NUM_REPEATS)
    heading, *paragraphs = introduction.strip().split("\n\n")
    parts = [heading, *map(_wrap, paragraphs), machine.render()]
    parts += [section.render() for section in sections]
    return "\n\n".join(parts) + "\n"


def replace_section(
    document: str, section: Section, machine: Machine, order: Sequence[str]
) -> str:
    """Return a document with one section measured anew; all others stay as they are.

    Args:
        document: As `render_document` made it, and people may have added to it.
        section: Takes the place of the one before, subsections included; if there was
            none, it comes before the next in order.
        machine: What it was measured on: said in the section, since the document's
            own machine is that of the others.
        order: Names of all sections.
    """
    text = f"{section.render()}\n\n{machine.render_note()}\n"
    parts = re.split(r"^(?=## )", document, flags=re.MULTILINE)
    places = {_find_name(part): index for index, part in enumerate(parts)}
    here = places.get(section.name)
    if here is None:
        later = order[order.index(section.name) + 1 :]
        here = next((places[n] for n in later if n in places), len(parts))
        parts.insert(here, "")
    parts[here] = text
    return "\n\n".join(part.rstrip("\n") for part in parts) + "\n"


def _find_name(part: str) -> str:
    """Return the benchmark that a part of the document is about, if any."""
    found = re.match(r"## .*\n\n`moot bench (\w+)`\n", part)
    return found[1] if found else ""


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


@dataclass(frozen=True, slots=True)
class HotSpot:
    """A function's own share of the time, callees left out."""

    name: str
    share: float


def find_hot_spots(work: Callable[[], object]) -> list[HotSpot]:
    """Return the functions in which a call spends most of its time, most first."""
    profile = cProfile.Profile()
    profile.enable()
    try:
        work()
    finally:
        profile.disable()
    stats = pstats.Stats(profile).stats  # type: ignore[attr-defined]  # not in the stubs
    own = {_name(place): entry[2] for place, entry in stats.items()}
    total = sum(own.values()) or 1e-9
    ordered = sorted(own.items(), key=lambda item: -item[1])
    return [HotSpot(name, own_s / total) for name, own_s in ordered[:NUM_HOT_SPOTS]]


def _name(place: tuple[str, int, str]) -> str:
    path, _, function = place
    if path == "~":  # built in: "<built-in method _sodium.crypto_sign_open>"
        found = re.search(r"(?:method|function) '?([\w.]+)", function)
        return found[1].removeprefix("_sodium.") if found else function.strip("<>")
    package = Path(path).parent.name
    module = Path(path).stem
    if Path(path).is_relative_to(ROOT) and "site-packages" not in path:
        module = ".".join(Path(path).relative_to(ROOT).with_suffix("").parts)
    elif not package.startswith("python"):  # not the standard library
        module = f"{package}.{module}"
    return f"{module}.{function.strip('<>')}"


def show_hot_spots(spots: Sequence[HotSpot]) -> str:
    """Return them as a sentence's end."""
    return ", ".join(f"`{spot.name}` {spot.share:.0%}" for spot in spots)


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
    word = "at least" if at_least else "at most"
    return (
        f"**Target** {word} {target:,g} {unit}: "
        f"{'met' if met else 'MISSED'}, {show(value)}."
    )


def median(values: Iterable[float]) -> float:
    """Return the median."""
    return statistics.median(list(values))
