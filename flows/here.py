"""Makes what a plan lacks in this process, without a cluster: on a laptop, in a debugger, or as a rank under torchrun."""

from __future__ import annotations

import os
import time
from contextlib import nullcontext
from pathlib import Path

from cluster.lock import locked
from cluster.profile import Profile
from cluster.store.local import Store
from flows.ending import ranks
from flows.spared import Spared
from flows.submit import Submitter


def make_here(spared: Spared, store: Store, profile: Profile) -> None:
    """Under torchrun every rank trains; the rest is rank 0's work, which the others help with where the profile says workers,
    and wait for. What is ``spared`` is left out."""
    from tasks.job import produce, share
    from tasks.train.attempts import next_attempt

    submitter, rank = Submitter(profile), int(os.environ.get("RANK", 0))
    alone = ranks() == 1
    plan, watcher = spared.plan, spared.watcher
    for step in plan.due:
        if spared.lost(step):
            continue
        begun = time.monotonic()
        watcher.started(step)
        work = submitter.payload(step)
        shared = not alone and not step.node.stage.distributed and work["execution"]["workers"] > 1
        if rank == 0 or step.node.stage.distributed or shared:
            # Another such run may be making the same artifact: wait, and find it made. Ranks must all go on at once.
            lock = Path(profile.scratch) / "locks" / step.artifact.key
            try:
                with locked(lock, f"another run, which makes {step.artifact.address}") if alone else nullcontext():
                    attempt = next_attempt(Path(profile.scratch) / step.artifact.address)  # rank 0's is that of all
                    work["execution"] = {**work["execution"], "attempt": attempt}
                    (share if shared else produce)(work, lambda event, step=step: watcher.event(step, event))
                    lock.unlink(missing_ok=True)  # who waits for it finds the artifact
            except Exception as error:
                if not alone:  # the other ranks may be well, and would wait
                    raise
                spared.failed(step, error)
                continue
        while (record := store.done(step.artifact)) is None:
            time.sleep(0.2)
        watcher.finished(step, record, max(0.0, time.monotonic() - begun - record.seconds))
        plan.require_enough(step, record)
