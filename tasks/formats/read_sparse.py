"""Read a compact sparse model; needs torch and safetensors, nothing else. ``python read_sparse.py`` writes the plain model's
weights into this folder, bit for bit, where transformers finds them.

The format, winnow-sparse 1: ``sparse/index.json`` has the sha256 of every other file of ``sparse/``, of which those that begin
with ``model`` are safetensors files. What the JSON in their metadata's ``tensors`` does not name is stored as it is. Of a NAME
there it says the ``shape`` of the plain tensor and how it is coded:
  NAME:index   which entries live, row by row (of the transpose where ``transposed``): one bit each, lowest first; or, with
               ``patterns``, for every ``group`` entries the number of their bits in that list, ``digits`` such numbers to an
               int64, as the digits of a number to the base of the list's length, lowest first
  NAME:values  the entries that live, in that order; all others are 0. With ``bits``, entries are codes of so many bits packed
               one after the other, lowest bit first, and all others are the code ``fill``, or, where that is the name of a
               tensor, the code that it has for their row and group; in the plain tensor each row of ``columns`` codes is packed
               in the same way into words of ``dtype``, and so is each column of groups in that of ``fill``
"""

import hashlib
import json
import sys
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

FORMAT = "winnow-sparse 1"


def unpack(packed: torch.Tensor, bits: int, count: int) -> torch.Tensor:
    single = torch.stack([packed >> bit & 1 for bit in range(8)], 1).flatten()[: count * bits].view(count, bits)
    return sum((single[:, bit] << bit for bit in range(1, bits)), start=single[:, 0])


def pack(codes: torch.Tensor, bits: int) -> torch.Tensor:
    single = torch.stack([codes >> bit & 1 for bit in range(bits)], -1).flatten(1)
    single = torch.nn.functional.pad(single, (0, -single.shape[1] % 8)).unflatten(1, (-1, 8))
    return sum((single[..., bit] << bit for bit in range(1, 8)), start=single[..., 0])


def living(entry: dict, index: torch.Tensor, count: int) -> torch.Tensor:
    if "patterns" not in entry:
        return unpack(index, 1, count).bool()
    table = torch.tensor([[pattern >> bit & 1 for bit in range(entry["group"])] for pattern in entry["patterns"]]).bool()
    powers = torch.tensor([len(table) ** digit for digit in range(entry["digits"])])
    return table[(index[:, None] // powers % len(table)).flatten()[: count // entry["group"]]].flatten()


def filled(entry: dict, rows: int, zeros: torch.Tensor | None) -> torch.Tensor:
    if zeros is None:
        return torch.full((rows, entry["columns"]), entry["fill"], dtype=torch.uint8)
    packed = zeros.T.reshape(-1).view(torch.uint8)
    codes = unpack(packed, entry["bits"], len(packed) * 8 // entry["bits"]).view(zeros.shape[1], -1)[:, :rows]
    return codes.T.repeat_interleave(entry["columns"] // len(codes), 1)


def decode(entry: dict, index: torch.Tensor, values: torch.Tensor, zeros: torch.Tensor | None = None) -> torch.Tensor:
    *stack, rows, columns = entry["shape"]
    if "bits" not in entry:
        plain = torch.zeros([*stack, columns, rows] if entry.get("transposed") else entry["shape"], dtype=values.dtype)
        kind = torch.uint8 if values.dtype.itemsize == 1 else values.dtype  # 8-bit floats cannot be scattered
        plain.view(kind).view(-1).masked_scatter_(living(entry, index, plain.numel()), values.view(kind))
        return plain.mT.contiguous() if entry.get("transposed") else plain
    codes = filled(entry, torch.Size(stack).numel() * rows, zeros)
    alive = living(entry, index, codes.numel())
    codes.view(-1).masked_scatter_(alive, unpack(values, entry["bits"], int(alive.sum())))
    packed, dtype = pack(codes, entry["bits"]), getattr(torch, entry["dtype"])
    return torch.nn.functional.pad(packed, (0, columns * dtype.itemsize - packed.shape[1])).view(dtype).view(entry["shape"])


def files(folder: Path) -> list[Path]:
    """The files of ``sparse/``, once each is there and has the bytes it was written with."""
    try:
        index = json.loads((folder / "sparse/index.json").read_text())
        assert index["format"] == FORMAT and {Path(name).name == name for name in dict(index["files"])} == {True}
    except (ValueError, TypeError, KeyError, AssertionError):
        raise ValueError(f"{folder}/sparse/index.json is damaged: it is no index of {FORMAT}") from None
    for name, digest in index["files"].items():
        if hashlib.sha256((folder / "sparse" / name).read_bytes()).hexdigest() != digest:
            raise ValueError(f"{folder}/sparse/{name} is damaged: its sha256 is not that of the index")
    return [folder / "sparse" / name for name in index["files"]]


def read(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of the plain model that are in one file."""
    with safe_open(path, "pt") as file:
        entries, found = json.loads(file.metadata()["tensors"]), {}
        for name in {stored.removesuffix(":index").removesuffix(":values") for stored in file.keys()}:  # noqa: SIM118
            if (entry := entries.get(name)) is None:
                found[name] = file.get_tensor(name)
                continue
            zeros = file.get_tensor(entry["fill"]) if isinstance(entry.get("fill"), str) else None
            found[name] = decode(entry, file.get_tensor(f"{name}:index"), file.get_tensor(f"{name}:values"), zeros)
    return found


def rebuild(folder: Path, output: Path) -> None:
    """Write the weight files of the plain model into ``output``, one after the other."""
    for path in files(folder):
        if path.name.endswith(".json"):
            (output / path.name).write_bytes(path.read_bytes())
        elif path.name.startswith("model"):
            save_file(read(path), output / path.name, {"format": "pt"})
            (output / path.name).chmod(path.stat().st_mode)  # safetensors lets none but the owner read what it writes


if __name__ == "__main__":
    here = Path(__file__).resolve().parent
    if sys.argv[1:]:
        sys.exit(f"read_sparse: takes no arguments, got {sys.argv[1]}; it writes the weights into its own folder, {here}")
    try:
        rebuild(here, here)
    except (ValueError, OSError, SafetensorError) as error:
        sys.exit(f"read_sparse: {error}")
