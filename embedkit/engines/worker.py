"""A worker: loads the model, then computes the shards that it is given. A process of a pool, or a Ray actor.

It exchanges JSON with the run: facts of the model, numbers, error messages. No text of any row.
"""

from __future__ import annotations

import contextlib
import os
import traceback
from dataclasses import asdict, dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path

from embedkit.config import RunConfig
from embedkit.engines.base import EngineSetup, ShardJob
from embedkit.engines.in_process import InProcessEngine
from embedkit.engines.line import Line
from embedkit.engines.node import device_kind, spec_here
from embedkit.engines.open_input import table_of
from embedkit.engines.planning import input_facts
from embedkit.engines.reuse import open_reuse
from embedkit.engines.signals import install_handlers, unblock
from embedkit.errors import EmbedkitError, OutputError
from embedkit.inference.model_spec import ModelSpec
from embedkit.manifest.identity import input_difference
from embedkit.manifest.schema import Plan, ShardRecord
from embedkit.output.destination import AlreadyCompleted, Destination, destination_of
from embedkit.sources import TableFacts
from embedkit.storage.machine_errors import as_machine_error
from embedkit.storage.store_options import configure_stores


@dataclass(frozen=True, slots=True)
class WorkerTask:
    """The arguments of a worker. Can be pickled."""

    config: RunConfig  # with the device of this worker alone
    spec: ModelSpec  # the model, found by the run
    threads: int  # for torch and the tokenizers
    table: TableFacts | None = None  # of the input; None: the worker opens it for itself
    is_remote: bool = False  # True if the worker may be on another machine than the run
    umask: int | None = None  # for new files; None: that of the process


def work(task: WorkerTask, link: Connection) -> None:
    """Runs a process of a pool; never returns.

    Args:
        task: what to compute.
        link: to the pool.
    """
    line = Line(link)
    install_handlers(line.stop)
    unblock()
    line.listen()
    try:
        with contextlib.suppress(BrokenPipeError):  # the pool is gone
            compute(task, line)
    finally:
        os._exit(0)


def compute(task: WorkerTask, line: Line) -> None:
    """Loads the model and computes shards until there are none; sends what happened to the run.

    Raises:
        BrokenPipeError: the run is gone.
    """
    config = task.config
    try:
        if task.umask is not None:
            os.umask(task.umask)
        _limit_threads(task.threads)
        configure_stores(config.store)
        spec = spec_here(task.spec) if task.is_remote else task.spec
        table, spans = table_of(config, task.table)
        engine = InProcessEngine(EngineSetup(config, spec, table, line, line.stop), prefetch=1)
        facts = engine.load()
        line.send(ready=asdict(facts), kind=device_kind(facts.device))
        if line.order() == "calibrate":
            line.send(ranges=engine.calibrate())
            line.order()
        destination = destination_of(config.output, config.share)
        plan = _stored_plan(destination, config.output.output)
        difference = input_difference(plan.input, input_facts(table, spans, config.input, whole=False))
        if difference is not None:
            line.send(other_input=difference)
            return
        # The key of the hashes is there once there is a plan.
        engine.setup = replace(engine.setup, reuse=open_reuse(config, plan))

        def tell(record: ShardRecord) -> None:
            line.send(committed=destination.acknowledgement(record))

        engine.run(ShardJob(plan, destination, {}, line.shards(), on_commit=tell))
        line.send(end=True)
    except BrokenPipeError:
        raise
    except AlreadyCompleted:
        line.send(already_completed=True)
    except BaseException as fault:  # noqa: BLE001 - it is the run's to raise
        _send_failure(line, fault)


def _send_failure(line: Line, fault: BaseException) -> None:
    """Sends why the worker ends."""
    error = fault if isinstance(fault, EmbedkitError) else None
    if isinstance(fault, (MemoryError, OSError, RuntimeError)):
        error = as_machine_error(fault)
    if error is not None:
        line.send(error=type(error).__name__, message=error.message, hint=error.hint)
        return
    # Its message may hold row content, a place cannot.
    frame = traceback.extract_tb(fault.__traceback__)[-1]
    place = f"{Path(frame.filename).name}, line {frame.lineno}, in {frame.name}"
    line.send(fault=f"{type(fault).__name__} at {place}")


def _stored_plan(destination: Destination, output: str) -> Plan:
    plan = destination.open()
    if plan is None:
        raise OutputError(
            f"plan.json of this run is not in {output}",
            hint="write to a folder that all machines of the run share, or to an object store; leave the output "
            "alone while embedkit writes it",
        )
    return plan


def _limit_threads(threads: int) -> None:
    """Gives a worker its share of the cores: more threads than cores would mostly wait for each other."""
    os.environ.setdefault("RAYON_NUM_THREADS", str(threads))  # of the tokenizers
    import torch

    torch.set_num_threads(min(threads, torch.get_num_threads()))
