"""A model is a base, which transformers builds, and an ordered list of surgeries: named changes of its modules.

The list stands in ``config.json``: ``surgeries: [{NAME: {FIELD: VALUE}}, ...]``. Whoever builds a model (a loader, the
streaming walker, training) builds the base and applies them in that order, before weights are loaded. So no code travels
with a checkpoint, and what a surgery adds, parameters and buffers, is stored, checked and loaded like anything else.
Plain transformers ignores the list, so an export needs every surgery undone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, ClassVar

from tasks.methods import Method, build, dump

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PretrainedConfig, PreTrainedModel

    from tasks.models.find.linears import Linear

FIELD = "surgeries"


class Surgery(Method):
    """Root of the surgeries. ``undone`` says in a sentence how an export, which goes without it, differs from the model; where
    it is empty the surgery cannot be undone, and export refuses. ``unpacked`` says why a quantized model cannot have it."""

    undone: ClassVar[str] = ""
    unpacked: ClassVar[str] = ""

    def check_linear(self, linear: Linear) -> None:
        """Raise ValueError where it cannot change a matrix that it would change."""

    def apply(self, model: PreTrainedModel) -> None:
        """Change the modules of a model that has all surgeries before this one, and never its config.

        It is asked of models on the meta device, whose weights are loaded later, and of those that have their weights. A
        buffer has to be persistent, since one that is not stored has no value after loading; a matrix that masks and grids
        shall leave alone is a :class:`tasks.models.find.linears.Unpruned`.
        """
        raise NotImplementedError

    def undo(
        self, model: PreTrainedModel, before: PreTrainedModel, read: Callable[[str], Tensor]
    ) -> dict[str, Callable[[Tensor], Tensor | None]]:
        """What makes stored tensors of ``model``, by name, those of the model without this surgery, so that both compute the
        same; None where it has no such tensor. Both models are on the meta device, and ``read`` gives another stored tensor.
        Masks are changed likewise."""
        raise NotImplementedError


def surgeries_of(config: PretrainedConfig | Mapping[str, object]) -> list[Surgery]:
    """The surgeries that a config, or the content of a ``config.json``, lists, in order. Raises ValueError in one line."""
    listed = config.get(FIELD) if isinstance(config, Mapping) else getattr(config, FIELD, None)
    if listed is None:
        return []
    if not isinstance(listed, list):
        raise ValueError(f"{FIELD}: should be a list of {{NAME: {{FIELD: VALUE}}}}, got {listed!r}")
    try:
        return [build("surgeries", spec, Surgery) for spec in listed]
    except ValueError as error:
        raise ValueError(f"{FIELD}: {error}") from None


def add_surgery(config: PretrainedConfig, surgery: Surgery) -> None:
    """Write into a config that its model has one more surgery."""
    setattr(config, FIELD, [*(getattr(config, FIELD, None) or []), dump(surgery)])
