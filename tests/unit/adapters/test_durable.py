"""Files survive a crash whole."""

import errno
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from adapters import durable
from adapters.durable import (
    PRIVATE,
    append,
    append_file,
    create_file,
    destroy_file,
    lock_file,
    move_file,
    replace_file,
    sync_directory,
    unlock_file,
    write_file,
    write_output,
)
from tests.paths import ROOT

OLD, NEW = b"old" * 5_000, b"new!" * 5_000
WRITES = {
    "write_file": lambda path: write_file(path, NEW),
    "replace_file": lambda path: replace_file(path, NEW),
    "without sync": lambda path: replace_file(path, NEW, sync=False),
    "write_output": lambda path: write_output(path, NEW),
    "move_file": lambda path: move_file(path.with_name("draft"), path),
    "create_file": lambda path: create_file(path, NEW),
}


def start(program, *arguments):
    return subprocess.Popen(
        [sys.executable, "-c", program, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.fixture
def path(tmp_path):
    return tmp_path / "file"


@pytest.fixture
def steps(monkeypatch):
    """Return what was done to the disk, in order."""
    done = []

    def see(module, name, show):
        act = getattr(module, name)

        def acting(*arguments, **options):
            done.append(show(*arguments))
            return act(*arguments, **options)

        monkeypatch.setattr(module, name, acting)

    def show_synced(descriptor):
        found = Path(f"/proc/self/fd/{descriptor}").readlink()
        return f"sync {'directory' if found.is_dir() else 'bytes'}"

    see(os, "fsync", show_synced)
    see(Path, "replace", lambda *_: "rename")
    see(Path, "hardlink_to", lambda *_: "link")
    see(Path, "unlink", lambda *_: "unlink")
    return done


@pytest.mark.parametrize(
    ("name", "order"),
    [
        ("write_file", ["sync bytes", "rename", "sync directory"]),
        ("write_output", ["sync bytes", "rename", "sync directory"]),
        ("move_file", ["sync bytes", "rename", "sync directory"]),
        ("create_file", ["sync bytes", "link", "unlink", "sync directory"]),
        ("replace_file", ["sync bytes", "rename"]),
        ("without sync", ["rename"]),
    ],
)
def test_bytes_are_durable_before_the_name_and_the_name_at_the_end(
    path, steps, name, order
):
    path.with_name("draft").write_bytes(NEW)
    WRITES[name](path)
    assert steps == order
    assert path.read_bytes() == NEW


KILLED = """
import os, signal, sys
from pathlib import Path
from tests.unit.adapters.test_durable import WRITES

point = sys.argv[3]

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

def die_in_the_middle(descriptor, _mode):
    os.write(descriptor, b"half")
    die()

def die_if_directory(descriptor):
    if os.path.isdir(f"/proc/self/fd/{descriptor}"):
        die()

if point == "by half":
    os.fdopen = die_in_the_middle
elif point == "before the bytes are durable":
    os.fsync = die
elif point == "before it has its name":
    Path.replace = Path.hardlink_to = die
elif point == "before its name is durable":
    os.fsync = die_if_directory
WRITES[sys.argv[2]](Path(sys.argv[1]))
die()
"""


@pytest.mark.parametrize("name", ["write_file", "write_output", "create_file"])
@pytest.mark.parametrize(
    ("point", "is_new"),
    [
        ("by half", False),
        ("before the bytes are durable", False),
        ("before it has its name", False),
        ("before its name is durable", True),
        ("after", True),
    ],
)
def test_a_kill_leaves_the_old_file_or_the_new_one(path, name, point, is_new):
    if name != "create_file":
        path.write_bytes(OLD)
    assert start(KILLED, path, name, point).wait() == -signal.SIGKILL
    before = None if name == "create_file" else OLD
    found = path.read_bytes() if path.exists() else None
    assert found == (NEW if is_new else before)
    # What is left beside it is in nobody's way.
    WRITES[name](path)
    assert path.read_bytes() == NEW


WRITER = """
import sys
from pathlib import Path
from adapters.durable import write_file

print("writing", flush=True)
number = 0
while True:
    number += 1
    write_file(Path(sys.argv[1]), str(number).encode() * 20_000)
"""


def test_a_kill_at_any_moment_leaves_a_whole_file(path):
    for moment in range(6):
        with start(WRITER, path) as writer:
            assert writer.stdout.readline() == "writing\n"
            while not path.exists():
                time.sleep(0.001)
            time.sleep(0.003 * moment)
            writer.kill()
        data = path.read_bytes()
        assert data == data[: len(data) // 20_000] * 20_000


FULL = """
import resource, signal, sys
from pathlib import Path
from tests.unit.adapters.test_durable import WRITES

resource.setrlimit(resource.RLIMIT_FSIZE, (5_000, 5_000))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
try:
    WRITES[sys.argv[2]](Path(sys.argv[1]))
except OSError as error:
    print(error.errno, error.filename)
"""


@pytest.mark.parametrize(
    "name", ["write_file", "without sync", "write_output", "create_file"]
)
def test_a_disk_without_room_costs_nothing(path, name):
    """The kernel writes a part and refuses the rest, as a full disk does."""
    if name != "create_file":
        path.write_bytes(OLD)
    before = {p.name: p.read_bytes() for p in path.parent.iterdir()}
    said, _ = start(FULL, path, name).communicate()
    assert said.split() == [str(errno.EFBIG), str(path)], "and the error names it"
    assert {p.name: p.read_bytes() for p in path.parent.iterdir()} == before


@pytest.mark.parametrize("name", ["write_file", "create_file"])
def test_what_is_not_durable_is_no_success(path, monkeypatch, name):
    def fail(_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="Input"):
        WRITES[name](path)
    assert list(path.parent.iterdir()) == []


def test_a_device_is_written_to_and_a_link_is_followed(path, tmp_path):
    with pytest.raises(OSError) as caught:
        write_output(Path("/dev/full"), NEW)
    assert caught.value.errno == errno.ENOSPC
    assert Path("/dev/full").is_char_device()
    link = tmp_path / "link"
    link.symlink_to(path)
    write_output(link, NEW)
    assert link.is_symlink()
    assert path.read_bytes() == NEW


def test_modes(path, tmp_path):
    before = os.umask(0o027)
    try:
        write_file(path, NEW)
        assert stat.S_IMODE(path.stat().st_mode) == 0o640
        write_file(path, NEW, mode=PRIVATE)
        for private in (append_file, create_file):
            private(tmp_path / private.__name__, NEW)
        lock_file(tmp_path / "lock").close()
    finally:
        os.umask(before)
    for private in (path, *(tmp_path / n for n in ("append_file", "create_file"))):
        assert stat.S_IMODE(private.stat().st_mode) == PRIVATE
    assert stat.S_IMODE((tmp_path / "lock").stat().st_mode) == PRIVATE


CREATOR = """
import os, sys
from pathlib import Path
from adapters.durable import create_file

create_file(Path(sys.argv[1]), f"{os.getpid()}".encode() * 1_000)
print(Path(sys.argv[1]).read_text()[:100])
"""


def test_of_many_that_make_a_file_one_is_first_and_all_have_its(path):
    creators = [start(CREATOR, path) for _ in range(5)]
    said = {creator.communicate()[0] for creator in creators}
    assert len(said) == 1
    assert [p.name for p in path.parent.iterdir()] == ["file"]


def test_what_is_appended_is_durable_and_comes_last(path, steps):
    append_file(path, b"one\n")
    append_file(path, b"two\n")
    assert steps == ["sync bytes", "sync directory"] * 2
    file = lock_file(path, create=False)
    assert file.read(3) == b"one"
    append(file, b"three\n")
    assert path.read_bytes() == b"one\ntwo\nthree\n"
    unlock_file(file)


def test_a_destroyed_file_is_overwritten_before_it_goes(path, steps):
    path.write_bytes(OLD)
    with path.open("rb") as opened:
        destroy_file(path)
        assert opened.read() == bytes(len(OLD))
    assert steps == ["sync bytes", "unlink", "sync directory"]


HOLDER = """
import sys
from pathlib import Path
from adapters.durable import lock_file

file = lock_file(Path(sys.argv[1]), wait=True)
print("held", flush=True)
sys.stdin.read()
"""


def test_one_process_at_a_time_has_a_file(path):
    with start(HOLDER, path) as holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(BlockingIOError):
            lock_file(path)
        holder.kill()
    mine = lock_file(path)
    # A child that was forked meanwhile has a copy of the descriptor.
    copy = os.dup(mine.fileno())
    with start(HOLDER, path) as holder:
        unlock_file(mine)
        unlock_file(mine)
        assert holder.stdout.readline() == "held\n"
        holder.kill()
    os.close(copy)
    path.unlink()
    with pytest.raises(FileNotFoundError):
        lock_file(path, create=False)


@pytest.mark.parametrize("is_new", [True, False])
def test_what_cannot_be_appended_leaves_no_empty_file(path, monkeypatch, is_new):
    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    if not is_new:
        path.write_bytes(b"")
    monkeypatch.setattr(durable, "append", fail)
    with pytest.raises(OSError, match="No space"):
        durable.append_file(path, b"line")
    assert path.exists() != is_new


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel says who")
def test_who_has_a_file_is_named(path):
    with start(HOLDER, path) as holder:
        assert holder.stdout.readline() == "held\n"
        said = durable.describe_holder(path)
        assert said.startswith(f"process {holder.pid} ({sys.executable} -c ")
        assert said.isprintable()
        holder.kill()
    assert durable.describe_holder(path) == "another process"


def test_a_file_in_use_leaves_no_descriptor(path):
    mine = lock_file(path)
    before = len(list(Path("/dev/fd").iterdir()))
    for _ in range(20):
        with pytest.raises(BlockingIOError):
            lock_file(path)
    sync_directory(path.parent)
    assert len(list(Path("/dev/fd").iterdir())) == before
    unlock_file(mine)
