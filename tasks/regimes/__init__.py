"""The shelf of regimes: each file decides what happens to weights and masks while a model trains.

The class in it descends from :class:`Regime`.
"""

from tasks.train.regime import Regime

__all__ = ["Regime"]
