"""Roles: what the ``from`` of an entry may say, and that whatever is said to fill a role is used.

The form is checked before anything follows a branch, the rest once the stage is read.
"""

from __future__ import annotations

from typing import Any


def check_origin(stated: Any, where: str) -> None:
    """Raise ValueError unless a ``from`` is an id, a list of ids, or ``{role: id}``, where a role may take a list."""
    listed = stated.values() if isinstance(stated, dict) else stated if isinstance(stated, list) else [stated]
    ids = [id for one in listed for id in (one if isinstance(stated, dict) and isinstance(one, list) else [one])]
    if not isinstance(stated, (str, list, dict)) or any(isinstance(id, (list, dict)) for id in ids):
        raise ValueError(f"recipe.{where}.from: an id, a list of ids, or {{role: id}} is needed, got {stated!r}")
