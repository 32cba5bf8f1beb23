"""What the reference pages show of a class: an enum's members, nothing that only Python calls."""

from typing import Any

import griffe

_INTERNAL = ("__post_init__", "__reduce__", "__hash__", "after_fork")
"""Methods with a docstring that no user calls."""


class ReferencePages(griffe.Extension):
    """Members of an enum are shown with their values; what users never call is left out."""

    def on_class_members(self, *, cls: griffe.Class, **_: Any) -> None:
        """Drop `_INTERNAL`; give an enum's member that has no text its value as text."""
        for name in _INTERNAL:
            cls.members.pop(name, None)
        if not any("Enum" in str(base) for base in cls.bases):
            return
        for member in cls.members.values():
            if isinstance(member, griffe.Attribute) and member.docstring is None:
                text = str(member.value).strip("'\"")
                member.docstring = griffe.Docstring(f"{text}.", parent=member)
