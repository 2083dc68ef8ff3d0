"""What a flow run is called: what the user typed, else the name of its recipe.

Prefect gives every run a name of its own making, its UI fills one into the form, and neither marks it as such. So the two
patterns are known here; whatever does not follow them was typed.
"""

from __future__ import annotations

import re

STARS = (
    "alpha|beta|gamma|delta|epsilon|zeta|eta|theta|iota|kappa|lambda|mu|nu|xi|omicron|pi|rho|sigma|tau|upsilon|phi|chi|psi"
    "|omega"
)
FROM_THE_FORM = re.compile(rf"({STARS})\d*-[a-z]+(-[a-z]+)*")  # zeta4-andromedae-cluster


def title(given: str | None, recipe: str) -> str:
    """The name of a run that was ``given`` one so far."""
    return recipe if not given or made_up(given) else given


def made_up(name: str) -> bool:
    """Whether Prefect's server, its client or its form made the name."""
    return FROM_THE_FORM.fullmatch(name) is not None or _from_the_server(name)


def _from_the_server(name: str) -> bool:
    from coolname.data import config  # the library whose words Prefect takes

    def words(kind: str) -> set[str]:
        entry = config[kind]
        return set(entry.get("words", ())).union(*map(words, entry.get("lists", ())))

    kinds = [words(kind) for kind in config["an"]["lists"]]  # an adjective and a noun
    parts = name.split("-")
    return len(parts) == len(kinds) and all(part in known for part, known in zip(parts, kinds, strict=True))
