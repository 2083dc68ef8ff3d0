"""The shelf of transforms: each file makes a new model bigger and sparser at the same FLOPs.

The class in it descends from :class:`Transform`.
"""

from tasks.models.build.transform import Transform

__all__ = ["Transform"]
