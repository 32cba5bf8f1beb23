"""The guard on one pipeline: in force within the launch, gone after it, never there twice."""

import subprocess
import sys

import pytest

pytest.importorskip("clearml")

from clearml import PipelineController, PipelineDecorator

from clearml_ext.patches import controller_guard, guarded
from clearml_ext.plugin import PATCHES
from mlops_ext.patching import PatchSet


def test_the_guard_stands_on_one_pipeline_and_is_gone_afterwards():
    pipeline = PipelineController.__new__(PipelineController)
    with guarded(pipeline):
        assert "_prepare_pipeline" in vars(pipeline)
        assert "_prepare_pipeline" not in vars(PipelineDecorator)
    assert vars(pipeline) == {}
    with guarded(PipelineDecorator):
        assert PipelineDecorator._prepare_pipeline is not PipelineController._prepare_pipeline
    assert "_prepare_pipeline" not in vars(PipelineDecorator)


def test_a_pipeline_of_a_patched_sdk_is_not_guarded_twice():
    pipeline = PipelineController.__new__(PipelineController)
    with PatchSet(PATCHES), guarded(pipeline):
        assert vars(pipeline) == {}
    with guarded(pipeline), guarded(pipeline):
        assert pipeline._prepare_pipeline.__wrapped__ is PipelineController._prepare_pipeline


def test_the_replacement_keeps_the_original_within_reach():
    def original(self, *callbacks):
        """The docstring of the SDK."""

    assert controller_guard(original).__wrapped__ is original


def test_a_refusal_that_ends_a_script_is_its_message_and_no_traceback(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "from clearml_ext.check.results import Answer, Result\n"
        "from clearml_ext.guard import judge\n"
        "from clearml_ext.settings import ClearmlSettings\n"
        "found = Result(target='nightly', answer=Answer.UNSAFE, reasons=('because',))\n"
        "try:\n"
        "    raise ValueError('something before')\n"
        "except ValueError:\n"
        "    judge(found, ClearmlSettings(), ())\n"
    )
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "nightly was not launched: it can wait forever\n  because" in done.stderr
    assert "Traceback" not in done.stderr
    assert "something before" not in done.stderr
