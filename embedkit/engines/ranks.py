"""Which shards are this process's, and on which device: pure, from options and an environment that is handed in.

Knows nothing of files or of torch. A part is every `world_size`-th shard, so that all parts are done at about
the same time however the texts' lengths change along the table.
"""

from __future__ import annotations

from collections.abc import Mapping

from embedkit.config import ShareConfig
from embedkit.errors import UsageError

#: How many tasks a step has, and the same for a Slurm that does not say so; there it is the allocation's.
_STEP_TASKS, _TASKS = "SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"
#: Steps from this number on are none of srun's tasks: a batch script, an interactive shell.
_FIRST_SPECIAL_STEP = 0xFFFF_FFF0
_ARRAY = ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT", "SLURM_ARRAY_TASK_MIN", "SLURM_ARRAY_TASK_STEP")
_ARRAY_MAX = "SLURM_ARRAY_TASK_MAX"
#: This process's number among those of its machine, by who started it.
_LOCAL = {"RANK": "LOCAL_RANK", "SLURM_PROCID": "SLURM_LOCALID"}


def share_of(
    shard_id: int | None, num_shards: int | None, workers: int | None, environ: Mapping[str, str]
) -> ShareConfig:
    """This process's part of a run: by the options, else by torchrun, Slurm's tasks, or a Slurm array.

    A batch script has SLURM_PROCID 0 and the SLURM_NTASKS of its allocation whether it starts that many tasks or
    not: they are a task's numbers only in a step that srun made, which has a SLURM_STEP_ID.

    Args:
        shard_id: `--shard-id`.
        num_shards: `--num-shards`; 1 = all of it, whatever the environment says.
        workers: `--workers`.
        environ: the environment.

    Raises:
        UsageError: one of the two options is missing, or the numbers do not fit each other.
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
                _refuse_contradiction(rank, world_size, environ)
            return _checked(rank, world_size, workers, place, source)
        if rank:
            return _checked(rank, max(1, world_size), workers, place, source)
    if _ARRAY[0] in environ and _ARRAY[1] in environ and _number(environ, _ARRAY[1]) > 1:
        task, count = (_number(environ, name) for name in _ARRAY[:2])
        first, step = (_number(environ, name, default) for name, default in zip(_ARRAY[2:], (0, 1), strict=True))
        step = max(1, step)
        rank, between = divmod(task - first, step)
        # The numbers of a list such as 1,2,7 leave some out: then every task is to say so, not the last alone.
        last = first + (count - 1) * step
        has_holes = _number(environ, _ARRAY_MAX, last) != last
        return _checked(
            -1 if between or has_holes else rank, count, workers, place, "the numbers of the Slurm array"
        )
    return ShareConfig(workers=workers, place=place, note="" if in_step else _of_allocation(environ))


def shards_of(share: ShareConfig, shards: int) -> range:
    """Numbers of the shards that are this process's part, of so many in all."""
    return range(share.rank, shards, share.world_size)


def device_for(name: str, place: int | None, gpus: int) -> str:
    """The device of one process of several on a machine.

    Args:
        name: as `--device` gives it; one that is named by number stays.
        place: the process's number on this machine; None = it is alone.
        gpus: how many this process sees. Where each sees its own only, that is one.
    """
    if place is None or gpus == 0 or name not in {"auto", "cuda"}:
        return name
    return f"cuda:{place % gpus}"


def _is_in_step(environ: Mapping[str, str]) -> bool:
    """Whether this process is a task of a step that srun made."""
    step = environ.get("SLURM_STEP_ID", environ.get("SLURM_STEPID", ""))
    return step.isascii() and step.isdigit() and int(step) < _FIRST_SPECIAL_STEP


def _ranks(environ: Mapping[str, str], *, in_step: bool) -> list[tuple[str, str]]:
    """Who may say which process this is, in the order in which they are asked: its number, how many there are."""
    torchrun = ("RANK", "WORLD_SIZE")
    if not in_step:
        return [torchrun]
    # A step may have fewer tasks than its allocation: where it says how many, the allocation is not asked.
    return [torchrun, ("SLURM_PROCID", _STEP_TASKS if _STEP_TASKS in environ else _TASKS)]


def _refuse_contradiction(rank: int, world_size: int, environ: Mapping[str, str]) -> None:
    """Refuse a RANK that was left from elsewhere: as many tasks as srun started, and of these another one.

    Raises:
        UsageError: it is one; every task would do the same part.
    """
    size = environ.get(_STEP_TASKS, environ.get(_TASKS, ""))
    task = environ.get("SLURM_PROCID", "")
    if size == str(world_size) and task.isascii() and task.isdigit() and int(task) != rank:
        raise UsageError(
            f"RANK says that this is process {rank} of {world_size}, and SLURM_PROCID says {task}",
            hint="unset RANK and WORLD_SIZE, or say which part this is with --shard-id and --num-shards",
        )


def _of_allocation(environ: Mapping[str, str]) -> str:
    """What the user is told where an allocation has several tasks, and this process is none of them."""
    tasks = environ.get(_TASKS, "")
    if not (tasks.isascii() and tasks.isdigit()) or int(tasks) == 1:
        return ""
    return f"the Slurm allocation has {tasks} tasks, and srun did not start this process: it does all of the work"


def _checked(rank: int, world_size: int, workers: int | None, place: int | None, source: str) -> ShareConfig:
    if not 0 <= rank < world_size:
        raise UsageError(
            f"{source} give no number from 0 to {world_size - 1} for this process",
            hint="say which part it does with --shard-id and --num-shards",
        )
    return ShareConfig(rank, world_size, workers, place, source)


def _number(environ: Mapping[str, str], name: str, default: int | None = None) -> int:
    text = environ.get(name, "" if default is None else str(default))
    if not text.isascii() or not text.isdigit():
        raise UsageError(
            f"the environment's {name} is '{text}', which is no number",
            hint=f"unset {name}, or say which part this is with --shard-id and --num-shards",
        )
    return int(text)
