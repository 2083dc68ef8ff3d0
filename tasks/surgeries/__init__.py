"""The shelf of surgeries: each file is a change of a model's modules that its config names.

The class in it descends from :class:`Surgery`.
"""

from tasks.models.build.surgery import Surgery

__all__ = ["Surgery"]
