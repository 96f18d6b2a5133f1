"""Feed every parser of strangers' bytes with what nobody would send.

    python -m tests.fuzz                         two minutes, all parsers
    python -m tests.fuzz --seconds 600 event     ten minutes, one of them
    python -m tests.fuzz --runs 200              a fixed number of inputs to each
    python -m tests.fuzz --replay event FILE     one input, with its traceback
    python -m tests.fuzz --keep                  add what reached new code to corpus/
    python -m tests.fuzz --add event FILE        add an input that was a finding

With atheris (libFuzzer; Linux on x86-64) inputs that reach new code are gone on from;
elsewhere, and with --runs, mutations are blind, and the same for the same --seed.
Each parser runs in a process of its own, which may be lost. Findings are written to
findings/, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import io
import json
import logging
import os
import signal
import sys
import tempfile
import time
import traceback
import zlib
from collections.abc import Iterator, Sequence
from contextlib import nullcontext, redirect_stderr
from pathlib import Path
from random import Random
from typing import Final

FOLDER: Final = Path(__file__).parent
FINDINGS: Final = FOLDER / "findings"
CORPUS: Final = FOLDER / "corpus"
OURS: Final = ("schemas", "ledger", "protocol", "adapters", "consumers", "cli")
HANG_S: Final = 30.0
"""After so long without an answer a child is killed. It may have to share its core."""
MAX_MUTANT_BYTES: Final = 2**16
KEEP_AT_MOST: Final = 24
MAX_KEPT_BYTES: Final = 1_024

try:
    import atheris
except ImportError:  # another system than Linux on x86-64
    atheris = None

_instrumented = (
    atheris.instrument_imports(include=list(OURS))
    if atheris is not None and not {"--runs", "--replay", "--add"} & set(sys.argv)
    else nullcontext()
)
# It says of every module that it looks into it.
with _instrumented, redirect_stderr(io.StringIO()):
    from tests.fuzz.harness import Board, Finding, check, start
    from tests.fuzz.mutations import mutate
    from tests.fuzz.targets import BY_NAME, TARGETS, Target


def read_corpus(name: str) -> list[bytes]:
    """Return the inputs that are kept for a parser: one a line, base64 of zlib."""
    path = CORPUS / f"{name}.txt"
    if not path.exists():
        return []
    lines = path.read_text().split()
    return [zlib.decompress(base64.b64decode(line)) for line in lines]


def write_corpus(name: str, inputs: Sequence[bytes]) -> None:
    """Keep inputs for a parser."""
    CORPUS.mkdir(exist_ok=True)
    lines = {base64.b64encode(zlib.compress(data, 9)).decode() for data in inputs}
    text = "".join(f"{line}\n" for line in sorted(lines))
    (CORPUS / f"{name}.txt").write_text(text)


class Worker:
    """What happens in a child: one parser, many inputs.

    Args:
        target: The parser.
        board: Where it says what it is doing.
    """

    def __init__(self, target: Target, board: Board) -> None:
        self.target = target
        self.seeds = [*target.seeds(), *read_corpus(target.name)]
        self._board = board
        self._seen: set[str] = set()
        self._peak = start()
        for data in self.seeds[:3]:  # what is made once is nobody's fault
            check(target, data, self._peak)

    def try_one(self, data: bytes) -> None:
        """Try an input; a finding is written down, each kind once."""
        self._board.show(data)
        finding = check(self.target, data, self._peak)
        if finding is not None and finding.what not in self._seen:
            self._seen.add(finding.what)
            write_finding(finding)

    def make_mutant(self, data: bytes, random: Random) -> bytes:
        """Return another input."""
        change = self.target.change
        if change is not None and random.random() < 0.7:
            data = change(data, random)
        else:
            data = mutate(data, random, self.seeds)
        if self.target.repair is not None and random.random() < 0.9:
            data = self.target.repair(data)
        return data[:MAX_MUTANT_BYTES]

    def run_blindly(self, runs: int, until_s: float, seed: int) -> None:
        """Try the seeds, then mutants of them."""
        random = Random(f"{seed} {self.target.name}")
        for data in self.seeds:
            self.try_one(data)
        for _ in range(runs):
            if time.monotonic() > until_s:
                return
            self.try_one(self.make_mutant(random.choice(self.seeds), random))

    def run_guided(self, seconds: float, seed: int, folder: Path) -> None:
        """Let libFuzzer choose what to mutate; does not return."""
        for data in self.seeds:
            self.try_one(data)
            (folder / hashlib.sha256(data).hexdigest()).write_bytes(data)

        def make(data: bytes, max_size: int, number: int) -> bytes:
            random = Random(number)
            if random.random() < 0.3:
                return atheris.Mutate(data, max_size)
            return self.make_mutant(data, random)[:max_size]

        flags = (
            f"-max_total_time={max(1, int(seconds))}",
            f"-seed={seed}",
            f"-max_len={MAX_MUTANT_BYTES}",
            "-timeout=1000",
            "-rss_limit_mb=0",
            "-verbosity=0",
        )
        atheris.Setup(
            [self.target.name, *flags, str(folder)], self.try_one, custom_mutator=make
        )
        atheris.Fuzz()


def write_finding(finding: Finding) -> None:
    """Write down an input, what happened and how to see it again."""
    FINDINGS.mkdir(exist_ok=True)
    digest = hashlib.sha256(finding.data).hexdigest()[:12]
    path = FINDINGS / f"{finding.target}-{digest}"
    path.write_bytes(finding.data)
    shown = path.relative_to(FOLDER.parents[1])
    command = f"python -m tests.fuzz --replay {finding.target} {shown}"
    report = f"{finding.target} {finding.what}\n  {command}\n"
    path.with_suffix(".txt").write_text(f"{report}\n{finding.detail}\n")
    print(report, end="", flush=True)


class Child:
    """A parser's process, and what it may take."""

    def __init__(self, target: Target, options: argparse.Namespace, seconds: float):
        self.target = target
        self.board = Board()
        self.number, self.moved_s = 0, time.monotonic()
        self.folder = tempfile.TemporaryDirectory(prefix="folkmoot-corpus-")
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                self._work(options, seconds)
            except BaseException:  # noqa: BLE001  # a fault of this program
                traceback.print_exc()
                os._exit(3)
            os._exit(0)

    def _work(self, options: argparse.Namespace, seconds: float) -> None:
        tempfile.tempdir = self.folder.name  # what is made is removed with it
        worker = Worker(self.target, self.board)
        if options.runs or atheris is None:
            until_s = time.monotonic() + seconds
            worker.run_blindly(options.runs or 10**9, until_s, options.seed)
            return
        # What libFuzzer says is of no use to anybody here.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        folder = Path(self.folder.name) / "corpus"
        folder.mkdir()
        worker.run_guided(seconds, options.seed, folder)

    def has_ended(self) -> bool:
        """Look after it; what it was doing when it was lost is a finding."""
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        number, data = self.board.read()
        if pid == 0:
            now_s = time.monotonic()
            if number != self.number:
                self.number, self.moved_s = number, now_s
            if now_s - self.moved_s < HANG_S:
                return False
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            write_finding(Finding(self.target.name, "did not end", "", data))
        elif status != 0:
            detail = f"wait status {status}"
            write_finding(Finding(self.target.name, "ended its process", detail, data))
        self.number = number
        return True

    def keep(self) -> None:
        """Keep what reaches new lines, the shortest first, and not too much of it."""
        # In a process of its own: what parsers make once is not for two.
        pid = os.fork()
        if pid == 0:
            self._choose()
            os._exit(0)
        os.waitpid(pid, 0)

    def _choose(self) -> None:
        before = read_corpus(self.target.name)
        folder = Path(self.folder.name) / "corpus"
        files = [path.read_bytes() for path in folder.glob("*")]
        reached: set[tuple[str, int]] = set()
        for data in (*self.target.seeds(), *before):
            reached |= trace(self.target, data)
        kept = list(before)
        for data in sorted(files, key=len):
            if len(kept) == KEEP_AT_MOST:
                break
            lines = trace(self.target, data)
            if lines - reached and len(zlib.compress(data, 9)) <= MAX_KEPT_BYTES:
                kept.append(data)
                reached |= lines
        if kept:
            write_corpus(self.target.name, kept)


def trace(target: Target, data: bytes) -> set[tuple[str, int]]:
    """Return our lines that an input reaches."""
    root = str(FOLDER.parents[1]) + os.sep
    ours = tuple(root + name + os.sep for name in OURS)
    lines: set[tuple[str, int]] = set()

    def on_line(frame, event, _arg):  # type: ignore[no-untyped-def]
        if not frame.f_code.co_filename.startswith(ours):
            return None
        lines.add((frame.f_code.co_filename, frame.f_lineno))
        return on_line

    sys.settrace(on_line)
    try:
        target.parse(data)
    except target.errors:
        pass
    finally:
        sys.settrace(None)
    return lines


def run(targets: Sequence[Target], options: argparse.Namespace) -> dict[str, int]:
    """Run every parser for its part of the time; return how many inputs each had."""
    num_workers = os.cpu_count() or 1
    seconds = max(1.0, options.seconds * num_workers / len(targets))
    waiting, busy = list(targets), list[Child]()
    counts: dict[str, int] = {}
    while waiting or busy:
        while waiting and len(busy) < num_workers:
            busy.append(Child(waiting.pop(0), options, seconds))
        time.sleep(0.05)
        for child in [child for child in busy if child.has_ended()]:
            busy.remove(child)
            counts[child.target.name] = child.number
            if options.keep:
                child.keep()
            child.folder.cleanup()
    return counts


def replay(name: str, path: str) -> int:
    """Try one input here, with its traceback."""
    target = BY_NAME[name]
    finding = check(target, Path(path).read_bytes(), start())
    print(f"{finding.what}\n{finding.detail}" if finding else "nothing is wrong")
    return 0 if finding is None else 1


def main() -> int:
    """Return 1 if anything was found."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("targets", nargs="*", metavar="TARGET")
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--runs", type=int, default=0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", action="store_true")
    parser.add_argument("--replay", nargs=2, metavar=("TARGET", "FILE"))
    parser.add_argument("--add", nargs=2, metavar=("TARGET", "FILE"))
    options = parser.parse_args()
    logging.disable(logging.CRITICAL)
    if options.replay:
        return replay(*options.replay)
    if options.add:
        name, path = options.add
        write_corpus(BY_NAME[name].name, [*read_corpus(name), Path(path).read_bytes()])
        return 0
    targets = [BY_NAME[name] for name in options.targets] or list(TARGETS)
    before = set(find_findings())
    counts = run(targets, options)
    found = set(find_findings()) - before
    print(json.dumps({"inputs": counts, "findings": sorted(found)}, indent=1))
    return 1 if found else 0


def find_findings() -> Iterator[str]:
    """Yield the names of what was found, ever."""
    yield from (path.name for path in FINDINGS.glob("*.txt"))


if __name__ == "__main__":
    sys.exit(main())
