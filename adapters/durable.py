"""Files that survive a crash whole: the product writes all its files here.

- A file is replaced by a rename once its bytes are on the disk, and then the directory
  is synced. So a crash, a kill or a full disk leaves the old file or the new one. A
  failure removes its draft; a kill may leave one, ``.<name>.<random>.draft``, that
  nobody reads.
- What is appended is on the disk when `append` returns. A crash leaves a prefix of it:
  readers of such a file must notice (`adapters.modes.mpc.memory`).
- `replace_file` leaves the directory to its caller, which writes many files and syncs
  it once, or only needs to survive a crash of the process.

`tests/architecture/test_writing.py` checks that nobody else opens a file for writing.
"""

from __future__ import annotations

import fcntl
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Final

from adapters.log_lines import printable

PRIVATE: Final = 0o600
"""Mode of a file that only its owner may read."""
_ORDINARY: Final = 0o666  # less the umask
_MAX_COMMAND: Final = 200
"""Characters shown of a command line."""


def write_file(path: Path, data: bytes, *, mode: int = _ORDINARY) -> None:
    """Replace a file, or make it: durable once this returns.

    Args:
        path: The file; its directory is there.
        data: All of its new content.
        mode: Of the new file, less the umask.

    Raises:
        OSError: it could not be written, or is not durable: the old file or the new one
            is there.
    """
    replace_file(path, data, mode=mode)
    sync_directory(path.parent)


def replace_file(
    path: Path, data: bytes, *, mode: int = _ORDINARY, sync: bool = True
) -> None:
    """Replace a file, or make it; its name is durable after `sync_directory`.

    Args:
        path: The file; its directory is there.
        data: All of its new content.
        mode: Of the new file, less the umask.
        sync: Whether its bytes are durable before it gets its name.

    Raises:
        OSError: it could not be written; the old file is unchanged.
    """
    with _drafted(path, data, mode, sync=sync) as draft:
        draft.replace(path)


def write_output(path: Path, data: bytes) -> None:
    """Write a file that a person asked for; as `write_file`.

    Links are followed; pipes and devices take the bytes as they are.

    Raises:
        OSError: it could not be written.
    """
    if path.exists() and not path.is_file():
        path.write_bytes(data)
    else:
        write_file(path.resolve(), data)


def create_file(path: Path, data: bytes) -> None:
    """Make a private file, unless there is one: the first writer's stays.

    Raises:
        OSError: it could not be written; nothing was made.
    """
    with _drafted(path, data, PRIVATE, sync=True) as draft:
        with suppress(FileExistsError):
            path.hardlink_to(draft)
        draft.unlink()
    sync_directory(path.parent)


def move_file(draft: Path, path: Path) -> None:
    """Rename a finished file within one file system, replacing what has that name.

    Raises:
        OSError: it could not be moved.
    """
    with draft.open("rb") as file:
        os.fsync(file.fileno())
    draft.replace(path)
    sync_directory(path.parent)


def append(file: IO[bytes], data: bytes) -> None:
    """Append to a file.

    Raises:
        OSError: part of the data may be there, and the rest in the file's buffer.
    """
    with _naming(file.name):
        file.seek(0, os.SEEK_END)
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def append_file(path: Path, data: bytes) -> None:
    """Append to a private file, made if missing; other processes may do so too.

    Raises:
        OSError: part of the data may be there.
    """
    is_new = not path.exists()
    try:
        with _open(path, "ab", os.O_WRONLY | os.O_CREAT | os.O_APPEND) as file:
            append(file, data)
    except OSError:
        if is_new and path.stat().st_size == 0:
            path.unlink()
        raise
    sync_directory(path.parent)


def rotate_file(path: Path, max_size_bytes: int) -> bool:
    """Empty a file that has grown too long, keeping its content as ``<name>.1``.

    For logs that other processes append to and keep open. What they append in between
    is lost, and nothing here is durable.

    Args:
        path: The file, opened for appending by whoever writes to it.
        max_size_bytes: How long it may be.

    Returns:
        Whether it was too long.
    """
    with suppress(FileNotFoundError):
        if path.stat().st_size <= max_size_bytes:
            return False
        kept = path.with_name(f"{path.name}.1")
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - max_size_bytes))
            replace_file(kept, file.read(max_size_bytes), sync=False)
        os.truncate(path, 0)
        return True
    return False


def destroy_file(path: Path) -> None:
    """Overwrite a file with zeros, and remove it once they are on the disk."""
    with path.open("r+b") as file:
        size = len(file.read())
        file.seek(0)
        file.write(bytes(size))
        file.flush()
        os.fsync(file.fileno())
    path.unlink()
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def lock_file(path: Path, *, create: bool = True, wait: bool = False) -> IO[bytes]:
    """Open a file for one process at a time, to read it and to append to it.

    Args:
        path: The file.
        create: Whether to make a private one if missing.
        wait: Whether to wait while another process has it.

    Raises:
        BlockingIOError: another process has it.
        OSError: it cannot be opened.
    """
    flags = os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT if create else 0)
    file = _open(path, "r+b", flags)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BaseException:
        file.close()
        raise
    return file


def describe_holder(path: Path) -> str:
    """Return who has a file that `lock_file` refused: a process, where Linux says so.

    One in another container, or on another machine, is not seen.
    """
    with suppress(OSError):
        inode = str(path.stat().st_ino)
        for line in Path("/proc/locks").read_text(encoding="ascii").splitlines():
            # proc(5): number, kind, -, -, process, major:minor:inode, start, end; a
            # line of one that waits has an arrow.
            fields = line.split()
            if fields[1] == "FLOCK" and fields[5].rpartition(":")[2] == inode:
                pid = fields[4]
                command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ")
                shown = printable(command.decode(errors="replace").strip())
                return f"process {pid} ({shown:.{_MAX_COMMAND}})"
    return "another process"


def unlock_file(file: IO[bytes]) -> None:
    """Let another process have it. Idempotent."""
    if not file.closed:
        # Closing alone is not enough: a child that was just forked has a copy.
        fcntl.flock(file, fcntl.LOCK_UN)
    file.close()


def _open(path: Path, mode: str, flags: int) -> IO[bytes]:
    """Open a file, private if it is made, that knows its name."""
    return open(path, mode, opener=lambda name, _: os.open(name, flags, PRIVATE))


@contextmanager
def _naming(path: object) -> Iterator[None]:
    """Name the file in errors: a write's do not."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


@contextmanager
def _drafted(path: Path, data: bytes, mode: int, *, sync: bool) -> Iterator[Path]:
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}.draft")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        with _naming(path), os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            if sync:
                os.fsync(file.fileno())
        yield draft
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
