"""Errors: one line that says what to do, and whole on the other side of a pickle."""

import multiprocessing
import pickle
from pathlib import Path

import pytest

from mlops_ext import errors
from mlops_ext.files import RemovalError, RemovalReason

EXAMPLES = [
    errors.MlopsExtError("as it is"),
    errors.SettingsError("memory.growth", 0.5, "more than 1"),
    errors.TopologyError("slots", -1, "a whole number"),
    errors.InvalidSettingsError("memory", ["growth"], "growth = 0.5: expected 1 or more"),
    errors.UnknownSettingError("tool.mlops-ext.x", "temp_dirs", ["temp_dir"]),
    errors.QuantityError("3GB", "no B"),
    errors.HistoryError("/data/history.sqlite", "locked"),
    errors.UnknownNameError("framework", "kserv", ["kserve"]),
    errors.UnsupportedVersionError("zenml", "9", "<1"),
    errors.MissingExtraError("numpy", "history"),
    errors.PatchConflictError("a.b", "a:b", "an object of a", "missing"),
    errors.PluginError("acme", "acme-ext", ValueError("broken")),
    errors.TempDirError("/scratch", "full"),
]


def test_every_error_has_an_example():
    assert {type(error).__name__ for error in EXAMPLES} == set(errors.__all__)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("error", EXAMPLES, ids=lambda e: type(e).__name__)
def test_an_error_survives_pickling_with_its_message_and_subject(error, protocol):
    again = pickle.loads(pickle.dumps(error, protocol))
    assert type(again) is type(error)
    assert (str(again), again.args) == (str(error), error.args)
    assert getattr(again, "name", None) == getattr(error, "name", None)
    assert {k: str(v) for k, v in vars(again).items()} == {
        k: str(v) for k, v in vars(error).items()
    }


def raise_in_worker(_):
    raise errors.TempDirError("/scratch", "full")


def test_an_error_comes_out_of_a_worker_process_as_it_is():
    with (
        multiprocessing.get_context("fork").Pool(1) as pool,
        pytest.raises(errors.TempDirError, match="/scratch: full") as caught,
    ):
        pool.map_async(raise_in_worker, [1]).get(60)
    assert caught.value.path == "/scratch"


@pytest.mark.parametrize(
    ("name", "known", "near"),
    [
        ("kserv", ["kserve", "zenml"], "kserve"),
        ("KSERVE", ["kserve"], "kserve"),
        ("kserve", ["KServe"], "KServe"),
        ("something else", ["kserve"], None),
        ("x", [], None),
    ],
)
def test_the_nearest_name_is_found_whatever_its_case(name, known, near):
    assert errors.nearest(name, known) == near


def test_an_unknown_setting_does_not_show_its_value():
    error = errors.UnknownSettingError("tool.mlops-ext.tokn", "tokn", ["token"])
    assert error.value is None
    assert str(error) == "tool.mlops-ext.tokn is not a setting; did you mean token?"


def test_an_unknown_name_without_any_known_one_says_so():
    assert "there is no queue at all" in str(errors.UnknownNameError("queue", "gpu", []))


class UnportableError(Exception):
    """Another package's error, whose arguments are not those of its ``__init__``."""

    def __init__(self, code, text):
        super().__init__(text)
        self.code = code


def test_an_error_whose_cause_cannot_be_pickled_keeps_the_rest():
    error = errors.PluginError("x", "dist", UnportableError(1, "because"))
    again = pickle.loads(pickle.dumps(error))
    assert str(again) == str(error)
    assert (again.plugin, again.distribution) == ("x", "dist")
    assert str(again.cause) == "UnportableError: because"
    removal = RemovalError(Path("/a"), RemovalReason.BUSY, OSError(16, "busy"))
    assert pickle.loads(pickle.dumps(removal)).reason is RemovalReason.BUSY
