"""What Java keeps of a program's start, so that its next starts are quick.

Kafka and the schema registry spend most of their start on loading and linking some ten
thousand classes. From release 25 Java keeps the outcome in a file (an AOT cache: JEP
483, 514, 515), made as a trained program ends. Java checks that the file fits itself
and the jars; one that does not is left alone, and the program starts as ever.
"""

from __future__ import annotations

import functools
import hashlib
import re
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Self

MIN_JAVA: Final = 25  # the first that makes the file in one run


@dataclass(frozen=True, slots=True)
class JvmCache:
    """A folder with one such file for each program."""

    directory: Path
    is_training: bool = False

    def options(self, program: str) -> list[str]:
        """Return the options with which a JVM uses its file, or makes it as it ends."""
        path = self.directory / f"{program}.aot"
        if self.is_training:
            return [f"-XX:AOTCacheOutput={path}"]
        return [f"-XX:AOTCache={path}"] if path.exists() else []

    def train_in(self, directory: Path) -> Self:
        """Return the cache as it is made, in another folder."""
        return replace(self, directory=directory, is_training=True)


def find_jvm_cache(java: str, jars: Path) -> JvmCache | None:
    """Return where the cache for these jars is to be; None if Java is too old."""
    if find_java_version(java) < MIN_JAVA:
        return None
    # What Java compares: its build, and its modules' size and time.
    modules = (Path(java).resolve().parents[1] / "lib" / "modules").stat()
    fits = f"{describe_java(java)} {modules.st_size} {modules.st_mtime_ns} {jars.name}"
    name = f"jvm-{hashlib.sha256(fits.encode()).hexdigest()[:16]}"
    return JvmCache(jars.parent / name)


def find_java_version(java: str) -> int:
    """Return a Java's feature release, such as 21; 0 where there is none."""
    found = re.search(r'version "(?:1\.)?(\d+)', describe_java(java))
    return int(found.group(1)) if found else 0


@functools.cache
def describe_java(java: str) -> str:
    """Return what `java -version` says; nothing if it fails."""
    # macOS ships a `java` stub that only says where to get one.
    run = subprocess.run(
        [java, "-version"], capture_output=True, text=True, check=False
    )
    return run.stderr if run.returncode == 0 else ""
