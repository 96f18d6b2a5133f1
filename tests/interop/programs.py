"""Build the independent verifiers of our logs, unmodified, once per user.

Each is built inside its own module at a pinned version: the module's hash is pinned
here and covers its `go.sum`, which pins every dependency. So no mirror and no newer
release can change what judges us. `verifier/` is ours, but of other people's libraries;
its own `go.sum` pins those.

    python -m tests.interop.programs    builds what is missing and says where it is
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cli.stack import fetch
from cli.stack.processes import Progress, StackError

VERIFIER: Final = Path(__file__).parent / "verifier"


@dataclass(frozen=True, slots=True)
class Module:
    """A Go module with programs that we run."""

    path: str
    version: str
    sum: str  # Go's h1 hash over all its files
    packages: tuple[str, ...]


MODULES: Final = (
    Module(
        path="github.com/transparency-dev/tessera",
        version="v1.0.4",
        sum="h1:IXjGowubcLR0T3zUQrysSMKgtTh9KGKQ0iajUiubyP4=",
        packages=("cmd/fsck",),
    ),
    Module(
        path="github.com/transparency-dev/witness",
        version="v0.0.0-20260720115447-2e1c6971d19e",
        sum="h1:YGwUZRKoG5GjoissskUoEumfgaFtXuon4L3j6+SBnrc=",
        packages=("cmd/omniwitness",),
    ),
    Module(
        path="filippo.io/torchwood",
        version="v0.9.0",  # 0.10 wants Go 1.27
        sum="h1:2W156cI7K3MyxEyNTuS1C9lYEW7y1u7PoHLmvgNsiZc=",
        packages=("cmd/litewitness", "cmd/spicy"),
    ),
)


@dataclass(frozen=True, slots=True)
class Programs:
    """Where they are."""

    fsck: Path
    omniwitness: Path
    litewitness: Path
    spicy: Path
    verifier: Path


def ensure_programs(progress: Progress) -> Programs:
    """Return the programs, downloading and building what the cache lacks.

    Raises:
        StackError: Go is missing, a download or build failed, or a module is not the
            one that was pinned.
    """
    found = {}
    for module in MODULES:
        name = f"{module.path.rpartition('/')[2]}-{module.version}"
        with _built(f"go-{name}", progress) as stage:
            if stage is not None:
                source = _download(stage, module, progress)
                for package in module.packages:
                    _build(stage, source, package, progress)
        for package in module.packages:
            program = package.rpartition("/")[2]
            found[program] = fetch.cache_directory() / f"go-{name}" / program
    sources = hashlib.sha256()
    for source_file in sorted(VERIFIER.iterdir()):
        sources.update(source_file.read_bytes())
    name = f"go-verifier-{sources.hexdigest()[:16]}"
    with _built(name, progress) as stage:
        if stage is not None:
            _build(stage, VERIFIER, ".", progress)
    return Programs(**found, verifier=fetch.cache_directory() / name / "verifier")


@contextmanager
def _built(name: str, progress: Progress) -> Iterator[Path | None]:
    """Give a folder to build in that becomes the cache's, or None if it has it."""
    cache = fetch.cache_directory()
    cache.mkdir(parents=True, exist_ok=True)
    with fetch.lock_cache(progress, "go.lock"):
        if (cache / name).is_dir():
            yield None
            return
        with fetch.staged(cache / name) as stage:
            yield stage


def _go() -> str:
    return fetch._tool(
        "go",
        "Go 1.21 or newer (it fetches the toolchain that the programs ask for)",
        "Debian/Ubuntu: sudo apt install golang-go (or https://go.dev/dl/). "
        "macOS: brew install go.",
    )


def _run(stage: Path, argv: list[str], what: str, cwd: Path, progress: Progress) -> str:
    log = stage / "build.log"
    log.unlink(missing_ok=True)
    fetch._run_tool(
        argv,
        env={
            **os.environ,
            # Nothing outside a module's own go.sum may enter its build.
            "GOFLAGS": "-mod=readonly -trimpath -buildvcs=false",
            "GO111MODULE": "on",
            "GOWORK": "off",
            "CGO_ENABLED": "0",
        },
        log=log,
        what=what,
        progress=progress,
        hint="Check the connection to the Go module proxy (go env GOPROXY).",
        cwd=cwd,
    )
    return log.read_text(encoding="utf-8")


def _download(stage: Path, module: Module, progress: Progress) -> Path:
    wanted = f"{module.path}@{module.version}"
    text = _run(
        stage,
        [_go(), "mod", "download", "-json", wanted],
        f"downloading {wanted}",
        stage,
        progress,
    )
    # Go writes notices ("go: downloading ...") around the object.
    found, _ = json.JSONDecoder().raw_decode(text, text.index("{\n"))
    if found["Sum"] != module.sum:
        raise StackError(
            f"Refusing to build {wanted}: its hash is {found['Sum']}, "
            f"tests/interop/programs.py says {module.sum}.",
            "If you changed the version, review and pin the new hash. Otherwise "
            "suspect the module proxy; go clean -modcache forgets what it delivered.",
        )
    return Path(found["Dir"])


def _build(stage: Path, source: Path, package: str, progress: Progress) -> None:
    # "nice" where there is one: a laptop stays usable meanwhile.
    nice = [shutil.which("nice")] if shutil.which("nice") else []
    name = (source / package).name
    _run(
        stage,
        [*map(str, nice), _go(), "build", "-o", str(stage / name), f"./{package}"],
        f"building {name} (once)",
        source,
        progress,
    )


if __name__ == "__main__":
    for line in str(ensure_programs(lambda _, what: print(what))).split(", "):
        print(line)
