"""Memory sizes, written as Kubernetes writes them and exact to the byte."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, SupportsIndex

from mlops_ext.errors import QuantityError

if TYPE_CHECKING:
    from typing_extensions import Self

_PATTERN = re.compile(
    r"(?P<sign>[+-]?)(?P<whole>[0-9]*)(?:\.(?P<part>[0-9]*))?"
    r"(?:(?P<suffix>[KMGTPE]i|[numkMGTPE])|[eE](?P<exponent>[+-]?[0-9]{1,3}))?"
)
_BINARY = {suffix: 1024**power for power, suffix in enumerate(("", "Ki", "Mi", "Gi", "Ti", "Pi"))}
_DECIMAL = {suffix: 1000**power for power, suffix in enumerate(("", "k", "M", "G", "T", "P", "E"))}
_SMALL = {"n": 9, "u": 6, "m": 3}
# The API server keeps quantities in an int64.
_LARGEST = 2**63 - 1
# No size within int64 needs more; refused here so that a hostile text costs nothing.
_DIGITS = 60


class Quantity(int):
    """A memory size in bytes: an int that reads and prints Kubernetes quantities.

    ``str()`` gives the shortest spelling that means exactly these bytes, so
    ``Quantity.parse(str(q)) == q`` for every size. Arithmetic gives plain ints.

    Raises:
        QuantityError: the size is negative or beyond the int64 that Kubernetes keeps.

    Source: k8s.io/apimachinery, pkg/api/resource/quantity.go (grammar in its package comment).
    """

    __slots__ = ()

    def __new__(cls, size: SupportsIndex) -> Self:
        """The size of *size* bytes."""
        number = int(size)
        if number < 0:
            raise QuantityError(number, "it is negative")
        if number > _LARGEST:
            raise QuantityError(number, "it is more than 2**63-1 bytes")
        return super().__new__(cls, number)

    @classmethod
    def saturated(cls, size: float) -> Self:
        """*size* rounded up to a byte, and the largest quantity for what is beyond it.

        For sizes that were computed: cgroups without a limit report nearly 2**63 bytes.
        """
        return cls(min(math.ceil(size), _LARGEST))

    @classmethod
    def parse(cls, text: str | float) -> Self:
        """The size that *text* means; a part of a byte is rounded up, as Kubernetes does.

        ``m`` is milli, as Kubernetes has it: ``128974848000m`` is 128974848 bytes. Less than a
        whole byte (``100m``) is refused, since it is always a slip for ``100M``. A plain number
        counts bytes.

        Raises:
            QuantityError: *text* is no quantity, negative, or too large.
        """
        if isinstance(text, bool):
            raise QuantityError(text, "true and false are no sizes")
        if isinstance(text, int):
            return cls(text)
        if isinstance(text, float):
            if not math.isfinite(text):
                raise QuantityError(text, "it is not finite")
            return cls(math.ceil(text))
        if not isinstance(text, str):
            raise QuantityError(text, f"it is a {type(text).__name__}")
        return cls._parse_text(text)

    @classmethod
    def _parse_text(cls, text: str) -> Self:
        stripped = text.strip()
        match = _PATTERN.fullmatch(stripped) if len(stripped) <= _DIGITS else None
        if match is None or not (match["whole"] or match["part"]):
            raise QuantityError(text, _what_is_wrong(stripped))
        part = match["part"] or ""
        digits = int((match["whole"] or "") + part)
        if match["sign"] == "-" and digits:
            raise QuantityError(text, "it is negative")
        suffix = match["suffix"] or ""
        shift = len(part) - int(match["exponent"] or 0) + _SMALL.get(suffix, 0)
        if -shift > _DIGITS and digits:
            raise QuantityError(text, "it is more than 2**63-1 bytes")
        scaled = digits * _MULTIPLES.get(suffix, 1) * 10 ** max(-shift, 0)
        divisor = 10 ** max(shift, 0)
        if suffix in _SMALL and 0 < scaled < divisor:
            hint = f"; did you mean {stripped[:-1]}M?" if suffix == "m" else ""
            raise QuantityError(text, f"it is less than a byte ({suffix} is a fraction){hint}")
        try:
            return cls(-(-scaled // divisor))
        except QuantityError as error:
            raise QuantityError(text, "it is more than 2**63-1 bytes") from error

    def __str__(self) -> str:
        """The shortest exact spelling; binary suffixes win a tie."""
        size = int(self)
        if not size:
            return "0"
        spellings = [
            f"{size // multiple}{suffix}"
            for suffix, multiple in _MULTIPLES.items()
            if size % multiple == 0
        ]
        return min(spellings, key=len)

    def __repr__(self) -> str:
        return f"Quantity({str(self)!r})"

    @property
    def human(self) -> str:
        """A rounded spelling for sentences, such as ``1.5Gi``; not exact."""
        size = float(self)
        for suffix in reversed(_BINARY):
            if suffix and size >= _BINARY[suffix]:
                number = size / _BINARY[suffix]
                return f"{number:.3g}{suffix}" if number < 999.5 else f"{number:.0f}{suffix}"  # noqa: PLR2004
        return str(int(size))


_MULTIPLES = {**_BINARY, "Ei": 1024**6, **_DECIMAL}


def _what_is_wrong(text: str) -> str:
    if re.fullmatch(r"[0-9.]+\s*[kmgtpe]i?b", text, re.IGNORECASE):
        return "Kubernetes writes sizes without the B"
    if re.fullmatch(r"[0-9.]+\s*K", text):
        return "kilo is a small k, kibi is Ki"
    if re.fullmatch(r"[0-9]+(\.[0-9]+)?\s*[kmgtpe]i?", text, re.IGNORECASE):
        return "the suffixes are Ki, Mi, Gi, Ti, Pi, Ei and k, M, G, T, P, E, without a space"
    return "it is empty" if not text else "it has another form"
