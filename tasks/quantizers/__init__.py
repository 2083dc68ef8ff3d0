"""The shelf of quantizers: each file moves the weights that live onto a grid.

The class in it descends from :class:`Quantizer`.
"""

from tasks.calibrate.quantizer import Quantizer

__all__ = ["Quantizer"]
