"""Exports in a process of its own: users' code may do anything to the process it is in.

A model, or a data set, can use up all memory, crash in native code, call `os._exit`, or
never return. So the exporter imports none of it: a child does, model after model, and a
new one takes over when it ends, fails or takes too long. Its first start is as slow as
importing torch; later models find it ready.

The child gets a model's bytes and sends an ONNX file and numbers back, which the
exporter checks: it never sends Python objects. It has no settings, keys or sockets, and
ends when the exporter does.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from enum import StrEnum
from multiprocessing.connection import Connection, Pipe
from typing import TYPE_CHECKING, Any, Final

from adapters import alive
from adapters.imports import ImportNotAllowedError, load_class
from adapters.log_lines import guard_logs
from adapters.numbers import BadNumberError, read_number
from adapters.outages import describe, is_exhausted, is_outage, is_short_of_memory

if TYPE_CHECKING:
    from consumers.export.artifacts import ExportedModel

_READY: Final = b"ready"
_LOOK_S: Final = 0.2
_END_S: Final = 5.0


class ChildError(Exception):
    """The exporting process cannot start: no model has been looked at yet."""


class Stopped(Exception):  # noqa: N818  # no error
    """The exporter was told to stop meanwhile."""


class Ending(StrEnum):
    """How an export ended.

    Attributes:
        EXPORTED: There is a file, and perhaps numbers.
        REFUSED: The model or its data is at fault, and will be the next time.
        FAILED: The process ended, ran short of memory, or reached nobody: the next time
            may be better.
        WAITS: This machine has no more disk or files, or may not run such code: no
            model's fault.
    """

    EXPORTED = "EXPORTED"
    REFUSED = "REFUSED"
    FAILED = "FAILED"
    WAITS = "WAITS"


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Results of a model, from users' code: to be checked.

    Attributes:
        metrics: Values by the names that the module logged.
        directions: ``HIGHER`` or ``LOWER`` by those names, as the module states them.
        num_examples: Size of the data set.
    """

    metrics: Mapping[str, Any]
    directions: Mapping[str, Any]
    num_examples: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of one export.

    Attributes:
        ending: How it ended.
        why: Why there is no file or no numbers, sentences; empty if there are both.
        onnx: The file; empty if there is none.
        measured: The numbers; None if there are none.
    """

    ending: Ending
    why: str = ""
    onnx: bytes = b""
    measured: Measured | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportTask:
    """What to export a model with; fields as in `schemas.events.Task`."""

    module: str
    module_config: str
    data_module: str
    data_config: str
    allowed_prefixes: tuple[str, ...]


class ExportProcess:
    """The child that exports.

    Args:
        limit_s: How long one export may take.
    """

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._child: subprocess.Popen[bytes] | None = None
        self._is_ready = False
        self._connection: Connection
        self._life = -1

    def start(self) -> None:
        """Start the child, if none runs; it loads torch meanwhile.

        Raises:
            ChildError: the system does not start it.
        """
        if self._child is not None and self._child.poll() is None:
            return
        self.end()
        self._connection, theirs = Pipe()
        life, self._life = os.pipe()
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        descriptors = (theirs.fileno(), life)
        try:
            self._child = subprocess.Popen(  # noqa: S603  # this file, and numbers
                [sys.executable, "-m", __name__, *map(str, descriptors)],
                stdin=subprocess.DEVNULL,
                env=environment,
                pass_fds=descriptors,
            )
        except OSError as error:
            self._connection.close()
            os.close(self._life)
            msg = f"the exporting process cannot start: {error}"
            raise ChildError(msg) from error
        finally:
            theirs.close()
            os.close(life)
        self._is_ready = False

    def end(self) -> None:
        """End the child, whatever it does. Idempotent."""
        if self._child is None:
            return
        self._child.kill()
        self._child.wait()
        self._child = None
        self._connection.close()
        os.close(self._life)

    def export(
        self, task: ExportTask, model: bytes, should_stop: Callable[[], bool]
    ) -> Outcome:
        """Export one model.

        Args:
            task: What to export it with.
            model: Its safetensors file.
            should_stop: Asked now and then.

        Raises:
            ChildError: the process cannot start: the installation is broken, or there
                is no memory for it.
            Stopped: told to stop; the export may have been well under way.
        """
        self.start()
        try:
            self._demand_ready(should_stop)
            deadline_s = time.monotonic() + self._limit_s
            self._connection.send_bytes(json.dumps(_spell(task)).encode())
            self._connection.send_bytes(model)
            while not self._connection.poll(_LOOK_S):
                if should_stop():
                    self.end()
                    raise Stopped
                if time.monotonic() > deadline_s:
                    self._replace()
                    why = f"it took longer than {self._limit_s:.0f} s"
                    return Outcome(ending=Ending.REFUSED, why=why)
            answer = json.loads(self._connection.recv_bytes())
            onnx = self._connection.recv_bytes()
        except (EOFError, OSError):
            outcome = self._explain_death()
            self.start()
            return outcome
        if answer["ending"] != Ending.EXPORTED:
            self._replace()  # who knows what it left behind
        measured = answer["measured"]
        return Outcome(
            ending=Ending(answer["ending"]),
            why=answer["why"],
            onnx=onnx,
            measured=None if measured is None else Measured(**measured),
        )

    def _replace(self) -> None:
        self.end()
        self.start()

    def _demand_ready(self, should_stop: Callable[[], bool]) -> None:
        """Wait until the child has loaded what is ours.

        Raises:
            ChildError: it never will.
        """
        while not self._is_ready:
            try:
                if self._connection.poll(_LOOK_S):
                    self._is_ready = self._connection.recv_bytes() == _READY
            except (EOFError, OSError):
                why = self._explain_death().why
                msg = f"the exporting process cannot start: {why}; see its log above"
                raise ChildError(msg) from None
            if should_stop():
                self.end()
                raise Stopped

    def _explain_death(self) -> Outcome:
        assert self._child is not None, "it was started"
        with suppress(subprocess.TimeoutExpired):
            self._child.wait(_END_S)
        code = self._child.poll()
        self.end()
        if code is None:
            how = "closed its connection"
        elif code < 0:
            how = f"was ended by signal {_name_signal(-code)}"
        else:
            how = f"ended with exit code {code}"
        return Outcome(ending=Ending.FAILED, why=f"the exporting process {how}")


def _spell(task: ExportTask) -> dict[str, Any]:
    """Return a task as what JSON can say."""
    return asdict(task)


def _name_signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return str(number)


# The child


def _export(task: ExportTask, model: bytes) -> Outcome:
    """Export one model, whatever its code does, short of ending the process."""
    try:
        return _use(_run(task, model))
    except BaseException as error:  # noqa: BLE001  # users' code may raise anything
        return Outcome(ending=_judge(error), why=describe(error))


def _run(task: ExportTask, model: bytes) -> ExportedModel:
    from consumers.export.artifacts import export_model  # noqa: PLC0415  # loads torch
    from protocol.exchanged_state import model_from_blob  # noqa: PLC0415  # with it

    return export_model(
        module=load_class(task.module, task.allowed_prefixes),
        module_config=json.loads(task.module_config),
        data_module=load_class(task.data_module, task.allowed_prefixes),
        data_config=json.loads(task.data_config),
        tensors=model_from_blob(model).tensors,
    )


def _use(exported: ExportedModel) -> Outcome:
    reasons = (
        ("no ONNX", exported.no_onnx),
        ("not measured", exported.no_evaluation),
    )
    found = exported.evaluation
    return Outcome(
        ending=Ending.EXPORTED,
        why="; ".join(f"{what}: {why}" for what, why in reasons if why),
        onnx=exported.onnx or b"",
        measured=None
        if found is None
        else Measured(
            metrics={
                str(name): _pass_on(value) for name, value in found.metrics.items()
            },
            directions=_read_directions(found.directions),
            num_examples=found.num_examples,
        ),
    )


def _pass_on(value: object) -> object:
    """Return a value as JSON can say it; what is no number is null."""
    try:
        return read_number(value, "a metric")
    except BadNumberError:
        return None


def _read_directions(stated: object) -> dict[str, str]:
    if not isinstance(stated, Mapping):
        return {}
    return {str(name): str(direction) for name, direction in stated.items()}


def _judge(error: BaseException) -> Ending:
    if is_exhausted(error) or isinstance(error, ImportNotAllowedError):
        return Ending.WAITS
    if is_short_of_memory(error) or is_outage(error):
        return Ending.FAILED
    return Ending.REFUSED


def _serve(connection: Connection) -> None:
    import consumers.export.artifacts  # noqa: F401, PLC0415  # torch, before the first model

    connection.send_bytes(_READY)
    while True:
        try:
            asked = json.loads(connection.recv_bytes())
            model = connection.recv_bytes()
        except EOFError:
            return
        asked["allowed_prefixes"] = tuple(asked["allowed_prefixes"])
        outcome = _export(ExportTask(**asked), model)
        measured = outcome.measured
        answer = {
            "ending": outcome.ending,
            "why": outcome.why,
            "measured": None if measured is None else asdict(measured),
        }
        connection.send_bytes(json.dumps(answer).encode())
        connection.send_bytes(outcome.onnx)


def _end_with(life: int) -> None:
    """End this process when the exporter is gone, which closes the other end."""
    os.read(life, 1)
    os._exit(0)


def main(connection: int, life: int) -> None:
    """Export what comes, until nobody is at the other end.

    Args:
        connection: Descriptor that models come from and results go to.
        life: Descriptor that ends when the exporter does.
    """
    # Whoever stops the exporter may tell its whole group: it is for the exporter to
    # say what becomes of the child.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    guard_logs()
    alive.start_thread(lambda: _end_with(life), "life")
    _serve(Connection(connection))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
