"""A study in a database that processes and machines share; the secrets in its URL are never said."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from optuna.exceptions import ExperimentalWarning, StorageInternalError
from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import NoSuchModuleError, SQLAlchemyError

from macflow.types import ConfigError, DataError

# A trial under way is signed this often; unsigned for the longer time, it is run again by who asks next.
HEARTBEAT_SECONDS = 10
GIVEN_UP_AFTER_SECONDS = 60
FAILURES = (SQLAlchemyError, StorageInternalError)
# Where libpq takes a password from, beside the URL's own place for it.
SECRET_OPTIONS = ("password", "sslpassword")


def open_database(text: str) -> RDBStorage:
    """Open the database at the URL `text`, with Optuna's tables made where there are none.

    Raises:
        ConfigError: this is no URL of a database, its driver is not installed, or it cannot be reached.
    """
    try:
        url = make_url(text)
    except (SQLAlchemyError, ValueError):
        # Not shown: where it cannot be read, nobody knows which part of it is a password.
        raise ConfigError(
            "`--storage`: must be a URL such as postgresql+psycopg://USER@HOST/DATABASE or sqlite:///FILE "
            "(what was received is not shown, a password may be in it)"
        ) from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            return RDBStorage(
                text,
                heartbeat_interval=HEARTBEAT_SECONDS,
                grace_period=GIVEN_UP_AFTER_SECONDS,
                heartbeat_stale_trial_callback=RetryHeartbeatStaleTrialCallback(),
            )
    except (ImportError, NoSuchModuleError):
        raise ConfigError(
            f"`--storage`: no driver for {url.drivername!r} is installed; for PostgreSQL: "
            f"pip install 'macflow[postgres]', and postgresql+psycopg://... (received {shown(url)})"
        ) from None
    except (*FAILURES, RuntimeError) as error:
        raise ConfigError(f"`--storage`: {shown(url)}: {_reason(error, url)}") from None


@contextmanager
def answering(storage: RDBStorage) -> Iterator[None]:
    """Say in one message that the database no longer answers.

    Raises:
        DataError: it does not.
    """
    try:
        yield
    except Exception as error:
        # Optuna's own clean-up fails for the same reason and hides it behind another error.
        lost = next((one for one in _chain(error) if isinstance(one, FAILURES)), None)
        if lost is None:
            raise
        url = storage.engine.url
        raise DataError(
            f"{shown(url)}: {_reason(lost, url)}; the same command goes on from the last finished trial"
        ) from None


def shown(url: URL) -> str:
    """Return the URL without password and options, which may hold one too."""
    return url.set(query={}).render_as_string(hide_password=True)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _reason(error: BaseException, url: URL) -> str:
    """Return the driver's own words, without what is secret."""
    while error.__cause__ is not None:
        error = error.__cause__
    said = " ".join(str(error).split())
    options = [value for name in SECRET_OPTIONS for value in url.normalized_query.get(name, ())]
    for secret in filter(None, [url.password, *options]):
        said = said.replace(secret, "***")
    return said
