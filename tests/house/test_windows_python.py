"""The Windows interpreter of the tests is one: it refuses what Windows refuses."""

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.needs_wine, pytest.mark.timeout(600)]


def test_it_is_windows_and_refuses_to_remove_an_open_file(wine_python, tmp_path):
    held = tmp_path / "held.txt"
    code = f"""
import os
with open({wine_python.path(held)!r}, "w") as file:
    try:
        os.remove(file.name)
    except PermissionError as error:
        print(os.name, error.winerror)
"""
    assert wine_python.run("-c", code).stdout.split() == ["nt", "32"]


def test_a_script_imports_from_a_folder_of_ours(wine_python, tmp_path):
    (tmp_path / "ours.py").write_text("answer = 42\n")
    (tmp_path / "script.py").write_text("import sys, ours; print(ours.answer, sys.argv[1:])\n")
    done = wine_python.run(tmp_path / "script.py", "a", pythonpath=[tmp_path])
    assert done.stdout.split() == ["42", "['a']"]
