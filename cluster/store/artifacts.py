"""What a stage's output is called, and what is remembered about it.

A stage is a pure function of a key: the sha256 over the stage's name, its version, its parameters and the keys of
its parents. Same key, same result, so "is it done?" is one look at one address; caching, resuming, forking a run and
sharing the prefix of a sweep all follow from that. It only holds if equal keys mean equal content, so a record whose
key does not follow from its own fields is not read. What was
measured is no part of the key: the record's own digest, over everything else in it, protects that.
"""

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime

from cluster.store.canonical import canonical_json
from cluster.store.files import check_file_name

NAME = re.compile(r"[a-z0-9_]{1,100}")
KEY = re.compile(r"[0-9a-f]{64}")
ADDRESS = re.compile(r"[a-z0-9_]{1,100}/[a-z0-9_]{1,100}-[0-9a-f]{12}")
CREATED = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00")
LARGEST_RECORD = 16 << 20


class CorruptArtifact(ValueError):
    """A published artifact is not what its record says; names the file, what was expected and what was found. ``aside``
    is its address once it was moved out of the way, so that trying again makes it anew."""

    def __init__(self, message: str, address: str = "", aside: str = "") -> None:
        super().__init__(message)
        self.address, self.aside = address, aside


@dataclass(frozen=True)
class Artifact:
    """The identity of one stage output. `parents` maps a role ("model") to that parent's full key."""

    stage: str
    version: int
    label: str
    params: dict
    parents: dict[str, str]

    def __post_init__(self) -> None:
        for name in ("stage", "label"):
            _require(_matches(NAME, getattr(self, name)), f"{name} {getattr(self, name)!r} is not [a-z0-9_]+")
        _require(type(self.version) is int and self.version > 0, f"version {self.version!r} is not a positive integer")
        _require(type(self.params) is dict, f"params is a {type(self.params).__name__}, not a mapping")
        _require(type(self.parents) is dict, f"parents is a {type(self.parents).__name__}, not a mapping")
        for role, key in self.parents.items():
            _require(_matches(NAME, role), f"parent role {role!r} is not [a-z0-9_]+")
            _require(_matches(KEY, key), f"parent {role!r} is {key!r}, not the full sha256 key of an artifact")
        # A private copy: whoever still holds the parameters cannot change the key afterwards.
        for name in ("params", "parents"):
            object.__setattr__(self, name, json.loads(canonical_json({name: getattr(self, name)}))[name])

    @property
    def identity(self) -> dict:
        """What the key is made of; the label is a name for people and no part of it."""
        return {"stage": self.stage, "version": self.version, "params": self.params, "parents": self.parents}

    @property
    def key(self) -> str:
        return hashlib.sha256(canonical_json(self.identity).encode()).hexdigest()

    @property
    def address(self) -> str:
        return f"{self.stage}/{self.label}-{self.key[:12]}"


@dataclass(frozen=True)
class Record(Artifact):
    """An artifact that exists: its identity, its files and their hashes, and how it came to be. One that is not
    ``sealed`` was read from a file without digest, as an older Winnow wrote them: its numbers are not protected."""

    parent_addresses: dict[str, str]
    files: dict[str, dict]
    metrics: dict[str, float]
    seconds: float
    created: str
    environment: dict
    sealed: bool = field(default=True, compare=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("metrics", "environment"):
            _require(type(getattr(self, name)) is dict, f"{name} is not a mapping")
        _check_parent_addresses(self.parents, self.parent_addresses)
        _check_files(self.files)
        _check_metrics({**self.metrics, "seconds": self.seconds})
        _require(_matches(CREATED, self.created), f"created {self.created!r} is not an ISO time in UTC")
        canonical_json({"environment": self.environment})

    @classmethod
    def of(
        cls, artifact: Artifact, files: dict, metrics: dict, seconds: float, parent_addresses: dict, environment: dict
    ) -> "Record":
        """The record of an artifact that was made just now."""
        made = (parent_addresses, files, metrics, seconds, datetime.now(UTC).isoformat(timespec="milliseconds"), environment)
        return cls(artifact.stage, artifact.version, artifact.label, artifact.params, artifact.parents, *made)

    def to_json(self) -> str:
        fields = {"key": self.key, "address": self.address, **asdict(self)}
        if fields.pop("sealed"):
            fields["digest"] = _digest(fields)
        return json.dumps(fields, indent=2, sort_keys=True, allow_nan=False, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Record":
        """Rebuild a record, trusting nothing: key, address and digest must follow from the other fields."""
        try:
            fields = json.loads(text)
            _require(type(fields) is dict, f"it is a {type(fields).__name__}, not a mapping")
            sealed, digest = "digest" in fields, fields.pop("digest", None)
            found = _digest(fields)
            key, address = fields.pop("key", None), fields.pop("address", None)
            record = cls(**fields, sealed=sealed)
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"not a record: {str(error).replace('Record.__init__() ', '')}") from error
        _require(record.key == key, f"not a record: its fields give the key {record.key}, but it says {key!r}")
        _require(record.address == address, f"not a record: its address is {record.address}, but it says {address!r}")
        changed = f"not a record: something in it was changed, since its digest is {found[:12]}, not {str(digest)[:12]!r}"
        _require(not sealed or digest == found, changed)
        return record


def read_record(content: bytes, what: Artifact | str, where: str) -> Record:
    """Read the record found at `where`, and refuse one that is not the record of `what`."""
    address = address_of(what)
    if len(content) > LARGEST_RECORD:
        raise CorruptArtifact(f"{where}: larger than {LARGEST_RECORD} bytes", address)
    try:
        record = Record.from_json(content.decode())
    except ValueError as error:
        raise CorruptArtifact(f"{where}: {error}", address) from error
    if record.address != address or (isinstance(what, Artifact) and record.key != what.key):
        raise CorruptArtifact(f"{where}: holds the record of {record.address} with the key {record.key}", address)
    return record


def _digest(fields: dict) -> str:
    """Over the values that a reader of the JSON gets, whatever number or mapping types the writer had."""
    return hashlib.sha256(canonical_json(json.loads(json.dumps(fields))).encode()).hexdigest()


def address_of(what: Artifact | str) -> str:
    address = what if isinstance(what, str) else what.address
    _require(_matches(ADDRESS, address), f"{address!r:.120} is not an address such as prune/wanda-d29d3555b43f")
    return address


def differences(first: Artifact, second: Artifact) -> list[str]:
    """Dotted names of the fields that give two artifacts different keys; empty exactly when the keys are equal."""
    return _differing(first.identity, second.identity, "")


def _differing(first: dict, second: dict, path: str) -> list[str]:
    names = []
    for name in sorted({*first, *second}):
        dotted = f"{path}{name}"
        if name not in first or name not in second:
            names.append(dotted)
        elif type(first[name]) is dict and type(second[name]) is dict:
            names += _differing(first[name], second[name], dotted + ".")
        # Compared as JSON: to Python 1, 1.0 and True are equal, to the key they are three values.
        elif canonical_json(first[name]) != canonical_json(second[name]):
            names.append(dotted)
    return names


def nearest(artifact: Artifact, records: Iterable[Record]) -> tuple[Record, list[str]] | None:
    """The record of the same stage with the fewest differing fields (the newest of several), and those fields."""
    pairs = [(record, differences(artifact, record)) for record in records if record.stage == artifact.stage]
    newest_first = sorted(pairs, key=lambda pair: pair[0].created, reverse=True)
    return min(newest_first, key=lambda pair: len(pair[1]), default=None)


def raise_if_corrupt(record: Record, where: object, found: list[str]) -> None:
    if found:
        raise CorruptArtifact(f"{record.address} in {where} is corrupt: {'; '.join(found[:8])}", record.address)


def _check_files(files: dict) -> None:
    _require(type(files) is dict, "files is not a mapping")
    for name, entry in files.items():
        check_file_name(name)
        _require(type(entry) is dict and set(entry) == {"sha256", "bytes"}, f"file {name!r} needs sha256 and bytes")
        _require(_matches(KEY, entry["sha256"]), f"file {name!r} has no sha256 of 64 hex digits")
        _require(type(entry["bytes"]) is int and entry["bytes"] >= 0, f"file {name!r} has no size in bytes")


def _check_parent_addresses(parents: Mapping[str, str], addresses: Mapping[str, str]) -> None:
    _require(type(addresses) is dict and set(addresses) == set(parents), "parents and parent_addresses differ in roles")
    for role, address in addresses.items():
        fits = _matches(ADDRESS, address) and address.endswith("-" + parents[role][:12])
        _require(fits, f"parent {role!r} has the key {parents[role]} but the address {address!r}")


def _check_metrics(metrics: Mapping[str, float]) -> None:
    for name, value in metrics.items():
        number = isinstance(value, int | float) and not isinstance(value, bool)
        _require(type(name) is str and number, f"metric {name!r} is a {type(value).__name__}, not a number")
        _require(math.isfinite(value), f"metric {name!r} is {value}; a result that is not finite is not published")


def _matches(pattern: re.Pattern, value: object) -> bool:
    return type(value) is str and pattern.fullmatch(value) is not None


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)
