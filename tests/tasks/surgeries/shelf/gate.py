"""Gate: the inputs of every single matrix times a trained gain, and zero where they are smaller than a stored threshold."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from tasks.models.build.surgery import Surgery

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel


class Gate(Surgery):
    paper: ClassVar[str] = "after TEAL (arXiv 2408.14690)"

    threshold: float = Field(0.0, ge=0)
    """What every matrix's threshold starts with."""

    def apply(self, model: PreTrainedModel) -> None:
        import torch

        from tasks.models.find.linears import find_linears

        for name, linear in find_linears(model).items():
            if len(linear.shape) == 2:
                layer = model.get_submodule(name.removesuffix(".weight"))
                like = {"dtype": layer.weight.dtype, "device": layer.weight.device}
                layer.gain = torch.nn.Parameter(torch.ones(linear.shape[1], **like))
                layer.register_buffer("threshold", torch.tensor(self.threshold, **like))
                layer.register_forward_pre_hook(_gated)


def _gated(layer: nn.Module, inputs: tuple[Tensor]) -> Tensor:
    return inputs[0] * layer.gain * (inputs[0].abs() >= layer.threshold)
