"""Whether a text is enough for the stages that read it: asked as soon as its tokens are counted, before any computes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from flows.nodes import Node, naming


def require_enough(data: Node, counted: Mapping[str, float], due: Iterable[Node]) -> None:
    """Raise ValueError at the first node of those ``due`` that needs more tokens of a split than were ``counted`` in ``data``;
    nothing where that makes no tokens."""
    for node in due if data.stage.yields == "tokens" else ():
        wanted = node.stage.reads() if node.parents.get("data") == data.id else {}
        for split, least in wanted.items():
            if (found := int(counted[f"{split}_tokens"])) < least:
                with naming(node):
                    raise ValueError(
                        f"corpus is too small: the {split} split holds {found:,} tokens, at least {least:,} are needed; "
                        "give more text, or shorter or fewer sequences"
                    )
