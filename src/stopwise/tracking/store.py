"""Where MLflow keeps its record: the address, the sqlite database and a connection that never waits for long.

With ``tracking_uri: null`` the record is a sqlite database under the results, created once and whole (built under a
temporary name, then renamed: processes that race MLflow's own first initialisation break a database for good). Any
other address, such as ``http://127.0.0.1:5000``, is used as it is. MLflow is imported inside functions (2 s).
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sqlite3
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from filelock import FileLock

from stopwise.artifacts.tables import TEMPORARY_PREFIX, file_mode

EXPERIMENT = "stopwise"
DATABASE = "mlflow.db"
SCHEMES = ("http", "https", "sqlite", "postgresql", "mysql", "mssql")
SQLITE = "sqlite:///"
LOCK_SECONDS = 20.0  # MLflow's own busy timeout for sqlite: waiting longer would hold up a finished pipeline
PEER_SECONDS = 120.0  # another pipeline of this folder that is recording right now: it ends by itself

# These would send a run into another experiment or run, or to another server, behind the configuration's back.
HIJACKING = (
    "MLFLOW_ACTIVE_MODEL_ID",
    "MLFLOW_ENABLE_ASYNC_LOGGING",
    "MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING",
    "MLFLOW_EXPERIMENT_ID",
    "MLFLOW_EXPERIMENT_NAME",
    "MLFLOW_READ_REPLICA_BACKEND_STORE_URI",
    "MLFLOW_REGISTRY_URI",
    "MLFLOW_RUN_CONTEXT",
    "MLFLOW_RUN_ID",
    "MLFLOW_TRACKING_URI",
)
# Defaults that a user may override: MLflow would retry a server that is down for minutes. Telemetry is never sent.
PATIENCE = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}


@dataclass(frozen=True)
class Store:
    """An open MLflow store: the client and the id of the experiment that holds every run."""

    client: Any
    experiment_id: str


def resolve_uri(configured: str | None, folder: str | os.PathLike) -> str:
    """Return the tracking address: the configured one, or the sqlite database of ``folder`` when it is null.

    ``env`` is what the environment variable MLFLOW_TRACKING_URI holds.

    Raises ValueError for an address of another kind (MLflow's file store raises on its own in this version).
    """
    if configured is None:
        return SQLITE + str(Path(folder).resolve() / DATABASE)
    if configured == "env":
        configured = os.environ.get("MLFLOW_TRACKING_URI")
        if not configured:
            raise ValueError(
                "mlflow.tracking_uri: 'env' asks for MLFLOW_TRACKING_URI, which is not set; allowed: export it, or null"
            )
    scheme = urlsplit(str(configured)).scheme.partition("+")[0]
    if scheme not in SCHEMES:
        raise ValueError(
            f"mlflow.tracking_uri: {configured!r} is not an address of {', '.join(SCHEMES)}; "
            "null keeps the record in sqlite under the results"
        )
    return str(configured).rstrip("/")


def database_path(uri: str) -> Path | None:
    """Return the file of a sqlite address, None for any other address."""
    return Path(uri.removeprefix(SQLITE)).resolve() if uri.startswith(SQLITE) else None


def create_database(uri: str) -> Path | None:
    """Create the sqlite database of ``uri`` and its experiment, once; returns its path, None for other addresses.

    Idempotent and safe to call from several processes of one machine (a lock file beside the database). About 5 s the
    first time, nothing after. MLflow's artifacts go to the folder ``artifacts`` beside the database.
    """
    path = database_path(uri)
    if path is None or path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(_lock_path(path), timeout=PEER_SECONDS), mlflow_environment():
        for leftover in path.parent.glob(f"{TEMPORARY_PREFIX}*{path.name}*"):
            leftover.unlink()
        if not path.exists():
            _build(path)
    return path


def _build(path: Path) -> None:
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    handle, name = tempfile.mkstemp(prefix=TEMPORARY_PREFIX, suffix="-" + path.name, dir=path.parent)
    os.close(handle)
    artifacts = str(path.parent / "artifacts")
    try:
        store = SqlAlchemyStore(SQLITE + name, artifacts)
        store.create_experiment(EXPERIMENT, artifacts)
        store.engine.dispose()
        Path(name).chmod(file_mode())
        Path(name).replace(path)
    finally:
        Path(name).unlink(missing_ok=True)


@contextlib.contextmanager
def mlflow_environment() -> Iterator[None]:
    """Run a block without the MLFLOW_* variables that redirect runs, without telemetry and without MLflow's chatter."""
    saved = {key: value for key, value in os.environ.items() if key.startswith("MLFLOW_")}
    loggers = [(logging.getLogger(name), level) for name, level in _QUIET.items()]
    levels = [logger.level for logger, _ in loggers]
    for key in HIJACKING:
        os.environ.pop(key, None)
    for key, value in PATIENCE.items():
        os.environ.setdefault(key, value)
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    try:
        import mlflow  # noqa: F401  (the import sets its own log levels: it goes first)

        for logger, level in loggers:
            logger.setLevel(level)
        yield
    finally:
        for (logger, _), level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        for key in [key for key in os.environ if key.startswith("MLFLOW_")]:
            del os.environ[key]
        os.environ.update(saved)


# A locked database or a refused connection comes back as an exception; MLflow also logs it as a page of traceback.
_QUIET = {"mlflow": logging.CRITICAL, "alembic": logging.ERROR, "urllib3": logging.ERROR}


@contextlib.contextmanager
def open_store(uri: str) -> Iterator[Store]:
    """Yield an open store; for sqlite, one process at a time.

    Raises whatever says that it cannot be used now (filelock.Timeout, sqlite3.Error, MlflowException), within about
    ``LOCK_SECONDS`` for a database that a stranger has locked and two connection attempts for a server that is down.
    """
    path = create_database(uri)
    lock = FileLock(_lock_path(path), timeout=PEER_SECONDS) if path else contextlib.nullcontext()
    with lock:
        if path:
            _check_database(path)  # before the import, which takes longer
        with mlflow_environment():
            from mlflow import MlflowClient

            client = MlflowClient(tracking_uri=uri, registry_uri=uri)
            yield Store(client, _experiment(client, path))


def _lock_path(path: Path) -> str:
    return f"{path}.lock"


def _check_database(path: Path) -> None:
    """Raise sqlite3.Error when the database is locked or damaged; follow it when the results were moved.

    MLflow stores absolute artifact paths, so that a moved checkout would write into its old place.
    """
    place = str(path.parent / "artifacts")
    with contextlib.closing(
        sqlite3.connect(f"file:{quote(str(path))}?mode=rw", uri=True, timeout=LOCK_SECONDS, isolation_level=None)
    ) as database:
        database.execute("BEGIN IMMEDIATE")
        row = database.execute("SELECT artifact_location FROM experiments WHERE name = ?", (EXPERIMENT,)).fetchone()
        if row and row[0] and row[0] != place and row[0].startswith("/"):
            old = row[0]
            database.execute("UPDATE experiments SET artifact_location = ? WHERE name = ?", (place, EXPERIMENT))
            database.execute(
                "UPDATE runs SET artifact_uri = ? || substr(artifact_uri, ?) WHERE substr(artifact_uri, 1, ?) = ?",
                (place, len(old) + 1, len(old) + 1, old + "/"),
            )
        database.execute("COMMIT")


def _experiment(client: Any, path: Path | None) -> str:
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(EXPERIMENT)
    if found is None:
        try:
            return client.create_experiment(
                EXPERIMENT, artifact_location=str(path.parent / "artifacts") if path else None
            )
        except MlflowException:  # another process was first
            found = client.get_experiment_by_name(EXPERIMENT)
            if found is None:
                raise
    if found.lifecycle_stage != "active":
        client.restore_experiment(found.experiment_id)
    return found.experiment_id


def is_unavailable(error: BaseException) -> bool:
    """Return whether an error says that the whole store cannot be used now, so that trying the next step is futile."""
    import requests

    if isinstance(error, sqlite3.OperationalError | requests.RequestException | ConnectionError | TimeoutError):
        return True
    if getattr(error, "error_code", None) == "TEMPORARILY_UNAVAILABLE":
        return True
    return "failed with exception" in str(error) and "API request to" in str(error)


def without_credentials(text: str) -> str:
    """Return a text without the user and password of the addresses in it."""
    return re.sub(r"//[^/@\s]+@", "//", text)


def reason(error: BaseException) -> str:
    """Return an error as one short line, without credentials of an address."""
    text = " ".join(str(error).split()) or type(error).__name__
    text = without_credentials(text)
    return text if len(text) <= 300 else text[:297] + "..."
