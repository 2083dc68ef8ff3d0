"""Artifacts to publish, and hands that change what is stored behind a store's back."""

import urllib.request
from pathlib import Path

from cluster.store.artifacts import Artifact, Record
from cluster.store.local import LocalStore


def control(server: str, action: str, content: bytes = b"") -> None:
    headers = {"Content-Type": "text/plain"}
    urllib.request.urlopen(urllib.request.Request(f"{server}/moto-api/{action}", content, headers)).close()


def artifact(label="wanda", stage="prune", **params) -> Artifact:
    return Artifact(stage, 1, label, {"sparsity": 0.5, **params}, {})


def directory(path: Path, content: bytes = b"weights") -> Path:
    (path / "masks").mkdir(parents=True)
    (path / "model.safetensors").write_bytes(content)
    (path / "masks" / "layer.bin").write_bytes(content[::-1])
    return path


def publish(store, made: Artifact, source: Path, **environment) -> Record:
    return store.publish(made, source, {"perplexity": 12.5}, 3.0, {}, environment)


def contents(path: Path) -> dict[str, bytes]:
    return {file.relative_to(path).as_posix(): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def key_of(record: Record, name: str) -> str:
    content = "" if name == "record.json" else f"{record.files[name]['sha256']}/"
    return f"team/runs/{record.address}/{content}{name}"


def tamper(store, record: Record, name: str, change) -> None:
    """Change one stored file behind the store's back; `change` maps its bytes to other bytes, or to None."""
    if isinstance(store, LocalStore):
        path = store.root / record.address / name
        new = change(path.read_bytes())
        path.write_bytes(new) if new is not None else path.unlink()
        return
    place = {"Bucket": "artifacts", "Key": key_of(record, name)}
    new = change(store.bucket.client.get_object(**place)["Body"].read())
    store.bucket.client.delete_object(**place) if new is None else store.bucket.client.put_object(**place, Body=new)
