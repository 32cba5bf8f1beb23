"""Names of objects: as on a file system, but of characters that every store and tool takes."""

from __future__ import annotations

from urllib.parse import unquote

from joblib_ext.stores.layout import Layout, shortened


class ObjectLayout(Layout):
    """Where things stand below the location; paths are the URLs of objects, without options."""

    def function(self, func_id: str) -> str:
        """The folder of all versions of a function."""
        return f"{self.items}/{shortened(func_id, safe='').replace('%', '=')}"  # quote leaves no =

    def title(self, folder: str) -> str:
        """The name under which a folder's function is shown."""
        return unquote(folder.replace("=", "%"))
