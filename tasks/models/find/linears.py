"""Find what can be pruned: every matrix that maps features to features inside the decoder blocks of a causal LM.

Found by structure, never by the model's name: a new architecture needs no new line here. Storage differs (GPT-2 keeps
its matrices transposed, experts lie fused in one 3-D parameter), so a :class:`Linear` remembers how to see its
parameter as [O, I] and back, and nothing above this file has to know. What is not understood is refused, not skipped.

Shapes: B = batch, T = tokens, E = experts, O = output features, I = input features.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import nn


@dataclass(frozen=True)
class Linear:
    """One prunable parameter. ``shape`` is that of its matrix view, [O, I] or [E, O, I], whatever the storage.

    ``feed_forward`` tells the matrices of the feed-forward part from those of the attention. ``vectors`` are the sizes of
    what lies beside its module and is no matrix: the norms between it and its siblings.
    """

    name: str
    shape: tuple[int, ...]
    transposed: bool = False
    feed_forward: bool = True
    vectors: frozenset[int] = frozenset()

    def matrix(self, stored: torch.Tensor) -> torch.Tensor:
        """The parameter as stored -> its [..., O, I] view."""
        return stored.mT if self.transposed else stored

    def stored(self, matrix: torch.Tensor) -> torch.Tensor:
        """Inverse of :meth:`matrix`."""
        return matrix.mT if self.transposed else matrix

    @property
    def matrices(self) -> dict[str, int | None]:
        """Names of the single matrices in it: itself, or ``name[3]`` for expert 3."""
        if len(self.shape) == 2:
            return {self.name: None}
        return {f"{self.name}[{expert}]": expert for expert in range(self.shape[0])}


class Unpruned(nn.Module):
    """A matrix that every token pays for and no mask or grid touches: the dense part of a layer that is sparse besides.

    No nn.Linear, because what looks for those (compressed-tensors) is to leave it alone.
    """

    def __init__(self, weight_OI: torch.Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight_OI)

    def forward(self, value_BTI: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(value_BTI, self.weight)


class Branch(nn.Module):
    """Root of what lives inside a linear beside its weight: nothing in it is prunable, whatever it is made of.

    Called with the stored weight, it gives the one to compute with.
    """


def decoder_blocks(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """The list of decoder blocks and its name: the one ModuleList of as many blocks as the config has layers. Where what sees
    or hears has as many, it is that inside of what transformers calls the decoder."""
    kind, depth = type(model).__name__, getattr(model.config.get_text_config(decoder=True), "num_hidden_layers", None)
    if depth is None:
        raise ValueError(f"unsupported: the config of a {kind} does not say how many blocks it has")
    found = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == depth and all(map(_has_matrix, module))
    }
    outer = [name for name in found if not any(name.startswith(f"{other}.") for other in found)]
    if len(outer) > 1 and hasattr(model, "get_decoder"):
        inner = set(model.get_decoder().modules())
        outer = [name for name in outer if found[name] in inner]
    if len(outer) != 1:
        raise ValueError(f"unsupported: {kind} has {len(outer)} lists of {depth} blocks ({outer}); exactly 1 is needed")
    return outer[0], found[outer[0]]


def find_linears(model: nn.Module) -> dict[str, Linear]:
    """Every prunable matrix of the decoder blocks by parameter name; embeddings, norms, routers and heads are none."""
    prefix, blocks = decoder_blocks(model)
    linears, owners = {}, {}
    for index, block in enumerate(blocks):
        routers = routers_of(block)
        attention = tuple(path for path, module in block.named_modules() if "Attention" in type(module).__name__)
        branches = tuple(path for path, module in block.named_modules() if isinstance(module, Branch))
        for path, module in block.named_modules():
            if _inside(path, branches):
                continue
            for key, parameter in module.named_parameters(recurse=False):
                name = ".".join(filter(None, (prefix, str(index), path, key)))
                if owners.setdefault(id(parameter), name) != name:
                    raise ValueError(f"unsupported: {name} is the same parameter as {owners[id(parameter)]}")
                if id(parameter) not in routers and (linear := _linear(name, module, key, parameter)):
                    linears[name] = replace(linear, feed_forward=not _inside(path, attention), vectors=_vectors(block, path))
    return linears


def _inside(path: str, outers: tuple[str, ...]) -> bool:
    return any(path == outer or path.startswith(f"{outer}.") for outer in outers)


def _vectors(block: nn.Module, path: str) -> frozenset[int]:
    """Sizes of the vectors in the module around the one at ``path``, and in those of its other parts that have no matrix."""
    outer = block.get_submodule(path.rpartition(".")[0])
    own = [list(module.parameters(recurse=False)) for module in (outer, *outer.children())]
    vectors = [values for values in own if all(value.ndim == 1 for value in values)]
    return frozenset(value.numel() for values in vectors for value in values)


def _linear(name: str, module: nn.Module, key: str, parameter: nn.Parameter) -> Linear | None:
    shape, experts = tuple(parameter.shape), expert_count(module)
    if isinstance(module, nn.Linear):
        return Linear(name, shape) if key == "weight" else None
    if _is_conv1d(module):
        return Linear(name, shape[::-1], transposed=True) if key == "weight" else None
    if experts and len(shape) == 3:
        transposed = module.is_transposed
        return Linear(name, (shape[0], shape[2], shape[1]) if transposed else shape, transposed)
    known = isinstance(module, (Unpruned, nn.Embedding, nn.modules.conv._ConvNd))
    if len(shape) < 2 or known or (experts and len(shape) == 2):  # norms and biases; an expert bias is [E, O]
        return None
    hint = " (fused experts that do not say their orientation)" if len(shape) == 3 else ""
    raise ValueError(f"unsupported: {name}, a {len(shape)}-D parameter of {type(module).__name__}{hint}")


def _is_conv1d(module: nn.Module) -> bool:
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, Conv1D)


def expert_count(module: nn.Module) -> int | None:
    """How many experts lie fused in the 3-D parameters of a module. transformers marks such modules' orientation."""
    fused = [parameter for parameter in module.parameters(recurse=False) if parameter.ndim == 3]
    return fused[0].shape[0] if fused and hasattr(module, "is_transposed") else None


def _has_matrix(block: nn.Module) -> bool:
    inner = (module for module in block.modules() if module is not block)  # a list of matrices is no list of blocks
    return any(isinstance(module, nn.Linear) or _is_conv1d(module) or expert_count(module) for module in inner)


def routers_of(block: nn.Module) -> set[int]:
    """Parameters that choose experts: siblings of the experts whose every matrix has one output per expert (or one)."""
    routers: set[int] = set()
    for parent in block.modules():
        children = list(parent.children())
        counts = {expert_count(child) for child in children} - {None}
        counts |= {len(child) for child in children if isinstance(child, nn.ModuleList) and len(child) > 1}
        for child in children if counts else ():
            matrices = [parameter for parameter in child.parameters() if parameter.ndim >= 2]
            if all(matrix.ndim == 2 and matrix.shape[0] in counts | {1} for matrix in matrices):
                routers |= {id(matrix) for matrix in matrices}
    return routers
