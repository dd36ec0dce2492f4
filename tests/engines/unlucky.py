"""What a worker process runs in tests of workers that fail: `work`, after something in it was broken."""

from __future__ import annotations

import os
import signal
import time


def _at_third_rename(then):
    """A shard is committed, and the file of the next one is about to get its name."""
    made, rename = iter(range(1000)), os.replace

    def counted(*arguments, **within):
        if next(made) == 2:
            then()
        return rename(*arguments, **within)

    os.replace = counted


def _stall():
    """Leave work for the others, and do not hear that all are to stop."""
    time.sleep(600)


def _work(task, link):
    from embedkit.engines.worker import work

    work(task, link)


def killed(task, link):
    """The second worker kills itself when it has one shard done and the next one's file is written."""
    first = task.config.share.place == 0
    _at_third_rename(_stall if first else lambda: os.kill(os.getpid(), signal.SIGKILL))
    _work(task, link)


def killed_at_once(task, link):
    """One is gone before it has loaded anything; the other never comes to an end."""
    if task.config.share.place == 1:
        os._exit(3)
    time.sleep(600)


def stalling(task, link):
    """A worker stays at its second shard, and does not hear that all are to stop."""
    _at_third_rename(_stall)
    _work(task, link)


def on_fake_device(task, link):
    """The workers' batches go to a device that copies late, and whose events tell the time."""
    import embedkit.inference.transfer
    from tests.inference.fake_device import FakeDevice

    embedkit.inference.transfer.transfer_for = lambda _: embedkit.inference.transfer.PinnedTransfer(FakeDevice())
    _work(task, link)


def failing(task, link):
    """The workers meet what ends a run."""
    from embedkit.engines import shard_loop
    from embedkit.errors import ModelError

    def broken(*_, **__):
        raise ModelError("a vector is not finite", hint="use --dtype fp32")

    shard_loop.finish_shard = broken
    _work(task, link)
