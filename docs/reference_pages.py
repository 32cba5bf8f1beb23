"""What the reference pages show of a class: an enum's members, and no ``__post_init__``."""

from typing import Any

import griffe


class ReferencePages(griffe.Extension):
    """Members of an enum are shown with their values; what only checks values is left out."""

    def on_class_members(self, *, cls: griffe.Class, **_: Any) -> None:
        """Drop ``__post_init__``; give an enum's member that has no text its value as text."""
        cls.members.pop("__post_init__", None)
        if not any("Enum" in str(base) for base in cls.bases):
            return
        for member in cls.members.values():
            if isinstance(member, griffe.Attribute) and member.docstring is None:
                text = str(member.value).strip("'\"")
                member.docstring = griffe.Docstring(f"{text}.", parent=member)
