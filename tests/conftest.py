"""What every test shares: quiet Lightning, empty working directory."""

from __future__ import annotations

import logging

import pytest
from helpers.left_out import left_out

import lightning_calib.fit.messages  # noqa: F401 - it gives our logger its level


def pytest_collection_modifyitems(items):
    for item in items:
        reason = left_out(item.nodeid.removeprefix("tests/"))
        if reason is not None:
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(autouse=True)
def _own_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def _quiet_lightning():
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)


@pytest.fixture(autouse=True)
def _our_logger_is_left_as_it_was():
    logger = logging.getLogger("lightning_calib")
    before = logger.level
    yield
    assert logger.level == before, "set it by caplog, which puts it back"


@pytest.fixture
def said(caplog):
    """The lines of our logger, in order."""
    caplog.set_level(logging.INFO, logger="lightning_calib")

    def lines() -> list[str]:
        return [record.getMessage() for record in caplog.records if record.name.startswith("lightning_calib")]

    return lines
