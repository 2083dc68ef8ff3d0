"""The compact artifact of a sparse model: the plain directory with its weights coded, and the program that reads them.

Every weight file of the plain directory has one in ``sparse/``; all that lies beside the weights is copied. Masks that the
coded weights carry are not stored a second time: the entry of such a weight keeps its promise. Whoever takes the
``*.safetensors`` of a model directory for weights finds none, so nothing loads a compact model as what it is not.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from tasks.formats import read_sparse
from tasks.formats.compact import Words, encode
from tasks.formats.mask import Mask, load_masks, save_masks
from tasks.models.files.checkpoint import skeleton
from tasks.models.files.layout import INDEX, MASKS, companions, copy_companions
from tasks.models.files.names import Naming
from tasks.models.files.schemes import stored_schemes
from tasks.models.files.shards import TensorFiles
from tasks.models.find.linears import find_linears

if TYPE_CHECKING:
    from compressed_tensors.quantization import QuantizationScheme

    from tasks.models.find.linears import Linear

FOLDER = "sparse"
READER = "read_sparse.py"
_PACKED = "weight_packed"
_MASKS = "masks.safetensors"  # those that no coded weight carries
CARD = "README.md"  # the plain directory's own: that of the compact one says how to read it


@dataclass
class _Plain:
    """A plain directory: whose weight a stored tensor is, and what is known of it."""

    files: TensorFiles
    linears: dict[str, Linear]
    schemes: dict[str, QuantizationScheme]
    own: dict[str, str]  # the model's own names of weights, by those of the hub
    masks: dict[str, Mask]

    @classmethod
    def of(cls, directory: Path, files: TensorFiles) -> _Plain:
        model = skeleton(directory)
        quantization = json.loads((directory / "config.json").read_text()).get("quantization_config")
        own = Naming.of(model, {_weight(name) for name in files}).own
        return cls(files, find_linears(model), stored_schemes(quantization, model), own, load_masks(directory / MASKS))

    def code(self, name: str, tensor: torch.Tensor, file: _File) -> None:
        """Put a tensor into a file, coded where that is shorter."""
        weight = self.own.get(_weight(name), "")
        linear, mask = self.linears.get(weight), self.masks.get(weight)
        words = self._words(weight, name, tensor) if name.endswith(_PACKED) else None
        coded = encode(tensor, mask and mask.keep, words, linear is not None and linear.transposed)
        if coded is None:
            file.stored[name] = tensor
            return
        file.entries[name] = coded.entry
        file.stored |= {f"{name}:index": coded.index, f"{name}:values": coded.values}
        if mask and coded.exact:
            del self.masks[weight]
            promise = {"pattern": mask.pattern, "sparsity": mask.sparsity, "exempt": mask.exempt, "of": weight}
            known = {"exempt": (), "of": _weight(name)}
            coded.entry["mask"] = {key: value for key, value in promise.items() if value != known.get(key)}

    def _words(self, weight: str, name: str, tensor: torch.Tensor) -> Words | None:
        """How codes lie in a packed weight; None where nothing here tells which code is zero."""
        scheme = self.schemes.get(weight.removesuffix(".weight"))
        if scheme is None or scheme.weights is None:
            return None
        bits, columns = scheme.weights.num_bits, self.linears[weight].shape[-1]
        if scheme.weights.symmetric:  # integers are stored from 0 up, floats as their bits
            return Words(bits, columns, 1 << (bits - 1) if tensor.dtype == torch.int32 else 0)
        zeros = f"{name.removesuffix(_PACKED)}weight_zero_point"
        beside = zeros in self.files and self.files.places[zeros].file == self.files.places[name].file
        return Words(bits, columns, zeros, self.files.read([zeros])[zeros]) if beside and bits in (2, 4, 8) else None


@dataclass
class _File:
    """What one file of ``sparse/`` holds, and what its metadata say."""

    stored: dict[str, torch.Tensor] = field(default_factory=dict)
    entries: dict[str, dict[str, Any]] = field(default_factory=dict)


def write_compact(plain: Path, output: Path) -> None:
    """Write the compact artifact of a plain model directory."""
    files = TensorFiles(plain)
    known = _Plain.of(plain, files)
    (output / FOLDER).mkdir(parents=True)
    copy_companions(plain, output)
    shutil.copyfile(read_sparse.__file__, output / READER)
    for path in files.files():
        made = _File()
        for name in [name for name, place in files.places.items() if place.file == path]:
            known.code(name, files.read([name])[name], made)
        said = {"format": read_sparse.FORMAT, "tensors": json.dumps(made.entries, separators=(",", ":"))}
        save_file(made.stored, output / FOLDER / path.name, said)
    if (plain / INDEX).exists():
        shutil.copyfile(plain / INDEX, output / FOLDER / INDEX)
    if (plain / CARD).exists():
        shutil.copyfile(plain / CARD, output / FOLDER / CARD)
    if known.masks:
        save_masks(known.masks, output / FOLDER / _MASKS)
    digests = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted((output / FOLDER).iterdir())}
    beside = [file.relative_to(plain).as_posix() for file in companions(plain)]
    index = {"format": read_sparse.FORMAT, "files": digests, "beside": beside}
    (output / FOLDER / "index.json").write_text(json.dumps(index, indent=1))


def rebuild_plain(compact: Path, output: Path) -> None:
    """Write the plain model directory of a compact artifact: the same tensors, masks, companions and card. Raises ValueError
    where the artifact is damaged."""
    if not (compact / FOLDER / "index.json").is_file():
        raise ValueError(
            f"{compact} is no compact model: it has no {FOLDER}/index.json; choose a directory that export --compact wrote"
        )
    try:
        read_sparse.rebuild(compact, output)
        masks = _masks(compact)
        _require_beside(compact)
    except FileNotFoundError as error:
        raise ValueError(f"{error.filename} is missing; copy the whole directory again") from None
    copy_companions(compact, output)
    if (card := compact / FOLDER / CARD).exists():
        shutil.copyfile(card, output / CARD)
    if masks:
        save_masks(masks, output / MASKS)


def _require_beside(compact: Path) -> None:
    """Raise ValueError where what belongs beside the weights is not there: without its config nothing loads them."""
    beside = json.loads((compact / FOLDER / "index.json").read_text()).get("beside")
    if not (isinstance(beside, list) and all(isinstance(name, str) for name in beside)):
        raise ValueError(f"{compact}/{FOLDER}/index.json is damaged: it is no index of {read_sparse.FORMAT}")
    if lost := [name for name in beside if not (compact / name).is_file()]:
        raise ValueError(f"{compact}/{lost[0]} is missing; copy the whole directory again")


def _masks(compact: Path) -> dict[str, Mask]:
    masks = load_masks(compact / FOLDER / _MASKS)
    for path in compact.glob(f"{FOLDER}/model*.safetensors"):
        with safe_open(path, "pt") as file:
            for name, entry in json.loads(file.metadata()["tensors"]).items():
                if promise := entry.get("mask"):
                    *stack, rows, columns = entry["shape"][:-2] + entry["shape"][-2:][:: -1 if "transposed" in entry else 1]
                    shape = [*stack, rows, entry.get("columns", columns)]
                    keep = read_sparse.living(entry, file.get_tensor(f"{name}:index"), math.prod(shape)).view(shape)
                    exempt = promise.get("exempt", ())
                    masks[promise.get("of", _weight(name))] = Mask.of(keep, promise["pattern"], promise["sparsity"], exempt)
    return masks


def _weight(name: str) -> str:
    """The weight that a stored tensor is, packed or not."""
    return f"{name.removesuffix(_PACKED)}weight" if name.endswith(f".{_PACKED}") else name
