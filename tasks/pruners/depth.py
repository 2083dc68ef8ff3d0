"""Depth: leave out whole blocks, those that change the hidden states least, or that the text can best be foretold without.

A block's influence is 1 less the cosine of what enters and what leaves it, over the calibration text, each in the whole model
(ShortGPT). By ``perplexity`` blocks go one at a time, each time the one without which the loss on that text is lowest; that
sees how blocks stand in for each other, at as many passes over the text as blocks are left, for each that goes.

Seen by `make claims-recover` (perplexity, dense 12.21): without one block of five 19.97, distilled over 49 k tokens
14.13 ± 0.04 (three seeds), over 246 k 13.02; a model born with four blocks comes to 13.06 on 4.1 M (one seed each).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from tasks.calibrate.resizer import Resizer, remaining

if TYPE_CHECKING:
    from tasks.calibrate.whole import Whole
    from tasks.models.cut import Cut


class Depth(Resizer):
    """The sparsity is the share of the blocks, to the nearest one."""

    paper: ClassVar[str] = "ShortGPT (arXiv 2403.03853)"

    criterion: Literal["influence", "perplexity"] = "influence"
    """What tells the block that goes: how little it changes what flows through it, or how little is lost without it."""

    def outline(self, whole: Whole, sparsity: float) -> Cut:
        from tasks.models.cut import Cut

        return Cut(blocks=tuple(range(remaining(whole.depth, sparsity, 1, "blocks"))))

    def cut(self, whole: Whole, sparsity: float) -> Cut:
        from tasks.models.cut import Cut

        going = whole.depth - remaining(whole.depth, sparsity, 1, "blocks")
        if self.criterion == "influence":
            scores = whole.influences()
            gone = sorted(range(whole.depth), key=lambda index: scores[index])[:going]
            told: dict[str, object] = {"influence": scores}
        else:
            gone, losses = [], [whole.loss()]
            for _ in range(going):
                left = [index for index in range(whole.depth) if index not in gone]
                found = {index: whole.loss([*gone, index]) for index in left}
                gone.append(min(found, key=lambda index: found[index]))
                losses.append(found[gone[-1]])
                whole.told(len(gone), going)
            told = {"loss": losses}
        kept = tuple(index for index in range(whole.depth) if index not in gone)
        return Cut(blocks=kept, scores={**told, "gone": gone})
