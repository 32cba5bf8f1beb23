"""The settings that both flavors share: out-of-memory retries, and the temporary directory.

`OomSettings` is a mix-in for a flavor's settings class and its config class, so that every value
can be given at registration (``zenml orchestrator register … --max_memory=8Gi``) and per pipeline
or step (``settings={"orchestrator": {"oom_retries": 2}}``). The fields' docstrings appear in the
dashboard.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePosixPath, PureWindowsPath
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    field_validator,
    model_validator,
)
from typing_extensions import Self

from mlops_ext.errors import MlopsExtError, nearest
from mlops_ext.memory import Quantity

__all__ = ["OomSettings", "TempDir"]

VolumeKind = Literal["emptyDir", "ephemeral", "claim", "hostPath"]

# Twenty doublings are a factor of a million: more is a slip of the keyboard.
_MAX_RETRIES = 20
# Each option of a volume, and the kinds that have it.
_BELONGS = {
    "size_limit": "emptyDir or ephemeral",
    "medium": "emptyDir",
    "storage_class": "ephemeral",
    "claim_name": "claim",
    "host_path": "hostPath",
}


def _sized(value: str) -> str:
    if not Quantity.parse(value):
        raise ValueError("expected more than 0")
    return value


def _absolute(value: str) -> str:
    if PurePosixPath(value).is_absolute() or PureWindowsPath(value).is_absolute():
        return value
    raise ValueError("temp_dir: expected an absolute path, such as /scratch")


Size = Annotated[str, AfterValidator(_sized)]
"""A size of at least one byte, as it was written."""
AbsolutePath = Annotated[str, AfterValidator(_absolute)]
ClaimName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")]


class TempDir(BaseModel):
    """Where a step keeps its temporary files; a plain path is enough on one machine."""

    path: AbsolutePath
    """Absolute path of the directory. TMPDIR is set to it, and it is made and written to before the
    step starts."""
    volume: VolumeKind | None = None
    """Kubernetes only: the volume to mount at the path. emptyDir: the node's disk or memory;
    ephemeral: a claim that lives as long as the pod; claim: an existing claim, named in claim_name;
    hostPath: a directory of the node, named in host_path. Unset: the path is the image's own."""
    size_limit: Size | None = None
    """Size of the volume, as a Kubernetes quantity such as 20Gi: the limit of an emptyDir, the
    request of an ephemeral claim (required there)."""
    medium: Literal["", "Memory"] = ""
    """Medium of an emptyDir. Memory: a tmpfs, which counts against the step's memory limit."""
    storage_class: str | None = None
    """Storage class of an ephemeral claim; unset: the default one."""
    claim_name: ClaimName | None = None
    """Name of the existing claim, for volume=claim."""
    host_path: AbsolutePath | None = None
    """Absolute path on the node, for volume=hostPath."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    @model_validator(mode="before")
    @classmethod
    def _plain_path(cls, data: Any) -> Any:
        return {"path": data} if isinstance(data, str) else data

    @classmethod
    def model_validate_json(cls, json_data: str | bytes | bytearray, **options: Any) -> Self:
        """As pydantic's, but ``--temp_dir=/scratch`` on ZenML's command line works too."""
        text = json_data if isinstance(json_data, str) else bytes(json_data).decode()
        if text.lstrip()[:1] not in {"{", '"'}:
            return cls(path=text)
        return super().model_validate_json(json_data, **options)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        """Each option belongs to one kind of volume; a kind that needs one must have it."""
        for name, kinds in _BELONGS.items():
            if getattr(self, name) and self.volume not in kinds.split(" or "):
                raise ValueError(f"{name} is for volume={kinds}, found volume={self.volume}")
        needs = {"claim": "claim_name", "hostPath": "host_path", "ephemeral": "size_limit"}
        needed = needs.get(self.volume or "")
        if needed and not getattr(self, needed):
            raise ValueError(f"volume={self.volume} needs {needed}")
        return self


class OomSettings(BaseModel):
    """Out-of-memory retries and the temporary directory, for a config or settings class."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    memory: Size | None = None
    """Memory limit of a step's first attempt, as a Kubernetes quantity such as 600Mi or 2G. Unset:
    from ResourceSettings(memory=…). With the policy history, what the step's earlier runs needed
    comes before both."""
    max_memory: Size | None = None
    """No attempt gets more than this (a Kubernetes quantity). Unset: as much as the largest node
    has."""
    oom_retries: int = Field(default=4, ge=0, le=_MAX_RETRIES)
    """How often a step killed for memory is run again with more. Counted apart from the step's own
    retry configuration. 0 switches it off. With the default, a step can reach 16 times its first
    memory."""
    memory_policy: str | None = None
    """Who decides how much memory an attempt gets: history (learns from earlier runs), double,
    fixed, or one that a plugin registers. Unset: history where NumPy is installed, else double."""
    when_no_memory: Literal["policy", "leave"] = "policy"
    """A step for which nobody asked for memory: policy lets the memory policy give it a limit where
    it can, leave runs it without one."""
    retry_memory_error: bool = False
    """Also retry a step that fails with a MemoryError of its own. Off, because an allocation that
    no limit refused fails again."""
    in_place: bool = True
    """Kubernetes only: resize the running pod before it is killed, where the cluster can (1.33 and
    later). Where it cannot, the step is run again."""
    temp_dir: TempDir | None = None
    """Temporary directory of the steps: a path, or a path with a volume to mount there. Unset:
    MLOPS_EXT_TEMP_DIR, else the system's."""

    @model_validator(mode="before")
    @classmethod
    def _misspelt(cls, data: Any) -> Any:
        """ZenML drops names it does not know; one that is nearly ours is a slip, so say so."""
        if isinstance(data, Mapping):
            for name in data:
                near = nearest(str(name), OomSettings.model_fields)
                if name not in cls.model_fields and near is not None:
                    raise ValueError(f"{name} is no setting; did you mean {near}?")
        return data

    @field_validator("memory_policy")
    @classmethod
    def _policy(cls, value: str | None) -> str | None:
        from mlops_ext.extensions.discovery import extensions

        if value is not None:
            try:
                extensions().memory_policy(value)
            except MlopsExtError as error:
                raise ValueError(str(error)) from error
        return value

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        memory, max_memory = (
            Quantity.parse(text) if text else None for text in (self.memory, self.max_memory)
        )
        if memory and max_memory and memory > max_memory:
            raise ValueError(f"memory = {self.memory} is more than max_memory = {self.max_memory}")
        return self
