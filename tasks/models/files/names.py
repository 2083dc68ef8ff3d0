"""The names a model's tensors have on the hub, and those of its own parameters.

A hub checkpoint may store one matrix per expert where the model holds them fused, or leave out a prefix; transformers
knows the conversion, both ways. Stages work under the model's own names, since masks are filed under them. A model
directory of ours remembers in ``names.json`` what its tensors were called where it came from, so that an export gives
them back under those names and any other program finds them. Tensors that the architecture does not name (the heads
of multi-token prediction) keep their names and travel along.

No more than one block is in memory either way, and every tensor keeps the dtype it is stored in.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from tasks.models.files.layout import EXTRAS, INDEX, MASKS, NAMES, copy_companions, copy_files
from tasks.models.files.shards import Place, TensorFiles, write_shards, write_tensors

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass
class Naming:
    """How the names of a checkpoint and of a model belong together.

    ``own`` gives for a hub name the model's own, where the tensor is stored as the model holds it. ``converted`` gives for
    a tensor of the model the hub tensors it is made of, each with the pattern that transformers' converter knows it by.
    ``extra`` are hub names that the architecture does not know.
    """

    model: PreTrainedModel
    own: dict[str, str] = field(default_factory=dict)
    converted: dict[str, list[tuple[str, str]]] = field(default_factory=dict)
    extra: list[str] = field(default_factory=list)
    _converters: dict[str, Any] = field(default_factory=dict)
    _used: list[Any] = field(default_factory=list)

    @classmethod
    def of(cls, model: PreTrainedModel, names: Iterable[str]) -> Naming:
        """Sort hub names by what transformers' loader would do with each."""
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter, dot_natural_key, rename_source_key

        naming, state = cls(model), model.state_dict()
        conversions = get_model_conversion_mapping(model)
        converters = [conversion for conversion in conversions if isinstance(conversion, WeightConverter)]
        renamings = [conversion for conversion in conversions if not isinstance(conversion, WeightConverter)]
        naming._converters = {pattern: converter for converter in converters for pattern in converter.source_patterns}
        prefix = model.base_model_prefix
        for name in sorted(names, key=dot_natural_key):
            own, pattern = rename_source_key(name, renamings, converters, prefix, state)
            if own not in state and name in state:
                own, pattern = rename_source_key(name, [], [], prefix, state)
            if own not in state:
                naming.extra.append(name)
            elif pattern is None:
                naming.own[name] = own
            else:
                naming.converted.setdefault(own, []).append((name, pattern))
        naming._used = [conversion for conversion in conversions if conversion.was_used()]
        return naming

    @property
    def same(self) -> bool:
        """Whether the checkpoint has the model's own names already."""
        return not self.converted and all(hub == own for hub, own in self.own.items())

    def to_own(self, files: TensorFiles, scratch: Path) -> TensorFiles:
        """Hub tensors under the model's own names; those that had to be converted lie in ``scratch``."""
        places = {own: files.places[hub] for hub, own in self.own.items()}
        places |= {name: files.places[name] for name in self.extra}
        for number, first in enumerate(self.converted):
            places |= _keep(self._convert(first, lambda hub: files.read([hub])[hub]), scratch, number)
        return files.renamed(places)

    def shapes(self, files: TensorFiles) -> dict[str, tuple[int, ...]]:
        """What shapes hub tensors have under the model's own names; no tensor is read."""
        found = {own: files.shape(hub) for hub, own in self.own.items()}
        for first in self.converted:
            made = self._convert(first, lambda hub: torch.empty(files.shape(hub), device="meta"))
            found |= {name: tuple(tensor.shape) for name, tensor in made.items()}
        return found

    def _convert(self, first: str, read: Callable[[str], torch.Tensor]) -> dict[str, torch.Tensor]:
        """The tensors of the model that are made together with ``first``, by transformers' own conversion."""
        sources = self.converted[first]
        converter = deepcopy(self._converters[sources[0][1]])
        for hub, pattern in sources:
            converter.add_tensor(first, hub, pattern, partial(read, hub))
        made = converter.convert(first, model=self.model, config=self.model.config)
        return {name: value[0] if isinstance(value, list) else value for name, value in made.items()}

    def to_hub(self, files: TensorFiles, scratch: Path) -> TensorFiles:
        """The model's tensors under the hub's names; those that had to be converted lie in ``scratch``."""
        hub_of = {own: hub for hub, own in self.own.items()} | {name: name for name in self.extra}
        places, blocks = {}, {}
        for own in files:
            module, _, leaf = own.rpartition(".")
            if own in hub_of:
                places[hub_of[own]] = files.places[own]
            elif quantized := hub_of.get(f"{module}.weight"):  # its codes and scales go where its weight would
                places[f"{quantized.rpartition('.')[0]}.{leaf}"] = files.places[own]
            elif folder := self._folder(module, hub_of) if leaf in ("k_scale", "v_scale") else None:
                places[f"{folder}.{leaf}"] = files.places[own]
            else:
                blocks.setdefault(_block(own), []).append(own)
        for own, source in self.model.all_tied_weights_keys.items():
            if own in hub_of and own not in files:  # the source stored both
                places[hub_of[own]] = files.places[source]
        wanted = {hub for sources in self.converted.values() for hub, _ in sources}
        for number, owns in enumerate(blocks.values()):
            places |= _keep(self._reverted(files.read(owns), wanted), scratch, number)
        if odd := sorted(wanted - places.keys()):
            raise ValueError(f"unsupported: transformers does not give back {odd[0]} ({len(odd)} names in all)")
        return files.renamed(places)

    def _folder(self, module: str, hub_of: Mapping[str, str]) -> str | None:
        """What a module that has no weight of its own is called on the hub, told from what is in it."""
        inside = ((own.removeprefix(module), hub) for own, hub in hub_of.items() if own.startswith(f"{module}."))
        return next((hub.removesuffix(rest) for rest, hub in inside if hub.endswith(rest)), None)

    def _reverted(self, tensors: dict[str, torch.Tensor], wanted: set[str]) -> dict[str, torch.Tensor]:
        """Tensors of the model as the hub has them, by transformers' own reverse conversion."""
        from transformers.core_model_loading import revert_weight_conversion

        self.model._weight_conversions = self._used
        found, prefix = {}, f"{self.model.base_model_prefix}."
        for name, tensor in revert_weight_conversion(self.model, tensors).items():
            spelled = next((other for other in (name, name.removeprefix(prefix), prefix + name) if other in wanted), None)
            if spelled is None:
                raise ValueError(f"unsupported: transformers gives {name} back, which the source did not have")
            found[spelled] = tensor.contiguous()
        return found


def own_names(directory: Path, model: PreTrainedModel, scratch: Path) -> TensorFiles:
    """The weights of a model directory under the names of ``model``, its skeleton."""
    files, naming = fits(directory, model)
    return files if naming.same else naming.to_own(files, scratch)


def fits(directory: Path, model: PreTrainedModel) -> tuple[TensorFiles, Naming]:
    """The stored weights of a directory and how they are named, once they are those of ``model``, its skeleton."""
    files = TensorFiles(directory)
    naming = Naming.of(model, files)
    check_fits(directory, naming.shapes(files), model)
    return files, naming


def check_fits(directory: Path, shapes: Mapping[str, tuple[int, ...] | None], model: PreTrainedModel) -> None:
    """Raise ValueError where a tensor of a model, given as a skeleton, is not stored, or in another shape than its config
    says; ``shapes`` are the stored ones, None where it cannot be told."""
    state = model.state_dict()
    if missing := sorted(state.keys() - model.all_tied_weights_keys.keys() - shapes.keys()):
        raise ValueError(f"{directory} does not fit its config: {missing[0]} is not stored ({len(missing)} such names)")
    for name in sorted(state.keys() & shapes.keys()):
        if shapes[name] not in (None, tuple(state[name].shape)):
            raise ValueError(
                f"{directory} does not fit its config: {name} is stored as {list(shapes[name])}, not {list(state[name].shape)}"
            )


def hub_names(directory: Path) -> list[str]:
    """What the tensors of a model directory are called on the hub: what ``names.json`` says, else as they are stored."""
    path = directory / NAMES
    return json.loads(path.read_text()) if path.exists() else sorted(TensorFiles(directory))


def write_names(names: Iterable[str], directory: Path) -> None:
    (directory / NAMES).write_text(json.dumps(sorted(names), indent=0))


def usual_names(model: PreTrainedModel) -> list[str]:
    """The names that transformers itself would save a model under; ``model`` may be a skeleton."""
    from transformers.core_model_loading import revert_weight_conversion

    state, tied = model.state_dict(), model.all_tied_weights_keys
    return list(revert_weight_conversion(model, {name: state[name] for name in state.keys() - tied.keys()}))


def write_as_on_hub(directory: Path, output: Path) -> None:
    """Write the weights of a model directory into ``output`` by the names and in the shards that the hub has."""
    from tasks.models.files.checkpoint import skeleton

    naming = Naming.of(skeleton(directory), hub_names(directory))
    with tempfile.TemporaryDirectory(dir=output, prefix=".converted-") as scratch:
        files = naming.to_hub(TensorFiles(directory), Path(scratch))
        write_shards(files.renamed(dict(sorted(files.places.items(), key=_natural))), output)


def copy_by_own_names(directory: Path, output: Path) -> None:
    """Copy a model with all that belongs to it; its weights get the model's own names, and what they were called is kept."""
    from tasks.models.files.checkpoint import skeleton

    files, naming = fits(directory, skeleton(directory))
    copy_files(directory, output, MASKS, EXTRAS)
    copy_companions(directory, output)
    if naming.same:
        copy_files(directory, output, INDEX, *(file.name for file in files.files()))
        return
    with tempfile.TemporaryDirectory(dir=output, prefix=".converted-") as scratch:
        write_shards(naming.to_own(files, Path(scratch)), output)
    write_names(files, output)


def _natural(item: tuple[str, Any]) -> list[int | str]:
    from transformers.core_model_loading import dot_natural_key

    return dot_natural_key(item[0])


def _block(name: str) -> str:
    """The part of a name up to its first number, which tells the block: conversions reach no further."""
    match = re.match(r".*?\.\d+\.", name)
    return match.group() if match else ""


def _keep(tensors: dict[str, torch.Tensor], scratch: Path, number: int) -> dict[str, Place]:
    scratch.mkdir(parents=True, exist_ok=True)
    path = scratch / f"{number:05d}.safetensors"
    write_tensors({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    return {name: Place(path, name) for name in tensors}
