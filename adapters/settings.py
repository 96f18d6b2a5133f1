"""Settings: where things are. Read once from the environment, typed, printed redacted.

If changing a value could change a fact, it is no setting but a parameter, in
`FederationConfigured` (DESIGN.md section 10).
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import BeforeValidator, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

LogLevel = Annotated[
    Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"],
    BeforeValidator(lambda level: str(level).upper()),
]
MINIO: Final = ("minio_endpoint", "minio_access_key", "minio_secret_key")
"""The settings that MinIO needs."""


class SettingsError(Exception):
    """A setting is missing or wrong; the message names it and says what to do."""


class Settings(BaseSettings):
    """Every setting; each is read from ``MOOT_<NAME>``."""

    model_config = SettingsConfigDict(env_prefix="MOOT_", frozen=True)

    bootstrap_servers: str = Field(description="Kafka brokers, host:port,…")
    schema_registry_url: str = Field(
        description="Base URL of the schema registry's Confluent-compatible API."
    )
    # Processes without MinIO should not hold what can read updates there.
    minio_endpoint: str = Field(default="", description="MinIO, host:port.")
    minio_access_key: SecretStr = Field(
        default=SecretStr(""), description="MinIO's access key."
    )
    minio_secret_key: SecretStr = Field(
        default=SecretStr(""), description="MinIO's secret key."
    )
    minio_secure: bool = Field(default=False, description="Whether MinIO speaks TLS.")
    bucket: str = Field(default="moot", description="Bucket of all blobs.")
    num_partitions: int = Field(
        default=1, ge=1, description="Partitions of each topic, when topics are made."
    )
    replication_factor: int = Field(
        default=1, ge=1, description="Replicas of each topic, when topics are made."
    )
    state_directory: Path = Field(
        default=Path(".moot/state"),
        description="Where services keep keys and caches; the caches may be deleted.",
    )
    instance_id: str = Field(
        default="0",
        description="Tells the replicas of a service apart; a restarted replica with "
        "the same id takes its partitions back at once.",
    )
    session_timeout_s: float = Field(
        default=10.0,
        ge=1,
        description="After so long without a sign of a service Kafka gives its "
        "partitions to another; signs come five times as often.",
    )
    transaction_timeout_s: float = Field(
        default=15.0,
        ge=1,
        description="How long Kafka lets a service's transaction stay open, and so how "
        "long one that was killed can hold up its successor.",
    )
    otlp_endpoint: str | None = Field(
        default=None, description="OTLP/HTTP endpoint for traces; unset exports none."
    )
    heartbeat_s: float = Field(
        default=10.0,
        ge=0.1,
        le=600.0,
        description="How often a process says that it lives; one that is silent for "
        "three times as long counts as away.",
    )
    log_level: LogLevel = Field(
        default="INFO", description="Level of the services' logs."
    )

    min_cohort: int = Field(
        default=1,
        ge=1,
        description="Fewest contributions that an agent or a party agrees to sum.",
    )
    modes: str = Field(
        default="",
        description="Comma-separated modes that an agent agrees to; empty for all.",
    )

    @property
    def has_minio(self) -> bool:
        """Whether any setting for MinIO is given."""
        return len(self._missing_of_minio()) < len(MINIO)

    def demand_minio(self) -> None:
        """Check that MinIO can be used.

        Raises:
            SettingsError: settings are missing; says which.
        """
        missing = self._missing_of_minio()
        if missing:
            raise SettingsError(
                f"MinIO is needed here: set {', '.join(missing)}. "
                "`eval $(moot status --env)` sets them for a stack that `moot up` "
                "started."
            )

    def _missing_of_minio(self) -> list[str]:
        return [f"MOOT_{name.upper()}" for name in MINIO if not getattr(self, name)]


def load_settings() -> Settings:
    """Return the settings of this process.

    Raises:
        SettingsError: one is missing or wrong.
    """
    try:
        return Settings()  # type: ignore[call-arg]  # the environment fills it
    except ValidationError as error:
        # Never print the values: two of them are secrets.
        problems = "; ".join(
            f"MOOT_{str(item['loc'][0]).upper()}: "
            + ("not set" if item["type"] == "missing" else item["msg"])
            for item in error.errors(include_input=False)
        )
        raise SettingsError(
            f"{problems}. `eval $(moot status --env)` sets them for a stack that "
            "`moot up` started."
        ) from None
