"""A map of a model: every prunable matrix with its zeros, whether its pattern holds, its effective rank, what its weights look
like and what flows into it. The numbers are its summary; the table is ``report/atlas.csv``.

Where compression went wrong shows here: a matrix that lost more than the others, one whose rank fell, one whose inputs have
the outliers that rounding suffers from.
"""

from __future__ import annotations

import csv
import io
from contextlib import ExitStack
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from tasks.evaluators import Candidate, Windowed

if TYPE_CHECKING:
    import torch

    from tasks.formats.mask import Mask
    from tasks.models.files.quantized import StoredWeights
    from tasks.models.find.linears import Linear
    from tasks.models.spectrum import Inflow

TABLE = "atlas.csv"
Row = dict[str, float | str | None]


class Atlas(Windowed):
    """One row a matrix, an expert's each. The weights are those stored, a quantized file's decompressed; inputs are observed
    on held-out text, those of fused experts are not."""

    paper: ClassVar[str] = "effective rank: Roy and Vetterli, EUSIPCO 2007"
    metrics: ClassVar[tuple[str, ...]] = (
        "effective_rank",
        "lowest_effective_rank",
        "least_zeros",
        "most_zeros",
        "broken_matrices",
        "weight_kurtosis",
        "input_outlier",
    )

    length: int = Field(256, ge=2)
    """Tokens of a window."""
    tokens: int = Field(4096, gt=0)
    """Tokens of held-out text, at most, on which inputs are observed."""
    batch: int = Field(8, gt=0)
    """Windows at a time."""

    def measure(self, candidate: Candidate) -> dict[str, float]:
        from tasks.formats.mask import load_masks
        from tasks.models.files.layout import MASKS
        from tasks.models.files.quantized import StoredWeights
        from tasks.models.find.linears import find_linears

        weights = StoredWeights(candidate.directory)
        linears, masks = find_linears(weights.skeleton), load_masks(candidate.directory / MASKS)
        flows, rows = self._observe(candidate, linears), []
        for number, (name, linear) in enumerate(linears.items()):
            rows += self._rows(candidate, weights, linear, masks.get(name), flows.get(name))
            candidate.progress(number + 1, len(linears), "matrices")
        candidate.keep(TABLE, _table(rows))
        return _summary(rows)

    def _observe(self, candidate: Candidate, linears: dict[str, Linear]) -> dict[str, Inflow]:
        """What flows into every matrix that is a module's own."""
        import torch

        from tasks.data.tokens import heldout_windows
        from tasks.models.spectrum import Inflow

        flows = {name: Inflow() for name, linear in linears.items() if len(linear.shape) == 2}

        def hook(flow: Inflow):  # type: ignore[no-untyped-def]
            return lambda module, given: flow.add(given[0].flatten(0, -2))

        with ExitStack() as hooks, torch.inference_mode():
            for name, flow in flows.items():
                module = candidate.model.get_submodule(name.rpartition(".")[0])
                hooks.enter_context(module.register_forward_pre_hook(hook(flow)))
            for batch in heldout_windows(candidate.data, self.length, self.tokens, self.batch, candidate.progress):
                candidate.model(input_ids=batch.tokens.to(candidate.device), use_cache=False)
        return flows

    def _rows(
        self, candidate: Candidate, weights: StoredWeights, linear: Linear, mask: Mask | None, flow: Inflow | None
    ) -> list[Row]:
        from tasks.models.spectrum import weight_figures

        stored = linear.matrix(weights.read(linear.name)).to(candidate.device)
        rows = []
        for name, expert in linear.matrices.items():
            matrix_OI = stored if expert is None else stored[expert]
            row: Row = {"matrix": name, "outputs": matrix_OI.shape[0], "inputs": matrix_OI.shape[1]}
            row |= weight_figures(matrix_OI)
            row |= {"pattern": mask.pattern if mask else None, "pattern_holds": _holds(matrix_OI, mask, expert)}
            row |= flow.figures() if flow and flow.count else {}
            rows.append(row)
        return rows


def _holds(matrix_OI: torch.Tensor, mask: Mask | None, expert: int | None) -> int | None:
    """Whether the stored zeros keep the pattern the mask promises; None where nothing is promised."""
    from tasks.formats.pattern import parse_pattern

    if mask is None or expert in mask.exempt:
        return None
    return int(parse_pattern(mask.pattern).holds((matrix_OI != 0).cpu(), mask.sparsity))


def _table(rows: list[Row]) -> str:
    text = io.StringIO()
    columns = list(dict.fromkeys(column for row in rows for column in row))
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _summary(rows: list[Row]) -> dict[str, float]:
    def column(name: str) -> list[float]:
        return [value for row in rows if isinstance(value := row.get(name), (int, float))]

    ranks, zeros, outliers = column("effective_rank"), column("zeros"), column("input_outlier")
    return {
        "effective_rank": sum(ranks) / len(ranks),
        "lowest_effective_rank": min(ranks),
        "least_zeros": min(zeros),
        "most_zeros": max(zeros),
        "broken_matrices": float(column("pattern_holds").count(0)),
        "weight_kurtosis": sum(column("kurtosis")) / len(rows),
        **({"input_outlier": max(outliers)} if outliers else {}),
    }
