"""``winnow verify`` and ``winnow discard``: whether artifacts are what was published, and how to be rid of one that is not.

Hashes say whether bytes changed since; masks and a reload, whether what was published was sound in the first place.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from flows.options import JsonOption, ProfileOption, console, errors, remedy, store_of

if TYPE_CHECKING:
    from cluster.store.artifacts import Record
    from cluster.store.local import Store


class Finding(NamedTuple):
    """What is wrong with an artifact, what holds, and what is worth knowing though nothing is wrong."""

    address: str
    problems: list[str]
    holds: list[str]
    notes: list[str]


def verify(
    artifact: Annotated[str, typer.Argument(help="address or key, or a unique prefix")] = "",
    profile: ProfileOption = "local",
    everything: Annotated[bool, typer.Option("--all", help="every artifact of the store")] = False,
    as_json: JsonOption = False,
) -> None:
    """Reread artifacts: records, hashes of every file, promises of the masks, and that a model loads; exit code 1 if
    something is damaged."""
    if everything == bool(artifact):
        raise ValueError("verify takes one ADDRESS, or --all and none")
    store = store_of(profile)
    findings, addresses = [], store.addresses() if everything else [store.locate(artifact)]
    if not addresses and not store.aside():
        raise ValueError(f"nothing is published in {store.url}")
    for address in addresses:
        findings.append(examine(store, address))
        if not as_json:
            _show(findings[-1])
    damaged = [finding.address for finding in findings if finding.problems]
    aside = store.aside() if everything else []
    if as_json:
        rows = [{**finding._asdict(), "sound": not finding.problems} for finding in findings]
        print(json.dumps({"artifacts": rows, "damaged": len(damaged), "aside": aside}))
    elif everything:
        _show_all(len(findings), len(damaged), aside)
    if damaged:
        _tell(f"{remedy(damaged[0] if len(damaged) == 1 else 'ADDRESS', profile)}; what is missing is made anew")
        raise typer.Exit(1)


def discard(
    address: Annotated[str, typer.Argument(help="whole address of an artifact, damaged or not")],
    profile: ProfileOption = "local",
    yes: Annotated[bool, typer.Option("--yes", help="do not ask")] = False,
) -> None:
    """Remove an artifact for good; a run that needs it makes it again."""
    store = store_of(profile)
    if (found := store.locate(address)) != address:
        raise ValueError(f"discard takes a whole address, such as {found}, not {address!r}")
    if made := list(_made_from(store, address)):
        _tell(f"made from it, and kept: {_some(made)}")
    if not yes and not agrees(f"remove {address} from {store.url} for good? [y/N] "):
        errors.print("kept")
        raise typer.Exit(1)
    store.discard(address)
    console.print(f"{address} is gone", highlight=False)


def examine(store: Store, address: str) -> Finding:
    """One artifact, whatever state it is in."""
    if problems := store.damage(address):
        return Finding(address, problems, [], [])
    record = store.require(address)
    holds = [f"{len(record.files)} files as recorded"]
    if "config.json" in record.files:
        from tasks.models.files.checkpoint import load_model
        from tasks.models.files.promises import check_model

        directory = store.fetch(record)
        try:
            masks = check_model(directory).masks
            load_model(directory)
            holds.append(f"{len(masks)} masks keep their promises; the model loads")
        except MemoryError:
            raise
        except Exception as error:  # whatever a broken model makes of transformers is the finding
            first = str(error).strip().partition("\n")[0]
            problems = [f"every byte is as it was published, but the model is broken: {type(error).__name__}: {first}"]
    return Finding(address, problems, holds, notes(record))


def notes(record: Record) -> list[str]:
    """What an older Winnow made differently."""
    from tasks.stage import STAGES, stage_class

    found, version = [], record.version
    if not record.sealed:
        found.append("its record carries no digest, as an older Winnow wrote it: a number changed since does not show")
    if record.stage in STAGES and version < (today := stage_class(record.stage).version):
        found.append(f"made by version {version} of {record.stage}; this Winnow has version {today} and does not reuse it")
    return found


def _made_from(store: Store, address: str) -> Iterator[str]:
    """Addresses of all that stands on an artifact, directly or not."""
    parents = {record.address: set(record.parent_addresses.values()) for record in store.records()}
    found, more = set(), {address}
    while more:
        more = {child for child, given in parents.items() if given & more} - found
        found |= more
    return iter(sorted(found))


def agrees(question: str) -> bool:
    errors.print(question, end="", soft_wrap=True, highlight=False, markup=False)
    if not (answer := sys.stdin.readline()):
        errors.print()  # the line of the question
        raise ValueError("nobody is there to answer; give --yes to go on without being asked")
    return answer.strip().lower() in ("y", "yes")


def _show(finding: Finding) -> None:
    for problem in finding.problems:
        _tell(f"{finding.address}: {problem}", style="red")
    if not finding.problems:
        console.print(f"{finding.address}: {'; '.join(finding.holds)}", soft_wrap=True, highlight=False, markup=False)
    for note in finding.notes:
        _tell(f"{finding.address}: note: {note}")


def _show_all(count: int, damaged: int, aside: list[str]) -> None:
    console.print(f"{count} artifacts, {damaged} damaged", highlight=False)
    if aside:
        text = f"{len(aside)} kept aside when damage was found, to be removed when nobody needs them: {_some(aside)}"
        console.print(text, soft_wrap=True, highlight=False, markup=False)


def _tell(text: str, style: str = "") -> None:
    errors.print(text, style=style, soft_wrap=True, highlight=False, markup=False)


def _some(names: list[str], most: int = 8) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
