"""The backend of programs and libraries that name none."""

import os
import subprocess
import sys
import textwrap

import pytest

SKLEARN = """
    import sys
    import numpy as np
    from sklearn.decomposition import PCA
    from sklearn.linear_model import LinearRegression
    from sklearn.pipeline import make_pipeline
    import joblib_ext
    x = np.random.default_rng(0).random((30, 4))
    pipe = make_pipeline(PCA(2), LinearRegression(), memory=sys.argv[1])
    pipe.fit(x, x[:, 0])
    print(pipe.predict(x).shape)
"""


def run(code, *arguments, **environment):
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    ).stdout


@pytest.mark.parametrize("backend", ["local", "shared"])
def test_a_pipeline_of_scikit_learn_gets_the_backend_of_the_settings(tmp_path, backend):
    pytest.importorskip("sklearn")
    assert run(SKLEARN, tmp_path, MLOPS_EXT_JOBLIB_BACKEND=backend) == "(30,)\n"
    entries = [path for path in tmp_path.rglob("mlops-shared-1/items/*/*/*/*") if path.is_file()]
    assert bool(entries) is (backend == "shared")
    assert bool(list(tmp_path.rglob("output.pkl"))) is (backend == "local")


def test_without_the_setting_nothing_changes(tmp_path):
    code = "import sys, joblib_ext, joblib; print(joblib.Memory(sys.argv[1]).store_backend)"
    assert run(code, tmp_path).startswith("FileSystemStoreBackend")
    assert run(code, tmp_path, MLOPS_EXT_JOBLIB_BACKEND="shared").startswith("SharedStoreBackend")
