"""Blobs in MinIO, named after their content.

A blob's name is its SHA-256, so storing it twice is harmless and nobody can replace
what an event refers to. MinIO is trusted for availability alone: a blob's digest is
verified here before anyone sees a byte of it.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import urllib3
from minio import Minio
from minio.error import MinioException, S3Error

from adapters.settings import Settings
from adapters.wording import describe_away
from schemas.events import BlobRef
from schemas.reasons import Reason

STORE_ERRORS: Final = (MinioException, urllib3.exceptions.HTTPError)
"""Errors of a store that is away or refuses us; they say nothing about a blob."""


SETTINGS: Final = "MOOT_MINIO_ENDPOINT, MOOT_MINIO_ACCESS_KEY, MOOT_MINIO_SECRET_KEY"


class StoreFailedError(MinioException):
    """The store is away or refuses us; the message says where it is."""


class BlobError(Exception):
    """The blob is not what its reference promises; `reason` is the refusal's code."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


def make_client(settings: Settings, http_client: urllib3.PoolManager) -> Minio:
    """Return MinIO's client; the caller chooses how long it retries.

    Raises:
        SettingsError: MinIO's address or credentials are not set.
    """
    settings.demand_minio()
    return Minio(
        settings.minio_endpoint,
        access_key=settings.minio_access_key.get_secret_value(),
        secret_key=settings.minio_secret_key.get_secret_value(),
        secure=settings.minio_secure,
        http_client=http_client,
    )


class BlobStore:
    """Store and fetch by digest. Durable once `store` returns; safe across threads."""

    def __init__(self, settings: Settings) -> None:
        self._bucket = settings.bucket
        self._endpoint = settings.minio_endpoint
        self._client = make_client(
            settings,
            urllib3.PoolManager(
                maxsize=16,
                timeout=urllib3.Timeout(connect=5, read=60),
                # A restart of MinIO takes a few seconds; work continues after it.
                retries=urllib3.Retry(
                    total=6, backoff_factor=0.3, status_forcelist=(500, 502, 503, 504)
                ),
            ),
        )

    def ensure_bucket(self) -> None:
        """Create the bucket unless it exists."""
        with self._asking():
            if self._client.bucket_exists(bucket_name=self._bucket):
                return
            try:
                self._client.make_bucket(bucket_name=self._bucket)
            except S3Error as error:
                if error.code != "BucketAlreadyOwnedByYou":  # another process was first
                    raise

    def store(self, data: bytes) -> BlobRef:
        """Store a blob under its digest and return its reference."""
        digest = hashlib.sha256(data)
        name = f"sha256/{digest.hexdigest()}"
        with self._asking():
            self._client.put_object(
                bucket_name=self._bucket,
                object_name=name,
                data=io.BytesIO(data),
                length=len(data),
            )
        return BlobRef(
            uri=f"s3://{self._bucket}/{name}",
            sha256=digest.digest(),
            size_bytes=len(data),
        )

    def fetch(self, ref: BlobRef, *, max_size_bytes: int) -> bytes:
        """Return a blob's bytes, verified.

        Only our own bucket is read, by digest, whatever the URI says: a reference
        cannot make us talk to another host.

        Raises:
            BlobError: MISSING_BLOB, OVERSIZED_BLOB (more than promised or allowed) or
                CORRUPT_BLOB (not the promised bytes).
            StoreFailedError: the store is away, or went away; nothing is known about
                the blob then.
        """
        if ref.size_bytes > max_size_bytes:
            detail = f"{ref.size_bytes} bytes; at most {max_size_bytes} are allowed"
            raise BlobError(Reason.OVERSIZED_BLOB, detail)
        name = f"sha256/{ref.sha256.hex()}"
        with self._asking():
            try:
                response = self._client.get_object(
                    bucket_name=self._bucket, object_name=name
                )
            except S3Error as error:
                if error.code != "NoSuchKey":
                    raise
                detail = f"no blob {ref.sha256.hex()} in the store"
                raise BlobError(Reason.MISSING_BLOB, detail) from None
            try:
                data = _read(response, ref.size_bytes + 1)
            finally:
                response.close()
                response.release_conn()
        if len(data) > ref.size_bytes:
            detail = f"the blob is longer than the {ref.size_bytes} bytes promised"
            raise BlobError(Reason.OVERSIZED_BLOB, detail)
        found = hashlib.sha256(data).digest()
        if found != ref.sha256:
            detail = f"expected SHA-256 {ref.sha256.hex()}, found {found.hex()}"
            raise BlobError(Reason.CORRUPT_BLOB, detail)
        return data

    @contextmanager
    def _asking(self) -> Iterator[None]:
        """Give errors of the client, and of HTTP below it, a message of ours.

        Raises:
            StoreFailedError: the store is away, or refuses us.
        """
        try:
            yield
        except S3Error as error:
            msg = f"MinIO at {self._endpoint} ({SETTINGS}) refuses: {error.code}: "
            raise StoreFailedError(f"{msg}{error.message}") from error
        except STORE_ERRORS as error:
            reason = getattr(error, "reason", None) or error
            # urllib3's begin with the connection's address in memory.
            said = str(reason).rpartition(">: ")[2] or repr(error)
            msg = describe_away("MinIO", self._endpoint, SETTINGS, said)
            raise StoreFailedError(msg) from error


def _read(response: urllib3.BaseHTTPResponse, size_bytes: int) -> bytes:
    """Return a body; of a longer one only a byte too many, enough to tell.

    Exactly as stored: nothing is unpacked, whatever the answer's headers say.

    Raises:
        HTTPError: it ended before its end.
    """
    data = bytearray()
    while len(data) < size_bytes:
        # A body that ended early is first returned as far as it goes; the cut shows
        # only when nothing more comes.
        part = response.read(size_bytes - len(data), decode_content=False)
        if not part:
            break
        data += part
    return bytes(data)
