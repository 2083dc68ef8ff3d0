"""Whether a text is enough for the stages that read it: asked as soon as its tokens are counted, before any computes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flows.nodes import naming

if TYPE_CHECKING:
    from cluster.store.artifacts import Record
    from flows.plan import Plan, Step


def require_enough(plan: Plan, step: Step, record: Record) -> None:
    """Raise ValueError at the first stage to be made that needs more tokens of a split than ``step`` found in it; nothing where
    ``step`` makes no tokens."""
    for due in plan.due if step.node.stage.yields == "tokens" else ():
        wanted = due.node.stage.reads() if due.node.parents.get("data") == step.id else {}
        for split, least in wanted.items():
            if (found := int(record.metrics[f"{split}_tokens"])) < least:
                with naming(due.node):
                    raise ValueError(
                        f"corpus is too small: the {split} split holds {found:,} tokens, at least {least:,} are needed; "
                        f"give more text, or shorter or fewer sequences"
                    )
