"""Merge: one model out of several that were trained from the same one under the same mask, which is kept.

A merger that chooses among them measures mixtures on the calibration text."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from tasks.context import Context
from tasks.mergers import Merger
from tasks.methods import of
from tasks.models.facts import Parties, facts_in, meanings_in
from tasks.stage import REPORT, Facts, Kind, Stage, members

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from transformers import PreTrainedModel

    from tasks.models.files.shards import TensorFiles


class Merge(Stage):
    needs: ClassVar[dict[str, Kind]] = {"data": "tokens", "models": "model"}
    plural: ClassVar[str] = "models"

    method: Annotated[Merger, of("mergers")] = Field("uniform", validate_default=True)
    """How one model is made of several."""

    def reads(self) -> dict[str, int]:
        method = self.method
        return {"calibration": getattr(method, "sequences", 0) * getattr(method, "length", 0)} if method.measures else {}

    def roles(self) -> dict[str, Kind]:
        return {role: kind for role, kind in self.needs.items() if role != "data" or self.method.measures}

    def check(self, facts: Facts) -> None:
        length = getattr(self.method, "length", 0)
        if facts.positions and length > facts.positions:
            raise ValueError(f"method.{self.method.name}.length {length} is more than the model's {facts.positions} positions")
        if any(stage.stage_name() == "quantize" for stage in facts.upstream):
            raise ValueError("integers of different grids have no mean; merge before quantize")

    def parties(self, context: Context) -> Parties:
        directories = members(context.inputs, "models")
        named = {f"models_{number}": directory for number, directory in enumerate(directories)}
        meanings = meanings_in(**named, **({"data": context.inputs["data"] / "tokenizer"} if self.method.measures else {}))
        return Parties(others=tuple(map(facts_in, directories)), meanings=meanings)

    def check_parties(self, parties: Parties) -> None:
        parties.check_meanings()
        for other in parties.others[1:]:
            _require_one_model(parties.others[0].skeleton, other.skeleton)

    def run(self, context: Context) -> dict[str, float]:
        from tasks.models.files.layout import MASKS
        from tasks.models.files.shards import TensorFiles

        directories = members(context.inputs, "models")
        _require_one_mask([directory / MASKS for directory in directories])
        _require_same_tensors([TensorFiles(directory) for directory in directories])
        losses: dict[tuple[int, ...], float] = {}
        chosen = self.method.choose(len(directories), lambda some: self._loss(context, directories, tuple(some), losses))
        self._write([directories[number] for number in chosen], context.output)
        found = {"merged_models": float(len(chosen))}
        if not losses:
            return found
        soup, alone = losses[tuple(chosen)], [losses[number,] for number in range(len(directories))]
        tried = [{"models": some, "loss": loss} for some, loss in losses.items()]
        (context.output / REPORT).mkdir(exist_ok=True)
        (context.output / REPORT / "soup.json").write_text(json.dumps({"chosen": chosen, "tried": tried}))
        which = "all" if len(chosen) == len(alone) else "number " + ", ".join(str(number + 1) for number in chosen)
        told = f"loss {soup:.4f}, of the best alone {min(alone):.4f}"
        context.note(f"{self.method.name} took {len(chosen)} of {len(alone)} models ({which}); {told}")
        return found | {"soup_loss": soup, "best_member_loss": min(alone), "mean_member_loss": sum(alone) / len(alone)}

    def _loss(
        self, context: Context, directories: list[Path], some: tuple[int, ...], losses: dict[tuple[int, ...], float]
    ) -> float:
        """Of some of the models merged, on the calibration text; each mixture is measured once."""
        from tasks.calibrate.essential import mean_loss
        from tasks.data.tokens import calibration_batches

        if some not in losses:
            sequences, length, batch = (getattr(self.method, field) for field in ("sequences", "length", "batch"))
            directory = directories[some[0]]
            if len(some) > 1:
                directory = context.scratch / "trial"
                shutil.rmtree(directory, ignore_errors=True)
                directory.mkdir(parents=True)
                self._write([directories[number] for number in some], directory)
            batches = list(calibration_batches(context.inputs["data"], sequences, length, batch, self.seed))
            losses[some] = mean_loss(directory, batches, context.execution.device)
            context.progress(len(losses), 2 * len(directories) - 1, "mixtures", f"loss {losses[some]:.4f}")
        return losses[some]

    def _write(self, directories: list[Path], output: Path) -> None:
        """The models merged, tensor by tensor, one file at a time in memory."""
        from tasks.models.files.layout import INDEX, MASKS, copy_companions, copy_files
        from tasks.models.files.shards import TensorFiles, write_tensors

        models = [TensorFiles(directory) for directory in directories]
        for file in models[0].files():
            merged = {}
            for name in (name for name, place in models[0].places.items() if place.file == file):
                first, *others = [files.read([name])[name] for files in models]
                values = [value.double() for value in (first, *others)]
                merged[name] = self.method.merge(values).to(first.dtype) if first.is_floating_point() else first
            write_tensors(merged, output / file.name)
        copy_companions(directories[0], output)
        copy_files(directories[0], output, INDEX, MASKS)


UNTOLD = ("_name_or_path", "transformers_version", "use_cache")  # what a config says beside what the model computes


def _require_one_model(one: PreTrainedModel, other: PreTrainedModel) -> None:
    """Raise ValueError unless two models are of the same shapes and compute the same of the same weights."""
    shapes, theirs = ({name: value.shape for name, value in model.state_dict().items()} for model in (one, other))
    if odd := [name for name, _ in theirs.items() ^ shapes.items()]:
        raise ValueError(f"models of different shapes have no mean ({min(odd)}); gather what came from one model")
    config, other_config = one.config.to_dict(), other.config.to_dict()
    for name in sorted(config.keys() | other_config.keys()):
        if name not in UNTOLD and config.get(name) != other_config.get(name):
            values = f"{config.get(name)!r} and {other_config.get(name)!r}"
            raise ValueError(f"models of different configs have no mean ({name} is {values}); gather what came from one model")


def _require_same_tensors(models: Sequence[TensorFiles]) -> None:
    """Raise ValueError unless all models store the same tensors in the same dtypes."""
    first, *others = ({(name, str(files.dtype(name))) for name in files} for files in models)
    for stored in others:
        if odd := stored ^ first:
            name, dtype = min(odd)
            raise ValueError(f"models that store other tensors have no mean ({name} in {dtype}); gather what one became")


def _require_one_mask(files: list[Path]) -> None:
    """Raise ValueError unless all models have one mask: their mean would be alive where any of them is."""
    from tasks.formats.mask import load_masks

    first, *others = ({name: mask.packed.numpy().tobytes() for name, mask in load_masks(file).items()} for file in files)
    for masks in others:
        if odd := [name for name, _ in first.items() ^ masks.items()]:
            raise ValueError(
                f"models under different masks have no sparse mean ({min(odd)}); gather what one pruned model was recovered to"
            )
