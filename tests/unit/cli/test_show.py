"""Others' text is shown as it is: no terminal obeys it, and it forges no line."""

import io
import json
import logging
import subprocess
import sys
import unicodedata
from collections import Counter
from dataclasses import fields, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import cli.federations
import cli.node
import cli.operate
import cli.rewards
from adapters.kafka import END
from adapters.log_lines import printable
from adapters.settings import Settings
from cli.audit_show import fold, render
from cli.describe import describe
from cli.show import prepare, say, say_json, show_time
from consumers.audit.monitor import Alert, AlertKind
from consumers.audit.report import (
    Equivocation,
    EraReport,
    Finality,
    Finding,
    FindingCode,
    NodeReport,
    Noise,
    Place,
    RefusedRecord,
    Report,
)
from schemas import events as e
from schemas import topics
from tests.builders import LogBuilder, make_key, read_blocks
from tests.paths import ROOT

HOSTILE = (
    "\x1b[2J\x1b]0;title\x07 \x9b31m \r\nerror: forged\n\u202etxt.\u2066\u2069\u200f"
    "\u061c\u2028\u2029\x85\u200b\ufeff\ud800 \udcff\U000e0041\ue000\x7f\x00\x08"
    "[bold][link=x]y[/link] é \u0344"
)


def is_clean(line):
    return not any(unicodedata.category(c)[0] == "C" for c in line) and not {
        *"\u2028\u2029"
    } & {*line}


def shown(capsys):
    """Return the lines that were printed, each of them as harmless as its source."""
    out, err = capsys.readouterr()
    lines = [*out.split("\n"), *err.split("\n")]
    for line in lines:
        assert is_clean(line), line
        assert not line.startswith("error: forged"), line
    return lines


# One text


@given(st.text(alphabet=st.characters()))
@settings(max_examples=300)
def test_whatever_is_shown_is_one_clean_line_and_can_be_encoded(text):
    line = printable(text)
    assert is_clean(line)
    line.encode()
    assert printable(line) == line


def test_no_character_that_acts_or_is_not_seen_passes():
    for number in range(sys.maxunicode + 1):
        char = chr(number)
        if unicodedata.category(char) in {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}:
            assert printable(char).isascii()
    for unseen in "\ufe0f\u3164\u2800\u115f":
        assert printable(unseen).isascii()


@pytest.mark.parametrize("text", ["", "plain", "é ü 漢字 ∑ 😀", "a [b] \\ c"])
def test_what_stands_for_itself_stays(text):
    assert printable(text) == text


def test_a_line_stays_a_line(capsys):
    say("one", HOSTILE, 3)
    say(HOSTILE, is_error=True)
    assert len([line for line in shown(capsys) if line]) == 4


def test_json_stays_json(capsys):
    value = {"name": HOSTILE, "list": [HOSTILE]}
    for is_wide in (False, True):
        say_json(value, is_wide=is_wide)
        out = capsys.readouterr().out
        assert out.isascii()
        assert json.loads(out) == value


@pytest.mark.parametrize("at_s", [2**63, -(2**63), 1e300, float("nan")])
def test_a_time_that_no_calendar_has_is_a_number(at_s):
    assert show_time(at_s) == f"{at_s} s"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_a_terminal_of_any_encoding_can_show_everything(encoding):
    """In a process of its own, as standard output is wrapped there."""
    program = (
        "from cli.show import prepare, say; import sys; prepare();"
        "say('\\u6f22 \\ud800 \\x1b'); sys.stdout.write('\\ud800\\u6f22\\n')"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={"PYTHONIOENCODING": encoding, "PYTHONPATH": "."},
        capture_output=True,
        check=True,
    )
    assert b"\\ud800" in done.stdout
    assert b"\x1b" not in done.stdout


# Logs


@pytest.fixture
def log():
    """Return a logger as our processes have it, and what it wrote."""
    factory = logging.getLogRecordFactory()
    prepare()
    written = io.StringIO()
    handler = logging.StreamHandler(written)
    handler.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
    logger = logging.getLogger("tests.show")
    logger.addHandler(handler)
    logger.propagate = False
    yield logger, written
    logger.removeHandler(handler)
    logging.setLogRecordFactory(factory)


def test_no_log_line_can_be_forged(log):
    logger, written = log
    logger.warning("refused %s of %d", HOSTILE, 3)
    logger.error(HOSTILE)
    lines = written.getvalue().rstrip("\n").split("\n")
    assert len(lines) == 2
    assert all(map(is_clean, lines))


def test_nor_by_the_text_of_an_exception(log):
    logger, written = log
    try:
        try:
            raise ValueError(HOSTILE)  # noqa: TRY301  # to be the cause
        except ValueError as error:
            raise RuntimeError(HOSTILE) from error
    except RuntimeError:
        logger.exception("it failed: %s", HOSTILE)
    first, *rest = written.getvalue().rstrip("\n").split("\n")
    assert first.startswith("ERROR it failed: ")
    assert all(map(is_clean, [first, *rest]))
    # Lines of ours begin at the margin; what an exception says does not.
    assert all(line.startswith("  ") for line in rest)
    assert "ValueError" in "".join(rest)


def test_nobody_hears_that_there_is_no_triton():
    pytest.importorskip("torch")
    program = "from adapters.log_lines import guard_logs; guard_logs()\n"
    ran = subprocess.run(
        [sys.executable, "-c", f"{program}import torch.utils.flop_counter"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=True,
    )
    assert ran.stderr == ""


UNCAUGHT = """
import logging, sys, threading
from adapters.log_lines import guard_logs
guard_logs()
def fail():
    raise ValueError(sys.argv[1])
thread = threading.Thread(target=fail)
thread.start()
thread.join()
fail()
"""
FAUST = """
import logging, sys
import faust
from adapters.log_lines import guard_logs
from mode.utils.logging import setup_logging
guard_logs()
setup_logging(loglevel="INFO", logfile=sys.stderr)
log = logging.getLogger("streams.sequencer")
log.warning("refused %s", sys.argv[1])
try:
    raise ValueError(sys.argv[1])
except ValueError as error:
    log.exception("it failed: %s", error)
"""


@pytest.mark.parametrize("program", [UNCAUGHT, FAUST], ids=["uncaught", "faust"])
def test_nor_in_other_processes(program):
    """What nobody catches, and what is logged as Faust logs."""
    hostile = HOSTILE.replace("\x00", "").replace("\ud800", "")
    done = subprocess.run(
        [sys.executable, "-c", program, hostile],
        env={"PYTHONPATH": ".", "NO_COLOR": "1", "PYTHONIOENCODING": "utf-8"},
        capture_output=True,
        check=False,
    )
    lines = done.stderr.decode().rstrip("\n").split("\n")
    assert all(map(is_clean, lines)), lines
    assert sum(not line.startswith("  ") for line in lines) == 2, lines
    assert any("ValueError" in line for line in lines)


# Reports and alerts


def hostile_report():
    place = Place(topic=HOSTILE, offset=1)
    finding = Finding(
        code=FindingCode.FACT_DIFFERS,
        place=place,
        message=HOSTILE,
        expected=HOSTILE,
        found=HOSTILE,
        evidence=(HOSTILE,),
    )
    return Report(
        federation_id=HOSTILE,
        num_blocks=1,
        refusals=Counter({HOSTILE: 1}),
        rejections=Counter({HOSTILE: 1}),
        events=Counter({HOSTILE: 1}),
        balances={HOSTILE: 1, "ada": 2},
        findings=[finding],
        num_findings=Counter({FindingCode.FACT_DIFFERS: 1}),
        node_faults=[finding],
        num_node_faults=Counter({FindingCode.FACT_DIFFERS: 1}),
        noise=[
            Noise(
                topic=HOSTILE,
                code=FindingCode.WRONG_KEY,
                count=1,
                first=place,
                message=HOSTILE,
            )
        ],
        refused=[
            RefusedRecord(leaf_index=0, reason=HOSTILE, detail=HOSTILE, source=HOSTILE)
        ],
        equivocations=[
            Equivocation(
                leaf_index=0,
                public_key=HOSTILE,
                offence=HOSTILE,
                era=0,
                epoch=0,
                position=0,
            )
        ],
        finality=Finality(
            final_height=0,
            final_size=1,
            num_certified=1,
            num_by_descendant=0,
            num_not_final=0,
            num_epochs=1,
            cosigned_size=0,
            cosigned_at_s=0,
            policy_size=None,
            eras=(EraReport(era=0, first_height=0, quorum=1, nodes=(HOSTILE,)),),
            nodes=(
                NodeReport(
                    name=HOSTILE,
                    public_key=HOSTILE,
                    is_present=True,
                    num_attestations=0,
                    last_height=0,
                    num_cosignatures=0,
                    num_blocks_behind=0,
                ),
            ),
        ),
        stopped=HOSTILE,
        notes=[HOSTILE],
    )


def test_a_report_has_the_same_lines_whatever_is_in_it(capsys):
    report = hostile_report()
    text = render(report, 1.0)
    assert all(map(is_clean, text.split("\n")))
    plain = json.loads(json.dumps(report.to_json()).replace(json.dumps(HOSTILE), '"x"'))
    assert plain["stopped"] == "x"
    assert not any("forged" in line and line.startswith("error") for line in text)
    assert text.count("\n") < 60


@pytest.mark.parametrize("width", [20, 80, 200])
def test_a_report_is_folded_and_keeps_its_words(width):
    text = render(hostile_report(), 1.0)
    lines = list(fold(text, width))

    assert " ".join(lines).split() == text.split()
    whole = text.split("\n")
    for line in lines:
        assert len(line) <= width or len(line.split()) <= 2  # a number and its noun
        # What others wrote begins no line.
        assert line.startswith(" ") or any(item.startswith(line) for item in whole)
    assert all(map(is_clean, lines))


def test_what_goes_on_stands_below_where_it_began():
    folded = list(
        fold("  leaves  5 AgentAdmitted, 12 BalanceChanged\n\n  - a note", 28)
    )

    assert folded == [
        "  leaves  5 AgentAdmitted,",
        "          12 BalanceChanged",
        "",
        "  - a note",
    ]


def test_an_alert_is_one_line(capsys):
    alert = Alert(
        kind=AlertKind.FORK,
        code=HOSTILE,
        place=Place(topic=HOSTILE),
        message=HOSTILE,
        expected=HOSTILE,
        found=HOSTILE,
    )
    say(alert)
    assert len([line for line in shown(capsys) if line]) == 1


# Commands


def make_hostile(kind):
    """Return an event whose every text is hostile."""

    def value(name, hint):
        match hint.removesuffix(" | None"):
            case "int":
                return 2**62 if name.endswith("_ms") else 2**30
            case "str":
                return HOSTILE.encode("utf-8", "replace").decode()
            case "bytes":
                return bytes({"signature": 64, "commitment": 48}.get(name, 32))
            case some if some.startswith("tuple["):
                inner = some.removeprefix("tuple[").removesuffix(", ...]")
                return (value("", inner), value("", inner))
            case some:
                return make_hostile(getattr(e, some))

    return kind(**{field.name: value(field.name, field.type) for field in fields(kind)})


LEAVES = tuple(
    event for topic in topics.SEQUENCED_TOPICS for event in topics.EVENTS[topic]
)


@pytest.mark.parametrize("kind", [*LEAVES, e.EventRejected])
def test_every_event_is_described_in_one_line(kind, capsys):
    say(describe(make_hostile(kind)))
    assert len([line for line in shown(capsys) if line]) == 1


@pytest.fixture
def hostile_log(monkeypatch):
    """Let the commands read a log whose sequencer admits whatever there is."""
    log = LogBuilder()
    log.found()
    log.admit("ada", "bea")
    for kind in LEAVES:
        if kind is e.FederationConfigured or kind.__name__ in NOT_FOLLOWED:
            continue
        event = replace(make_hostile(kind), federation_id="clinics")
        leaf = log.make_leaf(event, make_key("OPERATOR"))
        log.append([(leaf, event)], is_followed=False)

    def read(*_args, **_options):
        return read_blocks(log)

    def follow(*_args, **_options):
        yield from read_blocks(log)
        yield END

    for module in (cli.operate, cli.node):
        monkeypatch.setattr(module, "read_log", read)
        monkeypatch.setattr(module, "make_registry", lambda _: None)
    monkeypatch.setattr(cli.federations, "follow_log", follow)
    return log


NOT_FOLLOWED = {
    "FederationChanged", "NodeSetChanged", "EquivocationProven", "CheckpointFinalised",
    "SharesLinked",
    "UpdatesChecked", "UpdatesCompared", "PartialAggregateSubmitted",
    "AggregateSubmitted", "PartyDeclined", "AgentRevoked",
}  # fmt: skip
"""Folds read more of these than a hostile one has; they are described above."""


@pytest.mark.parametrize("as_json", [False, True])
def test_every_command_shows_a_hostile_federation_harmlessly(
    hostile_log, capsys, tmp_path, as_json
):
    settings = Settings(
        bootstrap_servers="127.0.0.1:1",
        schema_registry_url="http://127.0.0.1:1",
        state_directory=tmp_path,
    )

    def run(command, **options):
        command(settings, "clinics", as_json=as_json, **options)
        return shown(capsys)

    events = run(cli.operate.watch, follow=False)
    num_leaves = sum(len(read.leaves) for read in read_blocks(hostile_log))
    assert num_leaves > len(LEAVES) - len(NOT_FOLLOWED)
    assert len([line for line in events if line]) == num_leaves
    assert run(cli.operate.list_agents)
    assert run(cli.operate.list_versions)
    assert run(cli.operate.show_federation)
    assert run(cli.node.list_nodes)
    assert run(cli.rewards.show_rewards, history=True)
    assert run(cli.rewards.show_rewards, history=False)
