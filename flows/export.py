"""A model artifact as a plain Hugging Face directory, or a compact one: what a user hands on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from cluster.store.artifacts import Record
from cluster.store.local import Store
from cluster.store.owners import owned, reap
from flows.card import model_card
from tasks.models.build.surgery import surgeries_of
from tasks.models.files.layout import MASKS, NAMES, copy_companions, copy_files
from tasks.refusal import disk_full

HALF = ".half"  # in the directory, until all is written
MOST_DATA = 1 << 30  # bytes of a data artifact that are fetched for a few windows of it


def export_model(
    store: Store, record: Record, directory: Path, compact: bool = False, say: Callable[[str], None] = lambda doing: None
) -> None:
    """Write the model's weights by the names and in the shards the hub has, copy its companions and masks (which no loader
    takes for weights), and write a card that says how it was made. Surgeries, which plain transformers does not know, are
    undone, the last first. In ``compact`` form, sparse weights are coded. What plain transformers does not find to be the
    model of the artifact is not left behind. ``say`` is told what is being done."""
    if "config.json" not in record.files:
        raise ValueError(
            f"{record.address} is no model; choose one of the artifacts of pretrain, prune, recover, merge, quantize"
        )
    require_new(directory)
    source = store.fetch(record)
    surgeries = surgeries_of(json.loads((source / "config.json").read_text()))
    if lasting := [surgery.name for surgery in surgeries if not surgery.undone]:
        raise ValueError(
            f"{record.address} has the surgery {lasting[0]}, which plain transformers does not load and which "
            "cannot be undone; choose a model without it"
        )
    from tasks.models.files.bits import bits_of  # bring torch, so after what is refused
    from tasks.models.files.compact import CARD, rebuild_plain, write_compact
    from tasks.models.files.gate import READER

    READER.start()
    undone = [surgery.undone for surgery in surgeries]
    with _whole(directory) as scratch:
        plain, made, again = scratch / "plain", scratch / "compact", scratch / "again"
        plain.mkdir()
        say("writing the plain directory")
        _write(_undone(source, len(surgeries), scratch), plain)
        (plain / CARD).write_text(model_card(store, record, plain, bits_of(plain), undone))
        if compact:
            say("coding sparse weights")
            write_compact(plain, made)
            again.mkdir()
            say("rebuilding the plain directory from them")
            rebuild_plain(made, again)
            (made / CARD).write_text(model_card(store, record, made, bits_of(plain, made), undone))
        say("reading it back with plain transformers")
        _judge(store, record, source, again if compact else plain)
        _move(made if compact else plain, directory)


def rebuild_model(compact: Path, directory: Path) -> None:
    """Write the plain directory of a compact one."""
    require_new(directory)
    from tasks.models.files.compact import rebuild_plain

    with _whole(directory) as scratch:
        (scratch / "plain").mkdir()
        rebuild_plain(compact, scratch / "plain")
        _move(scratch / "plain", directory)


def require_new(directory: Path) -> None:
    """Raise ValueError where something is there already, other than what an export left that was killed."""
    if directory.is_dir():
        reap(directory / HALF, remove=True)
    if (directory / HALF).exists():
        raise ValueError(f"{directory / HALF} is of an export that may go on; wait, remove it, or choose a new directory")
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise ValueError(f"{directory} is there already; choose a new directory")


@contextmanager
def _whole(directory: Path) -> Iterator[Path]:
    """A folder in a directory to write in; where writing fails, nothing of either is left that was not there."""
    new = not directory.exists()
    directory.mkdir(parents=True, exist_ok=True)
    try:
        with owned(scratch := directory / HALF):
            scratch.mkdir()
            try:
                yield scratch
            finally:
                shutil.rmtree(scratch)
    except BaseException as error:
        if new:
            shutil.rmtree(directory, ignore_errors=True)
        if (place := disk_full(error)) is not None:
            raise OSError(f"no space left on the disk of {directory}{place}; free some, or choose another directory") from error
        raise


def _move(source: Path, directory: Path) -> None:
    """Hand files on with the permissions of any that is new; safetensors lets none but the owner read what it writes."""
    (new := source / ".new").touch()
    readable = new.stat().st_mode
    new.unlink()
    for path in source.rglob("*"):
        if path.is_file():
            path.chmod(readable)
    for path in source.iterdir():
        path.rename(directory / path.name)


def _judge(store: Store, record: Record, source: Path, made: Path) -> None:
    """Plain transformers finds in ``made`` the model that we have in ``source``."""
    from tasks.models.files.checkpoint import load_model
    from tasks.models.files.gate import Seen, require_readable_elsewhere, windows

    data = store.sound(record.parent_addresses.get("data", "")) if "data" in record.parent_addresses else None
    small = data is not None and sum(entry["bytes"] for entry in data.files.values()) <= MOST_DATA
    model = load_model(source)
    seen = Seen.of(model, windows(store.fetch(data) if data and small else None, model))
    del model
    require_readable_elsewhere(made, seen)


def _undone(model: Path, surgeries: int, scratch: Path) -> Path:
    """The model directory without its last ``surgeries``."""
    from tasks.models.files.resizing import undo_last

    for number in range(surgeries):
        before = scratch / f"undone-{number}"
        undo_last(model, before)
        model = before
    return model


def _write(model: Path, directory: Path) -> None:
    from tasks.models.files.names import write_as_on_hub

    write_as_on_hub(model, directory)
    copy_companions(model, directory, skip={NAMES})
    copy_files(model, directory, MASKS)
