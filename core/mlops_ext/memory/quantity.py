"""Memory sizes, written as Kubernetes writes them and exact to the byte."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any, SupportsIndex

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
_FORM = "it has another form: suffixes are Ki, Mi, Gi and k, M, G, without a space, without the B"
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
        return cls(math.ceil(min(size, _LARGEST)))

    @classmethod
    def parse(cls, text: Any) -> Self:
        """The size that *text* means; a part of a byte is rounded up, as Kubernetes does.

        ``m`` is milli, as Kubernetes has it: ``128974848000m`` is 128974848 bytes. Less than a
        whole byte (``100m``) is refused, since it is always a slip for ``100M``. A plain number
        counts bytes.

        Raises:
            QuantityError: *text* is no quantity, negative, or too large.
        """
        if not isinstance(text, str):
            number = as_number(text, -1e300, 1e300)
            if number is None:
                raise QuantityError(text, "it is not a finite number")
            return cls(text if isinstance(text, int) else math.ceil(number))
        stripped = text.strip()
        match = _PATTERN.fullmatch(stripped) if len(stripped) <= _DIGITS else None
        if match is None or not (match["whole"] or match["part"]):
            raise QuantityError(text, _FORM)
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

    @classmethod
    def of(cls, value: Any) -> Self | None:
        """The size that *value* means, of whatever type it is; None if it means none."""
        try:
            return cls.parse(value)
        except Exception:  # noqa: BLE001 - it may be anything
            return None

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


def as_number(value: Any, least: float, most: float) -> float | None:
    """*value* as a float if it is a number from *least* to *most*, else None; text never is."""
    if isinstance(value, str | bytes | bool):
        return None
    try:
        number = float(value)
    except Exception:  # noqa: BLE001 - it may be anything
        return None
    return number if least <= number <= most else None


_MULTIPLES = {**_BINARY, "Ei": 1024**6, **_DECIMAL}
