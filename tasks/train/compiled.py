"""Decoder blocks compiled one by one: on a GPU a training step takes half the time, and compiling a few seconds.

Blocks of a kind share what was compiled for the first of them, so depth costs nothing. Only the block's own forward pass is
compiled. Hooks, and what swaps its weights for their duration (``tasks.train.effective``), stay around it and may do as they
please from step to step; names, modules and parameters of the model are as they were.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from tasks.models.find.linears import decoder_blocks

BACKEND = "inductor"
LIMIT = 32  # variants of a block: kinds of layers, phases of a regime, student and teacher


class CompilationFailed(RuntimeError):
    """One line that says what to do about it."""


class Compiled:
    """A block's forward pass, compiled when it is first called."""

    compiled = True

    def __init__(self, block: nn.Module) -> None:
        self.kind = type(block).__name__
        self._forward = kernel(block.forward)

    def __call__(self, *given: Any, **named: Any) -> Any:
        from torch._dynamo.exc import TorchDynamoException

        try:
            return self._forward(*given, **named)
        except TorchDynamoException as error:
            reason = next(filter(None, map(str.strip, str(error).splitlines())), type(error).__name__)
            raise CompilationFailed(f"{self.kind} cannot be compiled; set compile: false in the profile ({reason})") from error


def compile_blocks(model: nn.Module) -> None:
    """From now on the decoder blocks of a model run compiled, as long as nothing has replaced their forward pass before."""
    torch._dynamo.config.recompile_limit = max(LIMIT, torch._dynamo.config.recompile_limit)
    torch._dynamo.config.skip_nnmodule_hook_guards = (
        False  # else a model with hooks in it runs what was compiled for one without
    )
    for block in decoder_blocks(model)[1]:
        block.forward = Compiled(block)


def compiled_around(model: nn.Module, path: str) -> nn.Module | None:
    """The compiled block that a module lies in; None where it runs by itself."""
    parts = path.split(".")
    outer = (model.get_submodule(".".join(parts[:end])) for end in range(1, len(parts) + 1))
    return next((module for module in outer if getattr(module.forward, "compiled", False)), None)


def kernel(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of tensors, compiled when it is first called."""
    return torch.compile(function, backend=BACKEND)


def fused(model: nn.Module, function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of tensors: one kernel where a model runs compiled, as it is written elsewhere. The result is the same."""
    compiled = any(getattr(module.forward, "compiled", False) for module in model.modules())
    return kernel(function) if compiled else function


class Compilation:
    """Of one run: how long the first step took, and whether anything was compiled after it. ``note`` gets a line for people."""

    def __init__(self, note: Callable[[str], None]) -> None:
        self.note, self.began = note, time.monotonic()
        self.graphs: int | None = None
        self.breaks = sum(_counted("graph_break").values())  # of what this process did before
        self.again: list[int] = []

    def step(self, step: int) -> float | None:
        """After every step; gives the seconds of the first."""
        graphs = _counted("stats")["unique_graphs"]
        if self.graphs is None:
            self.graphs = graphs
            if (breaks := sum(_counted("graph_break").values()) - self.breaks) > 0:
                self.note(f"compiled layers are in pieces, {breaks} breaks: {_line(list(_counted('graph_break'))[-1])}")
            return time.monotonic() - self.began
        if graphs > self.graphs:
            self.graphs = graphs
            self.again.append(step)
            if len(self.again) == 1:
                self.note(f"the layers were compiled again in step {step}{_reason()}")
        return None

    def end(self) -> None:
        """Once more what was told once, where it went on."""
        if len(self.again) > 1:
            self.note(f"the layers were compiled again in {len(self.again)} steps, the last of them {self.again[-1]}")


def _counted(what: str) -> dict[str, int]:
    return torch._dynamo.utils.counters[what]


def _reason() -> str:
    """Why the last thing compiled was no more what it had been compiled for."""
    reasons = [each.recompile_reason for each in torch._dynamo.utils.get_compilation_metrics() if each.recompile_reason]
    return f": {_line(reasons[-1])}" if reasons else ""


def _line(text: str, length: int = 160) -> str:
    return " ".join(text.partition("Hint:")[0].split())[:length]
