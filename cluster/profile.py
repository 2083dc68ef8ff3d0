"""A profile says WHERE things run and never WHAT is computed, so nothing in it may reach the key of an artifact.

Another profile must give the same artifacts: that is why identity (the recipe) and execution (this file) share no type.
Bad values are refused here, in one line and before anything heavy is imported.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator

from cluster.documents import DocumentError, load_yaml, one_line

CHECKOUT = Path(__file__).resolve().parent.parent
PROFILES = CHECKOUT / "infra" / "profiles"
SQLITE = "sqlite:///"

Url = Annotated[str, Field(pattern=r"^https?://[^\s/@]+(/\S*)?$")]  # no userinfo: secrets come by environment


def home() -> Path:
    """Where services, logs, and by default store and scratch live: $WINNOW_HOME, or the checkout's `.winnow`."""
    found = Path(os.environ.get("WINNOW_HOME") or CHECKOUT / ".winnow").expanduser().resolve()
    if "?" in str(found):
        raise ValueError(f"WINNOW_HOME {found}: no database address can hold a '?'; choose another folder")
    return found


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)

    @field_validator("*", mode="before")
    @classmethod
    def _switches(cls, value: object, info: ValidationInfo) -> object:
        name, given = str(info.field_name), isinstance(value, bool)
        if name == "compile" and not given and value != "auto":
            raise ValueError("should be true, false or 'auto'")
        words = any(isinstance(choice, str) for choice in get_args(cls.model_fields[name].annotation))  # pydantic lists them
        if given and name != "compile" and not words:  # it would pass for the number 1
            raise ValueError("should be 0, 1, 2 or 3" if name == "zero" else "should be no true or false")
        return value


class RayTarget(_Section):
    """`address` null means the embedded head (or the one of `winnow up`); otherwise a dashboard URL, token by env."""

    address: Url | None = None
    """Dashboard of a Ray cluster (http://HOST:8265); none starts Ray on this machine. The token comes by environment."""


class PrefectTarget(_Section):
    api_url: Url | None = None
    """API of a Prefect server; none starts one on this machine."""


def tracking_address(value: str) -> str:
    """The address of an MLflow, a file's made absolute. Raises ValueError where it begins like none, or holds a login."""
    if not value.startswith(("http://", "https://", SQLITE, "postgresql")):
        raise ValueError(f"should start with one of http://, https://, {SQLITE}, postgresql")
    if value.startswith("http") and "@" in value:
        raise ValueError("should hold no login; MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD do")
    return f"{SQLITE}{Path(value.removeprefix(SQLITE)).expanduser().resolve()}" if value.startswith(SQLITE) else value


class MlflowTarget(_Section):
    tracking_uri: str | None = None
    """Tracking server or database of MLflow; none starts one on this machine."""

    @field_validator("tracking_uri")
    @classmethod
    def _tracking(cls, value: str | None) -> str | None:
        return None if value is None else tracking_address(value)


class Resources(_Section):
    """What one rank of a stage gets; a stage that does not train has one rank. `cpus: all` shares out the cores.

    `workers` share out the sequences of a stage that calibrates, or the evaluations of a model; each gets as much."""

    cpus: Annotated[float, Field(gt=0, le=4096)] | Literal["all"] = 1
    """CPU cores per rank; ``all`` shares out the cores of the machine, which is not for a cluster elsewhere."""
    gpus: float = Field(0, ge=0, le=64)
    """GPUs per rank."""
    memory: int | None = Field(None, gt=0)
    """Bytes of host memory to reserve."""
    ranks: int | None = Field(None, ge=1, le=4096)
    """Ranks of this stage; the profile's unless given."""
    threads: int | None = Field(None, ge=1, le=1024)
    """Threads of torch per rank; as many as cores unless given."""
    workers: int = Field(1, ge=1, le=4096)
    """Workers that share out the calibration sequences; each gets as much as the stage. Under torchrun they are its ranks."""

    @field_validator("cpus", mode="before")
    @classmethod
    def _cpus(cls, value: object) -> object:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if value != "all" and not (number and 0 < value <= 4096):
            raise ValueError("should be a number above 0 or 'all'")
        return value

    def resolved(self, ranks: int) -> Resources:
        """The same with every field filled in, for a group of this many ranks."""
        ranks = self.ranks or ranks
        cpus = float(max(1, cores() // ranks) if self.cpus == "all" else self.cpus)  # pydantic warns of an int here
        return self.model_copy(update={"cpus": cpus, "ranks": ranks, "threads": self.threads or max(1, int(cpus))})


class Profile(_Section):
    name: str = "local"
    """Name of the profile; its file's unless given."""
    store: str = Field(default_factory=lambda: str(home() / "store"))
    """Where artifacts are kept: a directory or ``s3://bucket/prefix``."""
    scratch: str = Field(default_factory=lambda: str(home() / "scratch"))
    """A local directory for what is under way: checkpoints, caches."""
    ray: RayTarget = RayTarget()
    """Where stages run."""
    prefect: PrefectTarget = PrefectTarget()
    """Where flows are recorded."""
    mlflow: MlflowTarget = MlflowTarget()
    """Where metrics are recorded."""
    engine: Literal["torch", "deepspeed"] = "deepspeed"
    """What runs a training step."""
    zero: Literal[0, 1, 2, 3] = 1
    """ZeRO stage of DeepSpeed."""
    offload: Literal["none", "optimizer"] = "none"
    """What DeepSpeed keeps in host memory: nothing, or masters and moments, which the CPU then updates (ZeRO 1, 2 or 3)."""
    ranks: int = Field(1, ge=1, le=4096)
    """Ranks of a training stage."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """What training computes in; ``auto`` is bfloat16 on a GPU."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where stages compute; ``auto`` is a GPU where there is one."""
    micro_batch: int = Field(8, ge=1)
    """Sequences per forward pass of a rank."""
    compile: Literal["auto"] | bool = "auto"
    """Whether training compiles each decoder block; ``auto`` does on a GPU."""
    recompute: Literal["none", "selective", "layer", "auto"] = "auto"
    """What the backward pass computes again to save memory: nothing; of each decoder layer all but matrix products and
    attention, whose outputs are kept; or each layer from its input; ``auto`` the first of them that fits the GPU."""
    card: Literal["A100", "H100", "H200"] | None = None
    """The GPU that training runs on: ``winnow plan`` tells memory and time on it, and what does not fit is refused."""
    logits_bytes: int = Field(1 << 30, ge=1)
    """Bytes of float32 logits held at once in training; a forward pass that has more is scored in chunks of its tokens."""
    runs: int = Field(1, ge=1, le=1000)
    """Runs of this home that use the cluster at once; others wait in the order they came. Cached runs do not wait."""
    jobs: int = Field(8, ge=1, le=4096)  # in flight at once: each keeps two processes on the head node, waiting or not
    """Jobs in flight at once."""
    retries: int = Field(2, ge=0, le=100)
    """How often a failed job is tried again."""
    max_failures: int = Field(3, ge=0, le=1000)
    """How often a group of ranks is started again after a rank died."""
    patience: float = Field(600, gt=0)
    """Seconds in which some training step must end; ranks that take longer hang, and are started again. A step may always take
    ten times as long as the longest before it, and the first one three times as long."""
    checkpoint_every_seconds: float = Field(60, gt=0)
    """Seconds between checkpoints of a training."""
    activation_bytes: int = Field(8 << 30, ge=0)
    """Bytes of calibration activations held in memory; the rest lies on the scratch disk."""
    stages: dict[str, Resources] = {}
    """What a stage gets, by its name; ``default`` is for all others."""

    @field_validator("store", "scratch")
    @classmethod
    def _place(cls, value: str, info) -> str:
        if "\0" in value or not value.strip():
            raise ValueError("should be a path")
        scheme, separator, bucket = value.partition("://")
        if not separator:
            return str(Path(value).expanduser().resolve())
        if info.field_name == "scratch" or scheme != "s3" or not bucket.strip("/"):
            kinds = "a local path" if info.field_name == "scratch" else "a local path or s3://bucket/prefix"
            raise ValueError(f"should be {kinds}")
        return value.rstrip("/")

    @model_validator(mode="after")
    def _agree(self) -> Profile:
        if self.device == "cpu":
            if on := [stage for stage, given in self.stages.items() if given.gpus]:
                raise ValueError(f"stages.{on[0]}.gpus is {self.stages[on[0]].gpus:g} but device is cpu")
            if self.card:
                raise ValueError(f"card is {self.card} but device is cpu; leave one of them out")
        if self.engine == "torch" and self.zero > 1:
            raise ValueError(f"zero is {self.zero} but engine is torch, which shares nothing out; leave one of them out")
        if self.offload != "none" and (self.engine == "torch" or not self.zero):
            said = f"offload is {self.offload} but engine is {self.engine} and zero is {self.zero}"
            raise ValueError(f"{said}; set engine to deepspeed and zero to 1, 2 or 3")
        if self.ray.address and (odd := [stage for stage, given in self.stages.items() if given.cpus == "all"]):
            raise ValueError(f"stages.{odd[0]}.cpus: all is this machine's cores, not those of ray.address; give a number")
        return self

    def resources(self, stage: str) -> Resources:
        """What `stage` may use: its own entry, else the entry `default`, else one CPU."""
        entry = self.stages.get(stage) or self.stages.get("default") or Resources()
        return entry.resolved(self.ranks)

    def under(self, ranks: int) -> Profile:
        """The same for a run whose ranks are there already, one or those of torchrun: so many of every stage."""
        stages = {name: entry.model_copy(update={"ranks": None}) for name, entry in self.stages.items()}
        return self.model_copy(update={"ranks": ranks, "stages": stages})

    def check_stages(self, known: Sequence[str]) -> None:
        """Refuse resources for a stage that there is none of: they would go to nothing."""
        if odd := [stage for stage in self.stages if stage not in known]:
            raise ValueError(f"profile '{self.name}': stages.{odd[0]}: no such stage; choose one of {', '.join(known)}")

    def check_device(self) -> None:
        """Refuse a GPU that was asked for and is absent. torch is imported only where a device node promises one."""
        wants = self.device == "cuda" or any(entry.gpus for entry in self.stages.values())
        if not wants or self.ray.address is not None:  # a remote cluster knows its own GPUs
            return
        nodes = [*Path("/dev").glob("nvidia[0-9]*"), *Path("/dev").glob("dxg"), *Path("/dev").glob("kfd")]
        if nodes:
            import torch

            if torch.cuda.is_available():
                return
        asked = "device: cuda" if self.device == "cuda" else "stages.*.gpus"
        raise ValueError(f"profile '{self.name}': {asked} was asked for, but this machine has no usable GPU; use cpu")


def private_file(path: Path) -> None:
    """Make an empty file that only this user can read, where there is none yet."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with suppress(FileExistsError):
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))


def cores() -> int:
    """CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def load_profile(name_or_path: str | Path = "local") -> Profile:
    """A profile by name (a file of infra/profiles) or by path."""
    text = str(name_or_path)
    path = Path(text) if text.endswith((".yaml", ".yml")) or "/" in text else PROFILES / f"{text}.yaml"
    if not path.is_file():
        choices = ", ".join(sorted(entry.stem for entry in PROFILES.glob("*.yaml")))
        raise DocumentError(f"no profile '{text}'; choose one of {choices}, or give the path of a YAML file")
    document = load_yaml(path)
    document.setdefault("name", path.stem)
    try:
        return Profile.model_validate(document)
    except ValidationError as error:
        raise one_line(error, path.name, Profile) from None
