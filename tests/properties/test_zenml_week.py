"""Pipelines for a week of virtual time on the double, among drains, outages, evictions, resizes.

No step fails that fits the cluster, and none waits without saying so. ``-m slow`` runs more weeks.
"""

import logging

import pytest

pytest.importorskip("kubernetes")

from tests.support.zenml_week import simulate

DAY_S = 86400.0


@pytest.fixture(autouse=True)
def quiet(caplog):
    caplog.set_level(logging.CRITICAL)


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.integration)])
def test_a_day_of_pipelines_ends_well(seed, monkeypatch):
    simulate(seed, monkeypatch, runs=3, span_s=DAY_S)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", range(100, 140))
def test_a_week_of_pipelines_ends_well(seed, monkeypatch):
    simulate(seed, monkeypatch, runs=30, span_s=7 * DAY_S)
