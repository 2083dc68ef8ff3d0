"""What running the model costs, and what its zeros buy with the kernels that torch has: measured, also where it is nothing.

Of the model as it loads: prefill by batch and context, the time to the first token, decoding by batch, the memory at its
peak. Of one matrix of every shape in it, on one thread: the dense matrix with zeros, CSR, BSR, group gather, a smaller dense
matrix and, on a GPU, 2:4, each against the dense matrix, and the sparsity from which it is faster. ``report/runtime.md``
says it in tables, with the model's own masks first.
"""

from __future__ import annotations

import inspect
import statistics
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field, model_validator

from tasks.evaluators import Candidate, Evaluator, cache_of

if TYPE_CHECKING:
    import torch

Count = Annotated[int, Field(gt=0)]
TABLE = "runtime.md"


class Runtime(Evaluator):
    """Medians of the model's times; of matrices the best time of each, form by form in turn, so that what else the machine
    does hits all alike. ``break_even_sparsity`` of 1 says that a form was never faster."""

    paper: ClassVar[str] = "wall-clock measurement"
    metrics: ClassVar[tuple[str, ...]] = (
        "prefill_speed",
        "decode_speed",
        "time_to_first_token",
        "runtime_peak_memory_bytes",
        "break_even_sparsity",
        "own_speedup",
        "kernel_error",
    )
    exclusive: ClassVar[bool] = True

    batches: tuple[Count, ...] = Field((1, 8), min_length=1)
    """Sequences at a time."""
    contexts: tuple[Count, ...] = Field((128, 512), min_length=1)
    """Tokens of a prompt."""
    new: int = Field(16, gt=0)
    """Tokens decoded after the shortest prompt."""
    repeats: int = Field(5, gt=0)
    """Measurements of the model, of which the median counts; one before them warms up."""
    columns: tuple[Count, ...] = Field((1, 16, 128), min_length=1)
    """Tokens that a matrix is multiplied with at once: 1 is decoding one sequence."""
    sparsities: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = Field((0.5, 0.7, 0.8, 0.9, 0.95), min_length=1)
    """Shares of zeros that matrices are measured with, in random places."""
    block: int = Field(16, gt=1)
    """Side of the blocks of BSR."""
    group: int = Field(64, gt=1)
    """Rows of the groups that share columns."""
    rounds: int = Field(15, gt=0)
    """Measurements of a matrix, of which the best counts."""
    seconds: float = Field(0.1, gt=0)
    """Time for one form, after which no further round begins."""

    @model_validator(mode="after")
    def _once(self) -> Runtime:
        for name in ("batches", "contexts", "columns", "sparsities"):
            if len(set(values := getattr(self, name))) < len(values):
                raise ValueError(f"{name} has a value twice; give each once")
        return self

    def parts(self) -> None:
        """Forms of matrices, which a machine may lack."""

    def reads(self) -> dict[str, int]:
        return {"heldout": max(self.contexts)}

    def check_positions(self, positions: int) -> None:
        if max(max(self.contexts), min(self.contexts) + self.new) > positions:
            raise ValueError(
                f"runtime.contexts up to {max(self.contexts)} and runtime.new {self.new} "
                f"are more than the model's {positions} positions"
            )

    def measure(self, candidate: Candidate) -> dict[str, float]:
        import torch

        from tasks.models.memory import peak_bytes
        from tasks.models.running.bench import Bench
        from tasks.models.running.report import numbers, told

        with torch.inference_mode():
            found = self._model(candidate)
            found["runtime_peak_memory_bytes"] = float(peak_bytes(candidate.device))
            bench = Bench(candidate.directory, candidate.device, self.rounds, self.seconds)
            rows = list(bench.measure(self.columns, self.sparsities, self.block, self.group, candidate.progress))
        candidate.keep(TABLE, _model_table(found) + told(rows, bench.shares))
        return found | numbers(rows, bench.shares)

    def _model(self, candidate: Candidate) -> dict[str, float]:
        """Speeds of the whole model."""
        found, fewest = {}, min(self.contexts)
        for batch in self.batches:
            for context in self.contexts:
                prefill, decode = self._median(candidate, self._prompt(candidate, batch, context), context == fewest)
                found[f"prefill_speed.b{batch}_c{context}"] = batch * context / prefill
                if batch == 1:
                    found[f"time_to_first_token.c{context}"] = prefill
                if context == fewest:
                    found[f"decode_speed.b{batch}"] = batch * self.new / decode
        return found

    def _prompt(self, candidate: Candidate, batch: int, context: int) -> torch.Tensor:
        import torch

        from tasks.data.tokens import Tokens

        heldout = Tokens(candidate.data, "heldout")
        if heldout.sequences(context) == 0:
            raise ValueError(f"corpus is too small: the held-out split has less than one prompt of {context} tokens")
        return torch.from_numpy(heldout.sequence(0, context)).expand(batch, -1).to(candidate.device)

    def _median(self, candidate: Candidate, tokens_BT: torch.Tensor, decoding: bool) -> tuple[float, float]:
        """Seconds until there is a first token, and of ``new`` more."""
        from tasks.models.running.forms import timed

        model, state = candidate.model, {}
        last = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}

        def prefill() -> None:
            output = model(input_ids=tokens_BT, use_cache=True, **last)
            state["chosen"], state["cache"] = output.logits[:, -1:].argmax(-1), cache_of(model, output)

        def decode() -> None:
            for _ in range(self.new if decoding else 0):
                output = model(input_ids=state["chosen"], past_key_values=state["cache"], use_cache=True)
                state["chosen"], state["cache"] = output.logits[:, -1:].argmax(-1), cache_of(model, output)

        times = timed({"prefill": prefill, "decode": decode}, self.repeats, float("inf"), candidate.device)
        return statistics.median(times["prefill"]), statistics.median(times["decode"])


def _model_table(found: dict[str, float]) -> str:
    rows = [f"| {name} | {value:.4g} |" for name, value in found.items()]
    return "\n".join(["# The model as it loads", "", "| measured | token/s, s or bytes |", "|---|---|", *rows, "", ""])
