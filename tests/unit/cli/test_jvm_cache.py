"""Where Java's cache is, and with which options it is made and used."""

import os
from pathlib import Path

import pytest

from cli.stack.jvm_cache import JvmCache, find_java_version, find_jvm_cache


def _make_java(home: Path, version: str) -> str:
    """Make a Java that only says its version."""
    java = home / "bin" / "java"
    java.parent.mkdir(parents=True)
    java.write_text(f"#!/bin/sh\necho 'openjdk version \"{version}\"' >&2\n")
    java.chmod(0o755)
    (home / "lib").mkdir()
    (home / "lib" / "modules").write_bytes(b"modules")
    return str(java)


@pytest.mark.parametrize(
    ("says", "release"), [("25.0.2", 25), ("17.0.15", 17), ("1.8.0_452", 8), ("x", 0)]
)
def test_a_java_says_its_release(tmp_path: Path, says: str, release: int) -> None:
    assert find_java_version(_make_java(tmp_path, says)) == release


def test_a_stub_that_is_no_java_has_no_release(tmp_path: Path) -> None:
    java = tmp_path / "java"
    java.write_text("#!/bin/sh\necho 'version \"25\": get one from us' >&2; exit 1\n")
    java.chmod(0o755)

    assert find_java_version(str(java)) == 0


def test_a_java_that_cannot_make_a_cache_has_none(tmp_path: Path) -> None:
    assert find_jvm_cache(_make_java(tmp_path, "24.0.1"), tmp_path / "jars-1") is None


def test_another_build_or_other_jars_have_another_cache(tmp_path: Path) -> None:
    one = _make_java(tmp_path / "one", "25.0.1")
    other = _make_java(tmp_path / "other", "25.0.2")
    modules = tmp_path / "one" / "lib" / "modules"
    os.utime(modules, (1, 1))
    jars = tmp_path / "jars-1"
    found = [find_jvm_cache(one, jars), find_jvm_cache(other, jars)]
    found.append(find_jvm_cache(one, tmp_path / "jars-2"))
    os.utime(modules, (2, 2))  # Java would not use a cache of other modules
    found.append(find_jvm_cache(one, jars))

    assert None not in found
    assert len(set(found)) == 4
    assert found[3] == find_jvm_cache(one, jars)


def test_a_program_uses_only_a_file_that_is_there(tmp_path: Path) -> None:
    cache = JvmCache(tmp_path)
    (tmp_path / "kafka.aot").write_bytes(b"")

    assert cache.options("kafka") == [f"-XX:AOTCache={tmp_path / 'kafka.aot'}"]
    assert cache.options("schema-registry") == []


def test_a_program_in_training_makes_its_file(tmp_path: Path) -> None:
    training = JvmCache(tmp_path / "final").train_in(tmp_path)

    path = tmp_path / "kafka.aot"
    assert training.options("kafka") == [f"-XX:AOTCacheOutput={path}"]
