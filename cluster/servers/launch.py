"""What it takes to start a server: its command, and an environment that points at no other one."""

from __future__ import annotations

import os
from typing import Any

from pydantic import BaseModel

LOCAL_NAMES = "127.0.0.1,localhost,::1"


class Launch(BaseModel):
    """What it takes to start one: the command, its environment, and where it will answer."""

    command: list[str]
    environment: dict[str, str]
    url: str = ""
    token: str = ""


def inherited(family: str) -> dict[str, Any]:
    """This process's environment without settings that would point the new server at another one."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(family)}
    return {**kept, "NO_PROXY": no_proxy(), "no_proxy": no_proxy(), "PYTHONUNBUFFERED": "1"}


def no_proxy() -> str:
    known = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    return known if LOCAL_NAMES in known else f"{known},{LOCAL_NAMES}".lstrip(",")
