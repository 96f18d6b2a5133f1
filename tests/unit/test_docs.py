"""The documentation names what exists, all of it, and its commands and links work."""

from __future__ import annotations

import hashlib
import io
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fastavro
import nacl.signing
import pytest
import typer

from adapters.partitions import compute_partition
from adapters.settings import Settings
from cli.main import app
from consumers.audit.report import FindingCode
from ledger.signing import SigningKey
from protocol.envelope import compute_input_id, sign_event
from protocol.modes import MODES
from schemas import codec, topics
from schemas import events as e
from schemas.reasons import Reason
from tests.paths import ROOT

DOCS = ROOT / "docs"
REFERENCE = DOCS / "reference"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md")])
FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```", re.DOTALL | re.MULTILINE)
INLINE_CODE = re.compile(r"`[^`\n]*`")
LINK = re.compile(r"\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ +(.*)$", re.MULTILINE)
MOOT = re.compile(r"(?:^\s*|\$\()moot\s+([^|>&\n]*)", re.MULTILINE)
MAKE = re.compile(r"\bmake ([a-z][a-z-]*)")
SECURITY = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
SHOWN = re.compile(r"\]\((tests/[^)]*)\)(?:\s+\(((?:`\w+`(?:,\s+)?)+)\))?")
VARIABLE = re.compile(r"\bMOOT_[A-Z_]*[A-Z]\b")
ARROW = re.compile(r"^ *(\w+) *--?>> *(\w+) *: *(.+)$", re.MULTILINE)
PARTICIPANT = re.compile(r"^ *participant (\w+)", re.MULTILINE)
EVENT = re.compile(r"\b(?:[A-Z][a-z]+){2,}\b")
NAMED_PATH = re.compile(r"`([\w-]+/[\w./-]*)`")
MADE_LATER = {"tests/fuzz/findings", "schemas/avro/released/"}


def read(name: str) -> str:
    return (REFERENCE / name).read_text(encoding="utf-8")


def diagrams(page: Path) -> list[str]:
    blocks = FENCE.findall(page.read_text(encoding="utf-8"))
    return [text for _, kind, text in blocks if kind == "mermaid"]


def codes(page: str) -> set[str]:
    return set(re.findall(r"^\| `([A-Z_]+)` \|", page, re.MULTILINE))


def show(path: Path) -> str:
    return str(path.relative_to(ROOT))


def shell(page: Path) -> str:
    blocks = FENCE.findall(page.read_text(encoding="utf-8"))
    return "\n".join(text for _, kind, text in blocks if kind == "sh")


def without_code(text: str) -> str:
    return INLINE_CODE.sub("", FENCE.sub("", text))


def commands(
    group: Any = None, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield every command of `moot` and where it is."""
    group = group or typer.main.get_command(app)
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name), command


COMMANDS = dict(commands())


def test_every_reason_is_explained_and_no_other():
    assert codes(read("reasons.md")) == set(Reason)


def test_every_audit_finding_is_explained_and_no_other():
    assert codes(read("audit.md")) == set(FindingCode)


@pytest.mark.parametrize("name", sorted(codec.CLASSES))
def test_every_event_is_described_with_topic_fingerprint_and_fields(name):
    sections = re.split(r"^### ", read("events.md"), flags=re.MULTILINE)
    [section] = [text for text in sections if text.startswith(f"{name}\n")]
    topic = topics.TOPIC_OF.get(codec.CLASSES[name])
    assert topic is None or f"Topic `{topic}`." in section
    assert f"Fingerprint `{codec.lock()[name][-1]}`." in section
    fields = re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)
    schema = json.loads(codec.schema_text(name))
    assert fields == [field["name"] for field in schema["fields"]]


@pytest.mark.parametrize("topic", topics.EVENTS)
def test_every_topic_is_listed_with_its_events(topic):
    row = re.search(
        rf"^\| `{re.escape(topic)}` \| ([^|]*) \|", read("topics.md"), re.MULTILINE
    )
    assert row is not None
    names = [event.__name__ for event in topics.EVENTS[topic]]
    assert row[1].split(", ") == names


def test_every_setting_is_described():
    documented = set(
        re.findall(r"^\| `(MOOT_\w+)` \|", read("settings.md"), re.MULTILINE)
    )
    real = {f"MOOT_{name.upper()}" for name in Settings.model_fields}
    assert documented == real | {"MOOT_DEBUG"}


@pytest.mark.parametrize("page", PAGES, ids=show)
def test_no_page_names_a_setting_that_does_not_exist(page):
    real = {f"MOOT_{name.upper()}" for name in Settings.model_fields}
    found = set(VARIABLE.findall(page.read_text(encoding="utf-8")))
    assert found - {"MOOT_MINIO"} <= real | {"MOOT_DEBUG"}


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_every_command_is_described_with_all_options(path):
    line = re.search(rf"^\| `moot {' '.join(path)}` .*$", read("cli.md"), re.MULTILINE)
    assert line is not None
    for parameter in COMMANDS[path].params:
        spellings = [*parameter.opts, *parameter.secondary_opts]
        if parameter.param_type_name == "option" and "--help" not in spellings:
            assert any(f"`{name}`" in line[0] for name in spellings), spellings


def test_no_command_is_described_that_does_not_exist():
    described = re.findall(r"^\| `moot ([a-z -]+)` \|", read("cli.md"), re.MULTILINE)
    assert {tuple(name.split()) for name in described} == set(COMMANDS)


@pytest.mark.parametrize("page", PAGES, ids=show)
def test_commands_in_shell_blocks_can_be_typed_like_this(page):
    for line in MOOT.findall(shell(page)):
        words = shlex.split(re.sub(r"\$\([^)]*\)", "X", line))
        path = next(
            (tuple(words[:n]) for n in (2, 1) if tuple(words[:n]) in COMMANDS), ()
        )
        assert path, f"no such command: moot {line}"
        # Parses and converts; raises what a user would see. Nothing runs.
        COMMANDS[path].make_context(" ".join(path), words[len(path) :])


@pytest.mark.parametrize("page", PAGES, ids=show)
def test_verbs_of_make_exist(page):
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    verbs = set(re.findall(r"^([a-z][a-z-]*):", makefile, re.MULTILINE))
    text = page.read_text(encoding="utf-8")
    code = "\n".join([shell(page), *INLINE_CODE.findall(FENCE.sub("", text))])
    assert set(MAKE.findall(code)) <= verbs


def test_the_readme_shows_the_two_verbs_that_matter():
    assert {"demo", "test"} <= set(MAKE.findall(shell(ROOT / "README.md")))


def anchors(page: Path) -> set[str]:
    """Return the ids that GitHub gives the headings of a page."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    return {
        re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")
        for heading in HEADING.findall(text)
    }


@pytest.mark.parametrize("page", PAGES, ids=show)
def test_every_relative_link_resolves(page):
    for link in LINK.findall(without_code(page.read_text(encoding="utf-8"))):
        if re.match(r"[a-z]+:", link):
            continue
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("page", PAGES, ids=show)
def test_a_path_of_the_repository_that_a_page_names_exists(page):
    folders = {path.name for path in ROOT.iterdir() if path.is_dir()}
    for name in NAMED_PATH.findall(page.read_text(encoding="utf-8")):
        if name.partition("/")[0] in folders and name not in MADE_LATER:
            assert (ROOT / name).exists(), name


def shown_by() -> Iterator[tuple[str, str]]:
    """Yield the tests that stand beside the claims on security."""
    for file, names in SHOWN.findall(SECURITY):
        for name in re.findall(r"\w+", names) or ("no test is named",):
            yield file, name


@pytest.mark.parametrize(("file", "name"), sorted(set(shown_by())))
def test_every_test_beside_a_claim_on_security_exists(file, name):
    text = (ROOT / file).read_text(encoding="utf-8")
    assert re.search(rf"^def {name}\(", text, re.MULTILINE)


def test_beside_every_component_stands_what_shows_its_claims():
    _, _, rest = SECURITY.partition("\n## Component by component\n\n")
    components: dict[str, str] = {}
    for paragraph in rest.partition("\n## ")[0].split("\n\n"):
        name = re.match(r"\*\*(.*?)\*\*", paragraph, re.DOTALL)
        if name is not None:
            last = name[1]
            components[last] = ""
        components[last] += f"{paragraph}\n\n"
    assert len(components) > 15
    for name, text in components.items():
        shown = re.search(r"^\*Shown by:\* (.+)", text, re.MULTILINE | re.DOTALL)
        assert shown, name
        assert SHOWN.search(shown[1]) or "assumed" in shown[1], name


@pytest.mark.parametrize("page", [page for page in PAGES if diagrams(page)], ids=show)
def test_a_diagram_names_what_it_draws_and_no_event_that_does_not_exist(page):
    for text in diagrams(page):
        kind = text.split()[0]
        assert kind in ("flowchart", "sequenceDiagram")
        assert set(EVENT.findall(text)) <= set(codec.CLASSES)
        if kind == "sequenceDiagram":
            drawn = {name for arrow in ARROW.findall(text) for name in arrow[:2]}
            assert drawn == set(PARTICIPANT.findall(text))


@pytest.mark.parametrize("mode", MODES.values(), ids=lambda mode: mode.name)
def test_a_round_is_drawn_as_its_mode_goes(mode):
    page = (DOCS / "explanation" / "architecture.md").read_text(encoding="utf-8")
    section = page.partition(f"\n### Aggregation `{mode.name.upper()}`\n")[2]
    [(_, _, text)] = FENCE.findall(section.partition("\n#")[0])
    said = [
        (author, name)
        for author, to, what in ARROW.findall(text)
        if to == "log"
        for name in EVENT.findall(what)
    ]
    phases = [kind for p in mode.phases for kind in (p.begins, p.awaits) if kind]
    order = [
        e.RoundRequested,
        e.RoundStarted,
        mode.answer,
        *phases,
        e.AggregateSubmitted,
        e.AggregatePublished,
    ]
    found = iter(name for _, name in said)
    assert all(kind.__name__ in found for kind in order)
    for author, name in said:
        topic = re.escape(topics.TOPIC_OF[codec.CLASSES[name]])
        row = re.search(
            rf"^\| `{topic}` \|[^|]*\|([^|]*)\|", read("topics.md"), re.MULTILINE
        )
        assert row is not None
        assert author.rstrip("s") in row[1]


def test_every_page_can_be_reached_from_the_index():
    seen: set[Path] = set()
    waiting = [DOCS / "index.md"]
    while waiting:
        page = waiting.pop()
        if page in seen or page.suffix != ".md":
            continue
        seen.add(page)
        waiting += [
            (page.parent / link.partition("#")[0]).resolve()
            for link in LINK.findall(without_code(page.read_text(encoding="utf-8")))
            if not re.match(r"[a-z]+:", link)
        ]
    assert set(DOCS.rglob("*.md")) <= seen


@pytest.mark.parametrize("record", sorted((DOCS / "adr").glob("0*.md")), ids=show)
def test_a_decision_has_a_status_and_says_what_it_costs(record):
    text = record.read_text(encoding="utf-8")
    assert re.search(r"^- Status: ", text, re.MULTILINE)
    for part in ("Context and problem", "Options", "Decision", "Consequences"):
        assert f"\n## {part}\n" in text
    assert "\n- Bad: " in text
    assert f"]({record.name})" in (DOCS / "adr" / "README.md").read_text(
        encoding="utf-8"
    )


def test_the_producers_example_is_right_to_the_byte():
    page = (DOCS / "howto" / "plain-producer.md").read_text(encoding="utf-8")
    text = (
        page.partition("Seed `00 01")[2].partition("```text\n")[2].partition("```")[0]
    )
    shown = "".join(text.split())
    key = SigningKey(bytes(range(32)))
    event = codec.encode(
        e.AgentEnrolmentRequested(
            federation_id="demo",
            agent_id="aster",
            public_key=key.public_key,
        )
    )
    for expected in (
        f"publickey{key.public_key.hex()}",
        f"fingerprint{event[2:10].hex()}",
        f"body{event[10:].hex()}",
        f"S{event[:10].hex()}‖body",
        f"moot-signature{sign_event(key, bytes(range(32, 64)), event).hex()}",
        f"moot-event-id{compute_input_id(key.public_key, event).hex()}",
    ):
        assert expected in shown
    places = re.findall(r"of (\d+): (\d+)", text)
    assert len(places) == 4
    for number, place in places:
        assert compute_partition("demo", int(number)) == int(place)


def test_pages_that_the_code_names_exist():
    packages = [path.parent for path in ROOT.glob("*/__init__.py")]
    named = {
        name
        for package in packages
        for path in package.rglob("*.py")
        for name in re.findall(r"docs/[\w./-]+\.md", path.read_text(encoding="utf-8"))
    }
    assert "docs/howto/what-may-never-be-restored.md" in named
    assert not [name for name in named if not (ROOT / name).is_file()]


@pytest.mark.parametrize(
    "page",
    [
        "README.md",
        "docs/index.md",
        "docs/howto/deploy-services.md",
        "docs/howto/run-ledger-nodes.md",
        "docs/howto/run-parties.md",
        "docs/reference/settings.md",
    ],
)
def test_readers_who_may_back_up_are_told_what_never_to_restore(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    assert "what-may-never-be-restored.md" in text


def test_the_producers_python_signs_what_we_sign():
    """Run the page's own function against a schema registry that is a dictionary."""
    page = (DOCS / "howto" / "plain-producer.md").read_text(encoding="utf-8")
    [code] = [text for _, kind, text in FENCE.findall(page) if kind == "python"]
    function = code[code.index("def make_record") : code.index("\n\nwith open")]
    key = SigningKey(hashlib.sha256(b"a seed").digest())
    event = e.UpdateDeclined(
        federation_id="demo", round=3, agent_id="aster", reason="NOT_FINITE", detail=""
    )

    def urlopen(url: str) -> io.BytesIO:
        subject = topics.subject(topics.UPDATES, e.UpdateDeclined)
        assert url == f"registry/subjects/{subject}/versions/latest"
        schema = codec.schema_text("UpdateDeclined")
        return io.BytesIO(json.dumps({"id": 7, "schema": schema}).encode())

    names: dict[str, Any] = {
        "REGISTRY": "registry",
        "GENESIS": bytes(range(32)),
        "fastavro": fastavro,
        "io": io,
        "json": json,
        "urllib": SimpleNamespace(request=SimpleNamespace(urlopen=urlopen)),
    }
    exec(function, names)  # it is our own page
    fields = {name: getattr(event, name) for name in event.__dataclass_fields__}
    value, headers = names["make_record"](
        topics.UPDATES, "UpdateDeclined", fields, nacl.signing.SigningKey(key.seed)
    )
    data = codec.encode(event)
    assert value == b"\x00\x00\x00\x00\x07" + data[codec.HEADER_SIZE :]
    assert headers == [("moot-signature", sign_event(key, bytes(range(32)), data))]
