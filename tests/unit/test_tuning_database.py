"""A study's database: URLs that cannot be used, and one that is lost on the way."""

from __future__ import annotations

from pathlib import Path

import optuna
import pytest
from sqlalchemy.engine import make_url

from flows.tune import tune as tune_flow
from macflow.tuning.database import answering, open_database, shown
from macflow.types import ConfigError, DataError

SECRET = "a-word-to-hide"  # noqa: S105


@pytest.mark.parametrize(
    ("url", "words"),
    [
        (f"postgresql+psycopg://me:{SECRET}@127.0.0.1:1/it", "me:***@127.0.0.1:1/it: connection failed"),
        (f"postgresql+psycopg://me@127.0.0.1:1/it?password={SECRET}", "me@127.0.0.1:1/it: connection failed"),
        (f"postgresql+psycopg://me:{SECRET}@127.0.0.1:{SECRET}/studies", "must be a URL"),
        (f"postgresql+other://me:{SECRET}@host/studies", "no driver for 'postgresql+other'"),
        (f"mysql://me:{SECRET}@host/studies", "no driver for 'mysql'"),
        (f"redis://:{SECRET}@host/0", "no driver for 'redis'"),
        (SECRET, "must be a URL"),
        ("sqlite:////nowhere/at/all.db", "sqlite:////nowhere/at/all.db: unable to open database file"),
    ],
)  # fmt: skip
def test_a_database_that_cannot_be_opened_is_named_without_its_password(url: str, words: str) -> None:
    with pytest.raises(ConfigError) as raised:
        open_database(url)
    assert str(raised.value).startswith("`--storage`: ")
    assert words in str(raised.value)
    assert SECRET not in str(raised.value)
    # What a traceback would show beside it.
    assert raised.value.__suppress_context__


def test_what_is_shown_of_a_url_holds_no_password_wherever_it_stood() -> None:
    url = make_url(f"postgresql+psycopg://me:{SECRET}@host/studies?sslpassword={SECRET}")
    assert shown(url) == "postgresql+psycopg://me:***@host/studies"


# Optuna's thread that signs the trial meets the same end.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_database_that_is_lost_ends_the_study_with_one_message(tmp_path: Path) -> None:
    file = tmp_path / "study.db"
    storage = open_database(f"sqlite:///{file}")
    study = optuna.create_study(storage=storage)

    def losing(trial: optuna.Trial) -> float:
        for path in tmp_path.iterdir():
            path.write_bytes(b"no database any more" * 1000)
        return trial.suggest_float("x", 0, 1)

    with pytest.raises(DataError, match=r"study\.db: .*; the same command goes on from the last finished"):
        with answering(storage):
            study.optimize(losing, n_trials=1)
    storage.engine.dispose()


def test_other_errors_pass_through(tmp_path: Path) -> None:
    storage = open_database(f"sqlite:///{tmp_path}/study.db")
    with pytest.raises(ZeroDivisionError), answering(storage):
        print(1 / 0)
    storage.engine.dispose()


@pytest.mark.parametrize(
    "url", [f"postgresql+psycopg://me:{SECRET}@host/x", f"postgresql+psycopg://host/x?password={SECRET}"]
)
def test_the_flow_takes_no_password(url: str) -> None:
    state = tune_flow.fn(storage=url)
    assert state.is_failed()
    assert state.message is not None
    assert state.message.startswith("storage: must hold no password")
    assert SECRET not in state.message
