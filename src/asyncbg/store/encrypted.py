"""Encryption in the store: jobs are encrypted when written and decrypted when read; the engine sees no ciphertext."""

import logging
import sqlite3
from dataclasses import replace

from asyncbg.core.job import Done, JobRecord, Lease, NewJob
from asyncbg.errors import UnreadableError
from asyncbg.privacy.encryption import Encryption, is_encrypted, key_id_of
from asyncbg.store.base import Settlement
from asyncbg.store.sqlite.database import Database

logger = logging.getLogger("asyncbg")

# Keys of jobs are looked up, so they are stored as digests. The key of the digests belongs to the database: it stays
# the same when encryption keys are rotated.
_SCHEMA = "CREATE TABLE lookup_key (one INTEGER PRIMARY KEY CHECK (one = 1), sealed TEXT NOT NULL);\n"
_READ = "SELECT sealed FROM lookup_key"
_WRITE = "INSERT OR REPLACE INTO lookup_key VALUES (1, ?)"


def encrypt_job(job: NewJob, encryption: Encryption) -> NewJob:
    """Return the job as it is stored."""
    return job._replace(args=encryption.encrypt(job.args, job.id, "args"))


def digest_keys(job: NewJob, encryption: Encryption) -> NewJob:
    """Return the job with its keys as digests: they are only compared, and may contain arguments."""
    if job.idempotency_key is None and job.unique_key is None:
        return job
    return job._replace(
        idempotency_key=encryption.digest(job.idempotency_key, "idempotency_key"),
        fingerprint=encryption.digest(job.fingerprint, "fingerprint"),
        unique_key=encryption.digest(job.unique_key, "unique_key"),
    )


def encrypt_settlement(item: Settlement, encryption: Encryption) -> Settlement:
    """Return the end of an attempt as it is stored."""
    if not isinstance(item.outcome, Done):
        return item
    return replace(item, outcome=Done(encryption.encrypt(item.outcome.result, item.lease.id, "result")))


def decrypt_lease(lease: Lease, encryption: Encryption) -> Lease:
    """Return a claimed job with decrypted arguments; arguments that cannot be decrypted say why and fail the job."""
    return (
        lease._replace(args=encryption.decrypt_or_explain(lease.args, lease.id, "args"))
        if is_encrypted(lease.args)
        else lease
    )


def decrypt_record(record: JobRecord, encryption: Encryption) -> JobRecord:
    """Return a job record with decrypted values; a value that cannot be decrypted says why."""
    if not (is_encrypted(record.args) or (record.result is not None and is_encrypted(record.result))):
        return record
    result = None if record.result is None else encryption.decrypt_or_explain(record.result, record.id, "result")
    return replace(record, args=encryption.decrypt_or_explain(record.args, record.id, "args"), result=result)


async def load_digest_key(database: Database, encryption: Encryption) -> None:
    """Load the digest key of this database into ``encryption``; create it the first time."""
    if not encryption.is_on:
        return
    try:
        stored = await database.read(_find_digest_key)
        if stored is None or key_id_of(stored) != encryption.key_ids[0]:
            await database.migrate("seal", [_SCHEMA])
            stored = await database.write(lambda connection: _store_digest_key(connection, encryption))
        encryption.use_digest_key(stored)
    except UnreadableError:
        logger.warning(
            "not all encryption keys of this database are in ASYNCBG_PRIVACY__ENCRYPTION_KEYS: jobs and idempotency "
            "keys from before cannot be read; add the missing key, or run `asyncbg rekey` to continue without"
        )


async def replace_digest_key(database: Database, encryption: Encryption) -> None:
    """Create a new digest key where the stored one cannot be decrypted any more."""
    await database.migrate("seal", [_SCHEMA])
    stored = await database.write(lambda connection: _store_digest_key(connection, encryption, replace=True))
    encryption.use_digest_key(stored)


def _find_digest_key(connection: sqlite3.Connection) -> str | None:
    table = connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'lookup_key'").fetchone()
    row = connection.execute(_READ).fetchone() if table else None
    return None if row is None else str(row[0])


def _store_digest_key(connection: sqlite3.Connection, encryption: Encryption, *, replace: bool = False) -> str:
    """Return the digest key, encrypted under the first key of the ring. Raises UnreadableError."""
    row = connection.execute(_READ).fetchone()
    try:
        sealed = encryption.new_digest_key() if row is None else encryption.reencrypt(row[0], "", "lookup")
    except UnreadableError:
        if not replace:
            raise
        sealed = encryption.new_digest_key()
    connection.execute(_WRITE, (sealed,))
    return sealed
