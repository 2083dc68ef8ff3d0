"""The shelf of objectives: each file is something that training minimises.

The class in it descends from :class:`Objective`.
"""

from tasks.train.objective import Objective

__all__ = ["Objective"]
