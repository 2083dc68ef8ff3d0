"""A process that promotes once it is told to: of several, each with a registry of its own, one may win."""

from __future__ import annotations

import sys

from cluster import registry

if __name__ == "__main__":
    uri, key, name = sys.argv[1:]
    look = registry.Aliases.__init__

    def waits(self: registry.Aliases, *given: object) -> None:
        look(self, *given)  # who has the alias is known now
        print("looked", flush=True)
        sys.stdin.readline()

    registry.Aliases.__init__ = waits  # type: ignore[method-assign]
    try:
        print(registry.promote(uri, f"prune/wanda-{key}", key, name, "champion", force=True), flush=True)
    except registry.Overtaken as reason:
        print(f"told: {reason}", flush=True)
