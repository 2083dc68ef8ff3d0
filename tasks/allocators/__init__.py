"""The shelf of allocators: each file shares one sparsity out over a model's matrices.

The class in it descends from :class:`Allocator`.
"""

from tasks.models.allocation import Allocator

__all__ = ["Allocator"]
