"""Determines the shards and the device of a process, from options and an environment passed in.

A part is every `world_size`-th shard, so that all parts take about the same time even if texts get longer along
the table. Where several shards are best read by one process (see Sharding.stretches), it is consecutive shards
with about as many characters as the other parts have.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from itertools import accumulate
from typing import TYPE_CHECKING

from embedkit.config import ShareConfig
from embedkit.errors import UsageError

if TYPE_CHECKING:  # it imports numpy, for which `--help` does not wait
    from embedkit.manifest.schema import Sharding

#: Tasks of a step; and the variable of older versions of Slurm, which may count those of the allocation.
_STEP_TASKS, _TASKS = "SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"
#: Steps from this number on are not srun's: a batch script, an interactive shell.
_FIRST_SPECIAL_STEP = 0xFFFF_FFF0
_ARRAY = ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT", "SLURM_ARRAY_TASK_MIN", "SLURM_ARRAY_TASK_STEP")
_ARRAY_MAX = "SLURM_ARRAY_TASK_MAX"
#: Variable of the rank → that of the rank among the processes of this machine.
_LOCAL = {"RANK": "LOCAL_RANK", "SLURM_PROCID": "SLURM_LOCALID"}


def share_of(
    shard_id: int | None, num_shards: int | None, workers: int | None, environ: Mapping[str, str]
) -> ShareConfig:
    """Returns this process's part of a run: by the options, else by torchrun, Slurm's tasks, or a Slurm array.

    A batch script has SLURM_PROCID 0 and the SLURM_NTASKS of its allocation, however many tasks it starts: they
    are the numbers of a task only in a step made by srun, which has a SLURM_STEP_ID. `--num-shards 1` means all
    shards, whatever the environment says.

    Raises:
        UsageError: one of the two options is missing, or the numbers contradict each other.
    """
    place = _number(environ, "LOCAL_RANK") if "LOCAL_RANK" in environ else None
    if shard_id is not None or num_shards is not None:
        if num_shards is None or (shard_id is None and num_shards != 1):
            raise UsageError(
                "--shard-id and --num-shards belong together", hint="give both: --shard-id 0 --num-shards 4"
            )
        return ShareConfig(shard_id or 0, num_shards, workers, place)
    in_step = _is_in_step(environ)
    for name_of_rank, name_of_size in _ranks(environ, in_step=in_step):
        if name_of_rank not in environ or name_of_size not in environ:
            continue
        rank, world_size = (_number(environ, name) for name in (name_of_rank, name_of_size))
        source = f"{name_of_rank} and {name_of_size}"
        if world_size > 1:
            local = _LOCAL[name_of_rank]
            if place is None and local in environ:
                place = _number(environ, local)
            if name_of_rank == "RANK" and in_step:
                _check_ranks_agree(rank, world_size, environ)
            return _checked(rank, world_size, workers, place, source)
        if rank:
            return _checked(rank, max(1, world_size), workers, place, source)
    if _ARRAY[0] in environ and _ARRAY[1] in environ and _number(environ, _ARRAY[1]) > 1:
        task, count = (_number(environ, name) for name in _ARRAY[:2])
        first, step = (_number(environ, name, default) for name, default in zip(_ARRAY[2:], (0, 1), strict=True))
        step = max(1, step)
        rank, between = divmod(task - first, step)
        # A list such as 1,2,7 has gaps: every task reports that, not only the last.
        last = first + (count - 1) * step
        has_gaps = _number(environ, _ARRAY_MAX, last) != last
        return _checked(
            -1 if between or has_gaps else rank, count, workers, place, "the numbers of the Slurm array"
        )
    return ShareConfig(workers=workers, place=place, note="" if in_step else _allocation_notice(environ))


def shards_of(share: ShareConfig, sharding: Sharding) -> range:
    """Returns the numbers of the shards of this process's part; see the module."""
    shards = sharding.shards or 0
    if not sharding.stretches:
        return range(share.rank, shards, share.world_size)
    ends = list(accumulate(max(1, characters) for characters in sharding.characters or [1] * shards))
    first, stop = (bisect_right(ends, ends[-1] * of // share.world_size) for of in (share.rank, share.rank + 1))
    return range(first, stop)


def device_for(name: str, place: int | None, gpus: int) -> str:
    """Returns the device of one of several processes on a machine.

    Args:
        name: of `--device`; a numbered device is kept.
        place: the process's number on this machine; None = it is alone.
        gpus: number of GPUs that this process sees; 1 if each process sees its own only.
    """
    if place is None or gpus == 0 or name not in {"auto", "cuda"}:
        return name
    return f"cuda:{place % gpus}"


def _is_in_step(environ: Mapping[str, str]) -> bool:
    """Checks whether this process is a task of a step made by srun."""
    step = environ.get("SLURM_STEP_ID", environ.get("SLURM_STEPID", ""))
    return step.isascii() and step.isdigit() and int(step) < _FIRST_SPECIAL_STEP


def _ranks(environ: Mapping[str, str], *, in_step: bool) -> list[tuple[str, str]]:
    """Returns the variables for the rank and the number of ranks, in order of precedence."""
    torchrun = ("RANK", "WORLD_SIZE")
    if not in_step:
        return [torchrun]
    # A step may have fewer tasks than its allocation.
    return [torchrun, ("SLURM_PROCID", _STEP_TASKS if _STEP_TASKS in environ else _TASKS)]


def _check_ranks_agree(rank: int, world_size: int, environ: Mapping[str, str]) -> None:
    """Checks that RANK and SLURM_PROCID agree, if both count the same tasks.

    Raises:
        UsageError: they differ: RANK is left from elsewhere, and every task would do the same part.
    """
    size = environ.get(_STEP_TASKS, environ.get(_TASKS, ""))
    task = environ.get("SLURM_PROCID", "")
    if size == str(world_size) and task.isascii() and task.isdigit() and int(task) != rank:
        raise UsageError(
            f"RANK says that this is process {rank} of {world_size}, and SLURM_PROCID says {task}",
            hint="unset RANK and WORLD_SIZE, or give --shard-id and --num-shards",
        )


def _allocation_notice(environ: Mapping[str, str]) -> str:
    """Returns a notice for a process outside of the several tasks of an allocation."""
    tasks = environ.get(_TASKS, "")
    if not (tasks.isascii() and tasks.isdigit()) or int(tasks) == 1:
        return ""
    return f"the Slurm allocation has {tasks} tasks, and srun did not start this process: it does all of the work"


def _checked(rank: int, world_size: int, workers: int | None, place: int | None, source: str) -> ShareConfig:
    if not 0 <= rank < world_size:
        raise UsageError(
            f"{source} do not give a number from 0 to {world_size - 1} for this process",
            hint="give --shard-id and --num-shards",
        )
    return ShareConfig(rank, world_size, workers, place, source)


def _number(environ: Mapping[str, str], name: str, default: int | None = None) -> int:
    text = environ.get(name, "" if default is None else str(default))
    if not text.isascii() or not text.isdigit():
        raise UsageError(
            f"the environment's {name} is '{text}', which is not a number",
            hint=f"unset {name}, or give --shard-id and --num-shards",
        )
    return int(text)
