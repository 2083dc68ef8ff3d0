"""Masks on gradients and their norms, also of gradients on the host, where torch's own are slow on large tensors."""

from __future__ import annotations

import torch

PIECE = 1 << 20  # elements of a gradient on the host that are worked on at once: they lie in a cache


def mask(gradient: torch.Tensor, keep: torch.Tensor) -> None:
    """Multiply by uint8; on the host in pieces, since torch first converts all of ``keep``, into new memory."""
    size = len(keep) if gradient.is_cuda else PIECE
    for piece, kept in zip(gradient.split(size), keep.split(size), strict=True):
        piece.mul_(kept)


def norms(gradients: list[torch.Tensor]) -> torch.Tensor:
    """Float32, of flat gradients; on the host of pieces of them, since torch sums up each result with one thread."""
    if gradients[0].is_cuda:
        return torch.stack(torch._foreach_norm(gradients, 2, dtype=torch.float32))
    whole = [len(gradient) // PIECE * PIECE for gradient in gradients]
    rest = [gradient[end:] for gradient, end in zip(gradients, whole, strict=True)]
    pieces = [gradient[:end].view(-1, PIECE) for gradient, end in zip(gradients, whole, strict=True) if end]
    of_rest = torch.stack(torch._foreach_norm(rest, 2, dtype=torch.float32))
    return torch.cat([of_rest, *(torch.linalg.vector_norm(piece, dim=1, dtype=torch.float32) for piece in pieces)])
