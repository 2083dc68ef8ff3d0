"""The shelf of allocators: each file allocates a model's sparsity to its matrices.

The class in it descends from :class:`Allocator`.
"""

from tasks.models.allocation import Allocator

__all__ = ["Allocator"]
