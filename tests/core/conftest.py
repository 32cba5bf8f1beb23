"""Fixtures that several unit tests share."""

import pytest

from mlops_ext import tempdirs


@pytest.fixture
def fresh_tempdirs(monkeypatch):
    """As in a process that has made no temporary directory and warned of none."""
    monkeypatch.setattr(tempdirs, "_warned", set())
    monkeypatch.setattr(tempdirs, "_open", {})
    monkeypatch.delenv("MLOPS_EXT_TEMP_DIR", raising=False)
