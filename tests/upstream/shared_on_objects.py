"""A pytest plugin: joblib's own tests meet the shared backend, with each folder in a bucket."""

import os
import tempfile

import joblib._store_backends
import joblib.memory

from joblib_ext.backend import SharedStoreBackend

pytest_plugins = ["run_coroutines"]


class OnObjects(SharedStoreBackend):
    """Keeps what would be in a folder in a bucket of the server that the environment names."""

    def configure(self, location, verbose=1, backend_options=None):
        access = {
            "endpoint": f"http://{os.environ['OBJECT_SERVER']}",
            "access_key_id": "AK",
            "secret_access_key": "SECRETKEY",
            "region": "us-east-1",
            "client_options": {"allow_http": True},
        }
        options = {
            **(backend_options or {}),
            "storage_options": access,
            "local_tier": tempfile.gettempdir(),
        }
        super().configure(f"s3://tests{os.path.abspath(location)}", verbose, options)  # noqa: PTH100


joblib._store_backends.FileSystemStoreBackend = OnObjects
joblib.memory.FileSystemStoreBackend = OnObjects
joblib.memory._STORE_BACKENDS["local"] = OnObjects
