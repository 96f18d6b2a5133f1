"""Settings: MinIO's are for those who use MinIO, and secrets are never shown."""

import os
from contextlib import nullcontext

import pytest
import urllib3

import adapters.heartbeats
import cli.audit
import cli.stack.services
import consumers.node.service
from adapters.blobs import BlobStore, make_client
from adapters.settings import Settings, SettingsError, load_settings
from cli.stack.services import ServiceOptions
from tests.builders import make_key

KAFKA = {
    "MOOT_BOOTSTRAP_SERVERS": "127.0.0.1:1",
    "MOOT_SCHEMA_REGISTRY_URL": "http://127.0.0.1:1",
}
MINIO = {
    "MOOT_MINIO_ENDPOINT": "127.0.0.1:1",
    "MOOT_MINIO_ACCESS_KEY": "hush-access",
    "MOOT_MINIO_SECRET_KEY": "hush-secret",
}


@pytest.fixture
def set_only(monkeypatch):
    """Let the environment have these settings and no others."""

    def set_only(*groups):
        for name in os.environ:
            if name.startswith("MOOT_"):
                monkeypatch.delenv(name)
        for group in groups:
            for name, value in group.items():
                monkeypatch.setenv(name, value)

    return set_only


def test_whoever_uses_no_minio_needs_no_credentials(set_only):
    set_only(KAFKA)
    settings = load_settings()
    assert not settings.has_minio
    assert cli.audit.KafkaSource(settings, "clinics", with_blobs=False).fetch is None


def test_kafka_and_the_schema_registry_are_demanded_of_everybody(set_only):
    set_only(MINIO)
    with pytest.raises(SettingsError, match="MOOT_BOOTSTRAP_SERVERS") as error:
        load_settings()
    assert "MOOT_SCHEMA_REGISTRY_URL" in str(error.value)
    assert "hush" not in str(error.value)


@pytest.mark.parametrize("value", [None, ""])
@pytest.mark.parametrize("missing", MINIO)
def test_whoever_uses_minio_is_told_what_is_missing(set_only, missing, value):
    rest = {name: text for name, text in MINIO.items() if name != missing}
    set_only(KAFKA, rest, {} if value is None else {missing: value})
    settings = load_settings()
    assert settings.has_minio
    for make in (BlobStore, lambda s: make_client(s, urllib3.PoolManager())):
        with pytest.raises(SettingsError, match=rf"set {missing}\.") as error:
            make(settings)
        assert "hush" not in str(error.value)


def test_everything_that_is_missing_is_named(set_only):
    set_only(KAFKA)
    with pytest.raises(SettingsError) as error:
        BlobStore(load_settings())
    assert all(name in str(error.value) for name in MINIO)


def test_with_all_of_them_there_is_a_store(set_only):
    set_only(KAFKA, MINIO)
    BlobStore(load_settings())


def test_secrets_are_not_shown(set_only):
    set_only(KAFKA, MINIO)
    settings = load_settings()
    assert "hush" not in repr(settings) + str(settings) + str(settings.model_dump())
    assert settings.minio_secret_key.get_secret_value() == "hush-secret"


@pytest.mark.parametrize(
    "name", ["MOOT_NUM_PARTITIONS", "MOOT_MINIO_SECURE", "MOOT_LOG_LEVEL"]
)
def test_a_wrong_setting_is_named_and_not_shown(set_only, name):
    set_only(KAFKA, MINIO, {name: "hush-value"})
    with pytest.raises(SettingsError, match=name) as error:
        load_settings()
    assert "hush" not in str(error.value)


def test_a_log_level_may_be_in_any_case(set_only):
    set_only(KAFKA, {"MOOT_LOG_LEVEL": "warning"})
    assert load_settings().log_level == "WARNING"


def test_an_audit_with_blobs_says_how_to_do_without(set_only):
    set_only(KAFKA)
    with pytest.raises(cli.audit.CannotAuditError) as error:
        cli.audit.KafkaSource(load_settings(), "clinics", with_blobs=True)
    assert "MOOT_MINIO_ENDPOINT" in str(error.value)
    assert "--no-blobs" in str(error.value)


# Ledger nodes, and the log server


@pytest.fixture
def run_node(monkeypatch, tmp_path, set_only):
    """Run a service with these settings; returns the options that it got."""
    made = []

    class NodeService:
        key = make_key("ash")

        def __init__(self, _settings, options):
            made.append(options)

        def run(self, _should_stop):
            pass

    def run_node(service, *groups):
        set_only(KAFKA, {"MOOT_STATE_DIRECTORY": str(tmp_path)}, *groups)
        options = ServiceOptions(federation="clinics", name="ash")
        cli.stack.services.run_service(service, options)
        return made.pop()

    monkeypatch.setattr(consumers.node.service, "NodeService", NodeService)
    monkeypatch.setattr(adapters.heartbeats, "beating", lambda *_, **__: nullcontext())
    monkeypatch.setattr(cli.stack.services, "_take_place", lambda _directory: None)
    monkeypatch.setattr(cli.stack.services, "_stop_on_signal", lambda: lambda: True)
    monkeypatch.setattr(cli.stack.services, "_log_to_stderr", lambda _level: None)
    return run_node


def test_a_ledger_node_needs_no_minio(run_node):
    assert not run_node("ledger-node").is_mirrored
    assert not run_node("ledger-node", MINIO).is_mirrored


def test_a_log_server_copies_the_log_where_it_can(run_node):
    assert not run_node("log").is_mirrored
    assert run_node("log", MINIO).is_mirrored
    with pytest.raises(SettingsError, match="MOOT_MINIO_SECRET_KEY"):
        run_node("log", {**MINIO, "MOOT_MINIO_SECRET_KEY": ""})


def test_a_settings_object_can_be_made_without_minio():
    settings = Settings(bootstrap_servers="a:1", schema_registry_url="http://a:1")
    assert not settings.has_minio
