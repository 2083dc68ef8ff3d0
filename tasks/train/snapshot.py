"""Training checkpoints that can be trusted: complete or absent, verified before use, and never a pickle.

DeepSpeed's own checkpoints run arbitrary code on load, and neither they nor Ray Train's notice a flipped bit or fall
back to an older one. Here every rank writes its own shards as safetensors; the manifest with the hash of every file
comes last, and the directory gets its name only then. Shards say which elements they are, so another number of ranks,
another ZeRO stage or another engine can go on from them.

    step-00000120/  rank-0.safetensors  ...  tensors.safetensors  state.json  manifest.json

The directory must be shared by all ranks. Rank 0 alone decides (which snapshot is the newest valid one, whether this
attempt still owns the directory) and tells the others, so that ranks never disagree.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from cluster.store import durable
from tasks.formats.mask import pack, unpack
from tasks.train import sealed
from tasks.train.attempts import refuse_if_fenced
from tasks.train.engine import Engine

log = logging.getLogger(__name__)
KEPT = 2
_NAMES = "step-" + "[0-9]" * 8
_FAILED = -2


@dataclass(frozen=True)
class Snapshot:
    path: Path
    step: int
    ranks: int


def save(
    engine: Engine,
    directory: Path,
    step: int,
    state: Mapping[str, Any],
    tensors: Mapping[str, torch.Tensor],
    attempt: int = 0,
) -> Path:
    """Write a snapshot of the engine and what hooks and data give (JSON state, tensors).

    Every rank calls it; ``state`` and ``tensors`` are taken from rank 0, boolean tensors as bits. A step that is there
    already is left as it is. Raises Fenced when a newer attempt has taken the directory over.
    """
    final = directory / f"step-{step:08d}"
    partial = directory / f".partial-{step:08d}-{attempt}"
    if _decide(lambda: _prepare(directory, final, partial, attempt)):
        return final
    files = {f"rank-{engine.rank}.safetensors": _shards(engine)}
    if engine.rank == 0:
        files["tensors.safetensors"] = _with_bits(tensors)
        durable.write(partial / "state.json", json.dumps(state, allow_nan=False).encode())
    for name, (values, metadata) in files.items():
        sealed.write_tensors(partial / name, values, metadata)
    written = [*files, "state.json"] if engine.rank == 0 else list(files)
    durable.write(partial / f"hashes-{engine.rank}.json", json.dumps(sealed.hashes(partial, written)).encode())
    _decide(lambda: _publish(directory, final, partial, attempt, {"step": step, "ranks": engine.ranks}))
    return final


def latest(directory: Path) -> Snapshot | None:
    """The newest snapshot whose every byte is as written. Others met on the way are renamed to ``*.corrupt``."""
    step = _decide(lambda: _newest_valid(directory))
    if step < 0:
        return None
    path = directory / f"step-{step:08d}"
    return Snapshot(path, step, sealed.manifest(path)["ranks"])


def restore(snapshot: Snapshot, engine: Engine) -> tuple[int, dict[str, Any], dict[str, torch.Tensor]]:
    """Load weights and moments; gives (step, state, tensors)."""
    from safetensors import safe_open

    engine.load(_Parameters(snapshot), snapshot.step)
    with safe_open(snapshot.path / "tensors.safetensors", "pt") as file:
        bits = json.loads(file.metadata()["bits"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    for name, shape in bits.items():
        tensors[name] = unpack(tensors[name], shape)
    return snapshot.step, json.loads((snapshot.path / "state.json").read_bytes()), tensors


class _Parameters(Mapping):
    """{parameter: {"master": ..., moment: ...}} put together from every rank's file, one parameter at a time."""

    def __init__(self, snapshot: Snapshot) -> None:
        from safetensors import safe_open

        self._files = [safe_open(snapshot.path / f"rank-{rank}.safetensors", "pt") for rank in range(snapshot.ranks)]
        self._pieces: dict[str, list[tuple[int, Any]]] = defaultdict(list)
        for file in self._files:
            for name, start in json.loads(file.metadata()["starts"]).items():
                self._pieces[name].append((start, file))

    def __getitem__(self, name: str) -> dict[str, torch.Tensor]:
        pieces = sorted(self._pieces[name], key=lambda piece: piece[0])
        suffix = f"/{name}"
        kinds = [key.removesuffix(suffix) for key in pieces[0][1].keys() if key.endswith(suffix)]  # noqa: SIM118
        return {kind: torch.cat([file.get_tensor(kind + suffix) for _, file in pieces]) for kind in kinds}

    def __iter__(self) -> Iterator[str]:
        return iter(self._pieces)

    def __len__(self) -> int:
        return len(self._pieces)


def _shards(engine: Engine) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    tensors, starts = {}, {}
    for name, shard in engine.shards():
        starts[name] = shard.start
        for kind, values in {"master": shard.master, **shard.moments}.items():
            tensors[f"{kind}/{name}"] = values
    return tensors, {"starts": json.dumps(starts)}


def _with_bits(tensors: Mapping[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    bits = {name: list(tensor.shape) for name, tensor in tensors.items() if tensor.dtype == torch.bool}
    return {name: pack(tensor) if name in bits else tensor for name, tensor in tensors.items()}, {"bits": json.dumps(bits)}


def _prepare(directory: Path, final: Path, partial: Path, attempt: int) -> bool:
    """An empty place to write to; True when the step is there already (saved before the restart)."""
    refuse_if_fenced(directory, attempt)
    if final.exists():
        return True
    for leftover in directory.glob(".partial-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    partial.mkdir(parents=True)
    return False


def _publish(directory: Path, final: Path, partial: Path, attempt: int, facts: dict[str, int]) -> int:
    """Write the manifest, give the directory its name, drop all but the newest; nothing half-done is ever visible."""
    files = {}
    for rank in range(facts["ranks"]):
        hashes = partial / f"hashes-{rank}.json"
        files |= json.loads(hashes.read_bytes())
        hashes.unlink()
    sealed.seal(partial, facts, files)
    refuse_if_fenced(directory, attempt)
    partial.rename(final)
    durable.sync(directory)
    for old in sorted(directory.glob(_NAMES), reverse=True)[KEPT:]:
        shutil.rmtree(old.rename(directory / f".partial-dropped-{old.name}"), ignore_errors=True)
    return 0


def _newest_valid(directory: Path) -> int:
    for path in sorted(directory.glob(_NAMES), reverse=True):
        reason = sealed.broken(path)
        if reason is None:
            return int(path.name.removeprefix("step-"))
        log.warning("checkpoint %s is corrupt (%s); going back to an older one", path, reason)
        shutil.rmtree(path.with_name(f"{path.name}.corrupt"), ignore_errors=True)
        path.rename(path.with_name(f"{path.name}.corrupt"))
    return -1


def _decide(decision: Callable[[], int]) -> int:
    """Wait for every rank, let rank 0 decide, and go on (or fail) everywhere with what it decided."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return int(decision())
    verdict = torch.zeros(1, dtype=torch.int64, device="cuda" if dist.get_backend() == "nccl" else "cpu")
    dist.all_reduce(verdict)
    int(verdict)  # on GPUs the reduction has only been queued until somebody reads it
    error = None
    if dist.get_rank() == 0:
        try:
            verdict.fill_(int(decision()))
        except Exception as raised:  # told to the other ranks before it goes on its way
            error = raised
            verdict.fill_(_FAILED)
    dist.broadcast(verdict, 0)
    if error is not None:
        raise error
    if int(verdict) == _FAILED:
        raise RuntimeError("rank 0 could not go on with the checkpoint; its log says why")
    return int(verdict)
