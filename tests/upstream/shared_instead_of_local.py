"""A pytest plugin: joblib's own tests meet the shared backend wherever they ask for ``local``."""

import joblib._store_backends
import joblib.memory

from joblib_ext.backend import SharedStoreBackend

pytest_plugins = ["run_coroutines"]

joblib._store_backends.FileSystemStoreBackend = SharedStoreBackend
joblib.memory.FileSystemStoreBackend = SharedStoreBackend
joblib.memory._STORE_BACKENDS["local"] = SharedStoreBackend
