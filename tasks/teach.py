"""Teach: write down once what a model finds likeliest after each token of the training text, for students to learn from.

A student that minimises ``top_k`` with ``precomputed`` reads these files and needs no teacher in its memory, nor its forward
pass at each step. Soups and sweeps share them, whatever their seeds: answers are kept by the row of the text.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field, model_validator

from tasks.context import Context
from tasks.stage import Kind, ModelStage

if TYPE_CHECKING:
    from tasks.models.accounting import Shape
    from tasks.train.cost import Machine


class Teach(ModelStage):
    """Writes down what a model finds likeliest after each token of the training text."""

    yields: ClassVar[Kind] = "logits"

    k: int = Field(64, ge=1)
    """How many of the likeliest tokens are kept of each; of a smaller vocabulary all."""
    temperature: float = Field(2.0, gt=0)
    """Temperature at which probabilities are kept: that of the objective."""
    length: int = Field(256, ge=2)
    """Tokens per training sequence of the students."""
    tokens: int | None = Field(None, gt=0)
    """Of how many tokens of the training text: those that students of the same seed and length see first. All of it unless
    given, which serves students of every seed."""

    @model_validator(mode="after")
    def _a_row_at_least(self) -> Teach:
        if self.tokens is not None and self.tokens < self.length:
            raise ValueError(f"tokens {self.tokens} are less than one sequence of length {self.length}")
        return self

    def reads(self) -> dict[str, int]:
        return {"train": self.length}

    def forecast(self, shape: Shape, machine: Machine | None = None) -> dict[str, float]:
        from tasks.train.written import bytes_per_token

        if self.tokens is None:  # as many as the text has
            return {}
        predicted = self.tokens // self.length * (self.length - 1)
        flops = self.tokens * shape.forward_flops(self.length)
        return {"tokens": self.tokens, "flops": flops, "disk_bytes": predicted * bytes_per_token(self.k, shape.vocabulary)}

    def run(self, context: Context) -> dict[str, float]:
        from tasks.train.apart import may_share_rows, sampler
        from tasks.train.ready import load_teacher
        from tasks.train.written import Description, write

        teacher = load_teacher(self.incoming(context), context.execution).eval()
        apart = may_share_rows(teacher, context.inputs["data"])
        drawn = sampler(context.inputs, self.length, 1, self.seed, apart, None, context.note)
        rows = drawn.tokens.sequences(self.length)
        wanted = rows if self.tokens is None else min(rows, self.tokens // self.length)
        order = sorted(number for step in range(wanted) for number in drawn.numbers(step))
        vocabulary = teacher.config.get_text_config(decoder=True).vocab_size
        said = Description(self.k, self.temperature, self.length, vocabulary, rows, wanted, apart)

        def progress(done: int) -> None:
            context.progress(done * self.length, wanted * self.length, "tokens")

        written = write(context.output, said, teacher, drawn.tokens, order, context.execution.logits_bytes, progress)
        return {"taught_tokens": float(wanted * self.length), "bytes": float(written)}
