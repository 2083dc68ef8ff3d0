"""What has to hold before an export is handed on: plain transformers, in a process of its own, finds in it what we have.

Its logits are ours, its loss on held-out text is ours, and the masks hold on the weights that it loaded. A model that fails is
not published, and the error says what differed. One process serves all questions of ours: it is started when an export is in
sight, so that it has imported its libraries by the time it is asked.
"""

from __future__ import annotations

import atexit
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import torch

from tasks.formats.mask import BrokenMask, load_masks
from tasks.models.files import reload
from tasks.models.files.layout import MASKS
from tasks.models.find.linears import find_linears

if TYPE_CHECKING:
    from transformers import PreTrainedModel

WINDOWS, LENGTH = 8, 64
LOSS = 1e-3  # of a perplexity, as a share of it
_LEFT_OUT = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")  # of a group that it is no part of
_QUIET = {"TQDM_DISABLE": "1", "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}


@dataclass(frozen=True)
class Seen:
    """A model as we have it: its logits [T, V] on the first of some rows of tokens, and its mean loss on all of them."""

    tokens_BT: torch.Tensor
    logits_TV: torch.Tensor
    loss: float
    dtype: torch.dtype

    @classmethod
    def of(cls, model: PreTrainedModel, tokens_BT: torch.Tensor) -> Seen:
        return cls(tokens_BT, *reload.look(model, tokens_BT), model.dtype)

    @classmethod
    def summed_up(cls, logits: Iterable[torch.Tensor], tokens_BT: torch.Tensor, dtype: torch.dtype) -> Seen:
        """The same of a model of that dtype from its logits [1, T, V] on each row, which may be computed when they are asked
        for."""
        return cls(tokens_BT, *reload.summed_up(logits, tokens_BT), dtype)

    def require_like(self, directory: Path, difference: float, loss: float) -> None:
        """Raise ValueError where what was found in a directory differs by more than rounding."""
        if not (math.isfinite(self.loss) and bool(self.logits_TV.isfinite().all())):
            kind = str(self.dtype).removeprefix("torch.")
            raise ValueError(
                f"the model that the export in {directory} was made from computes NaN or infinity on held-out text in {kind}; "
                "if its weights are finite, store it in a dtype of a wider range"
            )
        rounding = max(1e-5, 2 * torch.finfo(self.dtype).eps)  # a surgery undone sums in another order
        if not difference <= rounding * max(1.0, float(self.logits_TV.abs().max())):
            raise ValueError(f"the export in {directory} does not read back: its logits differ by up to {difference:g}")
        if not abs(math.expm1(loss - self.loss)) <= LOSS:
            raise ValueError(
                f"the export in {directory} does not read back: its perplexity on held-out text is {_perplexity(loss)}, "
                f"that of the model it was made from {_perplexity(self.loss)}"
            )


def windows(data: Path | None, model: PreTrainedModel) -> torch.Tensor:
    """The first windows of a data directory's held-out split, as long as the model takes them; without data, ids in a row."""
    from tasks.data.tokens import Tokens
    from tasks.models.facts import positions

    length = min(LENGTH, positions(model.config) or LENGTH)
    heldout = Tokens(data, "heldout") if data else None
    if heldout and (count := min(WINDOWS, heldout.sequences(length))):
        return heldout.batch(range(count), length).tokens
    vocabulary = model.config.get_text_config(decoder=True).vocab_size
    return torch.arange(length).remainder(vocabulary)[None]


class Reader:
    """The process that knows nothing of ours, and what it is asked."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._said: IO[str] | None = None

    def start(self) -> None:
        """Begin, unless it runs: it imports its libraries while others work."""
        if self._process is None or self._process.poll() is not None:
            environment = {name: value for name, value in os.environ.items() if name not in _LEFT_OUT} | _QUIET
            self._said = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115
            command = [sys.executable, "-P", str(Path(reload.__file__))]
            pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self._said}
            self._process = subprocess.Popen(command, env=environment, **pipes)
            atexit.register(self.stop)

    def stop(self) -> None:
        if self._process:
            self._process.kill()  # also one that was stopped, which would not hear of anything else
            self._process.wait()

    def ask(self, question: dict[str, Any], followed: bytes) -> dict[str, Any]:
        code = idle = -signal.SIGALRM  # how it ends when it is asked nothing for long: maybe as it is asked
        while code == idle:
            self.start()
            assert self._process and self._process.stdin and self._process.stdout
            with suppress(BrokenPipeError):
                self._process.stdin.write(json.dumps({**question, "bytes": len(followed)}).encode() + b"\n" + followed)
                self._process.stdin.flush()
            for line in self._process.stdout:
                if line.startswith(b"{"):
                    return json.loads(line)
            code = self._process.wait()
        if code == -signal.SIGKILL:
            raise ChildProcessError(
                "the process that reads an export back was killed, as Linux does where memory runs out: it holds the model as "
                "plain transformers loads it; free some and run the same command again"
            )
        assert self._said
        self._said.seek(0)
        last = (self._said.read().strip().splitlines() or ["it said nothing"])[-1]
        raise RuntimeError(f"the process that reads an export back ended with code {code}: {last}")


READER = Reader()


def require_readable_elsewhere(directory: Path, seen: Seen) -> float:
    """Raise ValueError unless plain transformers finds in a directory the model that was ``seen``; the largest difference of
    a logit."""
    from safetensors.torch import save

    from tasks.models.files.checkpoint import skeleton

    masks = load_masks(directory / MASKS)
    for name, mask in masks.items():
        if reason := mask.broken():
            raise BrokenMask(name, reason)
    transposed = [name for name, linear in find_linears(skeleton(directory)).items() if linear.transposed] if masks else []
    question = {"directory": str(directory), "masks": str(directory / MASKS) if masks else "", "transposed": transposed}
    known = save({"tokens": seen.tokens_BT.contiguous(), "logits": seen.logits_TV.contiguous()})
    found = READER.ask({**question, "threads": torch.get_num_threads()}, known)
    if broken := found.get("broken"):
        raise ValueError(f"plain transformers cannot load the export in {directory}: {broken}")
    for name, alive in found["revived"].items():
        reason = f"{directory} as transformers loads it has no such weight"
        raise BrokenMask(name, reason if alive < 0 else f"{alive} dead weights are not zero as transformers loads them")
    seen.require_like(directory, found["difference"], found["loss"])
    return float(found["difference"])


def _perplexity(loss: float) -> str:
    return f"{math.exp(loss):.4g}" if loss < 700 else "beyond numbers"
