"""Exit code 1 is a command's own answer; failures end with another."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

import cli.audit
import cli.main
import cli.receipts
from consumers.audit.bundle import BundleError
from tests.attesting import attest_all
from tests.builders import build_log
from tests.paths import ROOT
from tests.unit.consumers.audit.test_bundle import write


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    path = tmp_path_factory.mktemp("bundle") / "clinics.tar"
    log = build_log()
    write(path, log, attest_all(log))
    return path


def moot(monkeypatch, *arguments):
    """Run `moot` in this process; returns its exit code."""
    monkeypatch.setattr(sys, "argv", ["moot", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        cli.main.main()
    return end.value.code


ERRORS = [
    MemoryError(),
    RecursionError("maximum recursion depth exceeded"),
    OSError(errno.ENOSPC, "No space left on device"),
    BrokenPipeError(errno.EPIPE, "Broken pipe"),
    EOFError(),
    AttributeError("'int' object has no attribute 'encode'"),
    UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
    AssertionError(),
    KeyError("x"),
    ValueError("\x1b[2J\nforged"),
    BundleError("damaged"),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("as_json", [False, True])
@pytest.mark.parametrize("command", ["audit", "verify-receipt"])
def test_whatever_is_raised_ends_with_2_and_a_sentence(
    monkeypatch, capsys, tmp_path, error, as_json, command
):
    def fail(*_args, **_options):
        raise error

    monkeypatch.delenv("MOOT_DEBUG", raising=False)
    monkeypatch.setattr(cli.audit, "_audit_once", fail)
    monkeypatch.setattr(cli.receipts, "_load_policy", fail)
    (tmp_path / "receipt").write_bytes(b"")
    arguments = (
        ["-f", "clinics"]
        if command == "audit"
        else [tmp_path / "receipt", "--policy", tmp_path / "policy"]
    )
    options = ["--json"] if as_json else []
    assert moot(monkeypatch, command, *arguments, *options) == 2
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    assert err.startswith("error: ") or "cannot read" in err
    assert not any(line.startswith("forged") for line in err.split("\n"))
    assert "\x1b" not in err
    if as_json and command == "audit":
        assert json.loads(out)["is_sound"] is None


def test_even_when_somebody_debugs(monkeypatch, capsys):
    monkeypatch.setenv("MOOT_DEBUG", "1")
    monkeypatch.setattr(cli.audit, "_audit_once", lambda _: 1 / 0)
    assert moot(monkeypatch, "audit", "-f", "clinics") == 2
    assert "Traceback" in capsys.readouterr().err


def test_an_interrupt_is_no_verdict(monkeypatch, capsys):
    def interrupt(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli.audit, "_audit_once", interrupt)
    assert moot(monkeypatch, "audit", "-f", "clinics") == 130


@pytest.mark.parametrize("arguments", [["--jobs", "x"], ["--no-such"], ["a", "b"]])
def test_a_wrong_option_is_no_verdict(monkeypatch, capsys, arguments):
    assert moot(monkeypatch, "audit", *arguments) == 2


def start(*arguments, **options):
    return subprocess.Popen(
        [sys.executable, "-m", "cli.main", *map(str, arguments)],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        **options,
    )


def test_an_output_that_nobody_takes_is_no_verdict(bundle):
    """A reader that has gone, and a disk that is full."""
    reading, writing = os.pipe()
    os.close(reading)
    full = os.open("/dev/full", os.O_WRONLY)
    for output, options in ((writing, []), (full, []), (full, ["--json"])):
        process = start(
            "audit", bundle, "--jobs", 1, "--no-blobs", *options, stdout=output
        )
        err = process.communicate(timeout=120)[1]
        assert process.returncode == 2, err
        assert b"Traceback" not in err
        assert err.startswith(b"error: ")
    os.close(full)
    os.close(writing)


def test_nor_is_a_broken_pipe_that_a_library_sees(monkeypatch, capsys):
    """Of the help, and of rich, which ends a process with 1."""
    reading, writing = os.pipe()
    os.close(reading)
    for arguments in (["--help"], ["audit", "--help"], []):
        process = start(*arguments, stdout=writing)
        process.communicate(timeout=120)
        assert process.returncode == 2, arguments
    os.close(writing)

    def end(_):
        raise SystemExit(1)

    monkeypatch.setattr(cli.audit, "_audit_once", end)
    assert moot(monkeypatch, "audit", "-f", "clinics") == 2


def test_helpers_that_are_killed_change_no_verdict(bundle):
    process = start("audit", bundle, "--jobs", 3, "--json", stdout=subprocess.PIPE)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    num_killed = 0
    while process.poll() is None and num_killed < 1_000:
        for child in children.read_text().split() if children.exists() else ():
            command = Path(f"/proc/{child}/cmdline")
            with suppress(OSError):  # it has ended
                if b"spawn_main" in command.read_bytes():
                    os.kill(int(child), signal.SIGKILL)
                    num_killed += 1
        time.sleep(0.01)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert json.loads(out)["is_sound"]
    assert num_killed


@pytest.mark.parametrize(
    "content", [b"", b"\xff\xfe", b"[" * 100_000, b"{}", b'{"format": 1}', b"1" * 5_000]
)
def test_a_foreign_file_is_no_verdict(bundle, monkeypatch, capsys, tmp_path, content):
    path = tmp_path / "file"
    path.write_bytes(content)
    for arguments in (
        [path],
        [bundle, "--policy", path],
        [bundle, "--from", path],
        [tmp_path],
        [bundle, "--policy", tmp_path],
        [bundle, "--from", tmp_path],
        [bundle, "--save", tmp_path / "no" / "state"],
        [bundle, "-f", "banks"],
    ):
        assert moot(monkeypatch, "audit", *arguments, "--jobs", 1) == 2, arguments
        err = capsys.readouterr().err
        assert err.startswith("error: ")
        assert "Traceback" not in err


def test_a_pipe_is_no_bundle_and_nobody_waits_for_it(monkeypatch, capsys, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert moot(monkeypatch, "audit", tmp_path / "pipe") == 2
    assert "it is not a regular file" in capsys.readouterr().err
