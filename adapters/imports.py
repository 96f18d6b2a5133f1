"""Classes by import path, from an allow-list only.

A federation's configuration names the model and the data module to run, so its author
chooses code. What an agent will run is the agent's own setting; everything else is
refused before anything is imported.

- A prefix allows a module and what is inside it: "models" allows "models.vision" but
  not "models_of_others". No prefixes, nothing allowed.
- The class must also be defined under an allowed prefix: an allowed module doesn't lend
  out its own imports.
"""

import importlib
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

_NAME: Final = r"[A-Za-z_][A-Za-z0-9_]*"
_MODULE: Final = re.compile(rf"{_NAME}(\.{_NAME})*")
_IMPORT_PATH: Final = re.compile(rf"({_NAME}(?:\.{_NAME})*):({_NAME})")


class EndedItselfError(Exception):
    """Users' code raised what ends a process.

    Attributes:
        name: Of its type.
    """

    def __init__(self, name: str) -> None:
        super().__init__(f"it ends the process: {name}")
        self.name = name


class ImportRefusedError(Exception):
    """The class won't be loaded; the subclasses say why."""


class MalformedImportPathError(ImportRefusedError):
    """The path isn't of the form "package.module:Class"."""


class ImportNotAllowedError(ImportRefusedError):
    """The path, or the class found there, is outside the allow-list."""


class ClassNotFoundError(ImportRefusedError):
    """The module can't be imported, or has no class of that name."""


def load_class(import_path: str, allowed_prefixes: Sequence[str]) -> type:
    """Load a class that a configuration names.

    Args:
        import_path: "package.module:Class", ASCII; untrusted.
        allowed_prefixes: Modules and packages whose classes may be run; trusted.

    Returns:
        The class. Its module has been imported, and so has run.

    Raises:
        MalformedImportPathError: It does not have that form.
        ImportNotAllowedError: It is outside the allow-list; nothing was imported,
            unless only the class's own definition lies outside.
        ClassNotFoundError: The module can't be imported or has no such class.
        ValueError: A prefix isn't a module's name; a bug in the settings.
    """
    for prefix in allowed_prefixes:
        if not _MODULE.fullmatch(prefix):
            raise ValueError(f"not a module's name: {prefix!r}")
    match = _IMPORT_PATH.fullmatch(import_path)
    if match is None:
        msg = f'not of the form "package.module:Class": {import_path!r:.200}'
        raise MalformedImportPathError(msg)
    module_name, class_name = match.groups()
    _check_allowed(module_name, allowed_prefixes)
    try:
        with running_users_code():
            found = getattr(importlib.import_module(module_name), class_name)
    except Exception as error:  # an import runs any code, so it may raise anything
        raise ClassNotFoundError(f"{import_path} can't be loaded: {error}") from error
    if not isinstance(found, type):
        raise ClassNotFoundError(f"{import_path} isn't a class")
    _check_allowed(found.__module__, allowed_prefixes)
    return found


@contextmanager
def running_users_code() -> Iterator[None]:
    """Run code that a configuration names, which may not end this process by raising.

    Raises:
        EndedItselfError: it raised `SystemExit`, or anything else that isn't an
            `Exception`, or would when its text is asked for; Ctrl-C goes through.
    """
    try:
        yield
    except KeyboardInterrupt:
        raise
    except Exception as error:
        # Whoever logs it asks for its text, which is its class's code again.
        try:
            str(error)
        except BaseException:  # noqa: BLE001  # whatever that is
            raise EndedItselfError(type(error).__name__) from None
        raise
    except BaseException as error:
        raise EndedItselfError(type(error).__name__) from error


def _check_allowed(module_name: str, allowed_prefixes: Sequence[str]) -> None:
    if not any(
        module_name == prefix or module_name.startswith(f"{prefix}.")
        for prefix in allowed_prefixes
    ):
        allowed = ", ".join(allowed_prefixes) or "nothing"
        msg = f"{module_name} may not be run here; allowed: {allowed}"
        raise ImportNotAllowedError(msg)
