"""All that embedkit asks of Ray: a cluster, actors in it, and their answers. Imports ray when it is used.

Ray runs processes and tells of their deaths. Nothing of a row passes through it: calls carry numbers, versions
and error messages, of a few hundred bytes.
"""

from __future__ import annotations

import contextlib
import functools
import os
import secrets
import shutil
import tempfile
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol, Self

from embedkit.config import EngineConfig
from embedkit.config.engine_config import check_ray_address
from embedkit.engines.ray_actor import RayActor
from embedkit.engines.ray_head import HeadWatch, refusal
from embedkit.engines.ray_start import quick_start
from embedkit.engines.signals import handlers_kept
from embedkit.errors import EmbedkitError, Stopped, UsageError

#: Set before Ray is imported, unless the user has.
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",  # else workers are niced to 15, and lose to everything else on the machine
    "RAY_raylet_start_wait_time_s": "180",
    # This process ends by itself before that, and says how to go on; Ray would end it without a word.
    "RAY_gcs_rpc_server_reconnect_timeout_s": "600",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
#: Also, for a Ray that is started here: no processes to spare, and no other judge of memory than the system.
_ENVIRONMENT_HERE = {
    "RAY_enable_worker_prestart": "0",
    "RAY_prestart_worker_first_driver": "0",
    "RAY_memory_monitor_refresh_ms": "0",
    "RAY_enable_metrics_collection": "0",
    "RAY_AUTH_MODE": "token",
    # What Ray measures of itself, and how often it tells: a quarter of its 34 ms of processor time a second.
    "RAY_event_stats": "0",
    "RAY_io_context_event_loop_lag_collection_interval_ms": "0",
    "RAY_io_context_monitor_probe_interval_ms": "60000",
    "RAY_raylet_report_resources_period_milliseconds": "1000",
}
#: Also, for a cluster that is joined: a head that goes meanwhile is waited for once, 40 s, and not 20 times.
_ENVIRONMENT_THERE = {"RAY_NUM_REDIS_GET_RETRIES": "1"}
#: The least that Ray takes: nothing is kept there.
_OBJECT_STORE_BYTES = 80 * 2**20
#: Ray's sockets are in its folder, and their paths may have 107 bytes.
_LONGEST_FOLDER = 30
_SHUTDOWN_SECONDS = 15.0


@dataclass(frozen=True, slots=True)
class NodeResources:
    """The resources of a node of a cluster."""

    cpus: float
    gpus: float


@dataclass(frozen=True, slots=True)
class ActorPlan:
    """The actors to ask for."""

    least: int  # the run begins once so many are ready
    most: int
    cpus: int  # of each, which are also its threads
    gpus: float  # of each

    @property
    def workers(self) -> str:
        """Their number, in words."""
        return f"{self.most} Ray worker{'s' * (self.most > 1)}"

    @property
    def needs(self) -> str:
        """The resources of an actor, in words."""
        cpus = f"{self.cpus} CPU{'s' * (self.cpus > 1)}"
        return f"{cpus} and {self.gpus:g} GPU" if self.gpus else cpus


@dataclass(frozen=True, slots=True)
class Death:
    """The answer of an actor that has died."""

    how: str  # such as "was killed"
    never_began: bool = False  # True if its code cannot run on the node


def ray_address(config: EngineConfig) -> str:
    """Returns the cluster of a run: HOST:PORT, auto, or local for a Ray of this run alone.

    Raises:
        UsageError: RAY_ADDRESS is none of these.
    """
    address = os.environ.get("RAY_ADDRESS", "").strip()
    if config.ray_address is None and address:
        check_ray_address("RAY_ADDRESS", address)
    return config.ray_address or address or "local"


def plan_actors(
    config: EngineConfig, nodes: Iterable[NodeResources], device: str, useful: int, *, may_grow: bool = True
) -> ActorPlan:
    """Decides how many actors to ask for, with how many CPUs and GPUs each.

    Args:
        config: the user's options.
        nodes: of the cluster as it is now; there may be none yet.
        device: of `--device`; auto takes GPUs if there are any.
        useful: number of shards, which more actors could not divide.
        may_grow: False if no other node can come.

    Raises:
        UsageError: the number of workers is not given, and cannot be found out; or GPUs are wanted, and there are
            none.
    """
    nodes = list(nodes)
    per_gpu = config.workers_per_gpu or 1
    with_gpus = [node for node in nodes if node.gpus >= 1]
    is_shared = device == "auto" and config.workers_per_gpu is not None
    if (device == "cuda" or is_shared) and not with_gpus and not may_grow:
        raise UsageError(
            f"{'--workers-per-gpu' if is_shared else '--device cuda'}: this machine has no GPU",
            hint="leave it out to compute on the CPU, or name a cluster with GPUs by --ray-address",
        )
    if is_shared and not with_gpus:
        raise UsageError(
            "--workers-per-gpu: no node of the Ray cluster has a GPU",
            hint="leave it out, and the workers compute on CPUs; or wait for nodes with GPUs, such as by "
            "--device cuda --workers 8",
        )
    if device == "cuda" or (device == "auto" and with_gpus):
        slots = [int(node.gpus) * per_gpu for node in with_gpus]
        most = config.most_workers or sum(slots)
        cpus = min((int(node.cpus) // of for node, of in zip(with_gpus, slots, strict=True)), default=1)
        gpus = int(10_000 / per_gpu) / 10_000  # Ray counts in ten-thousandths
    else:
        usable = [node for node in nodes if node.cpus >= 1]
        most = config.most_workers or len(usable)
        on_each = -(-max(1, most) // max(1, len(usable)))
        cpus = min((int(node.cpus) // on_each for node in usable), default=1)
        gpus = 0.0
    if not most:
        others = "; --device cpu computes on the CPUs that it has" if nodes and gpus else ""
        raise UsageError(
            f"the Ray cluster has no {'GPU' if gpus else 'CPU'} yet, so that the number of workers is unknown",
            hint=f"say how many to ask for, such as --workers 8{others}",
        )
    most = max(1, min(most, useful))
    return ActorPlan(min(config.least_workers, most), most, max(1, cpus), gpus)


class Cluster(Protocol):
    """What an engine needs of Ray. A context manager, which ends what it started."""

    def __enter__(self) -> Self:
        """Connects to a cluster, or starts one."""

    def __exit__(self, *_: object) -> None:
        """Disconnects from it, or ends it."""

    def plan(self, device: str, useful: int) -> ActorPlan:
        """See plan_actors."""

    def plan_scanners(self, useful: int) -> int:
        """Prepares for actors that scan the input, of one processor each; returns how many to ask for."""

    def create(self) -> Any:
        """Asks for an actor, which may be there much later."""

    def call(self, actor: Any, method: str, *arguments: Any) -> None:
        """Calls a method of an actor; `poll` returns the answer. An actor has one call at a time."""

    def tell(self, actor: Any, method: str, *arguments: Any) -> None:
        """Calls a method of an actor without an answer, also during another call."""

    def kill(self, actor: Any) -> None:
        """Ends an actor at once, or no longer asks for it."""

    def poll(self, seconds: float) -> list[tuple[Any, Any]]:
        """Waits for answers. Returns pairs of an actor and its answer, or its Death."""

    def check(self) -> None:
        """Raises EmbedkitError if the cluster is gone."""


class RayCluster:
    """A cluster of Ray; see Cluster.

    Args:
        config: the user's options.
    """

    def __init__(self, config: EngineConfig) -> None:
        self._config = config
        self._set: dict[str, str] = {}  # variables of the environment
        self._folder: str | None = None  # of a Ray that was started here
        self._is_ours = False  # the connection
        self._watch: HeadWatch | None = None
        self._calls: dict[Any, Any] = {}  # answer to come → actor
        self._plan = ActorPlan(1, 1, 1, 0.0)
        self._ray: Any = None
        self._class: Any = None

    def __enter__(self) -> Self:
        address = ray_address(self._config)
        here = {**_ENVIRONMENT_HERE, "RAY_AUTH_TOKEN": _token()}
        here = here if address == "local" else _ENVIRONMENT_THERE
        self._set = {name: value for name, value in {**_ENVIRONMENT, **here}.items() if name not in os.environ}
        os.environ.update(self._set)
        self._ray = _import_ray()
        if not self._ray.is_initialized():
            self._is_ours = True
            try:
                with handlers_kept():  # Ray sets its own
                    self._connect(address)
            except BaseException:
                self.__exit__()
                raise
        self._class = self._ray.remote(RayActor)
        self._watch = HeadWatch(self._ray.get_runtime_context().gcs_address)
        return self

    def __exit__(self, *_: object) -> None:
        if self._watch is not None:
            self._watch.stop()
        if self._is_ours:
            # Without its head, Ray waits for it.
            thread = threading.Thread(target=self._ray.shutdown, name="embedkit-ray-shutdown", daemon=True)
            thread.start()
            thread.join(_SHUTDOWN_SECONDS)
        for name in self._set:
            os.environ.pop(name, None)
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def plan(self, device: str, useful: int) -> ActorPlan:
        """See Cluster."""
        alive = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        nodes = [NodeResources(of.get("CPU", 0.0), of.get("GPU", 0.0)) for of in alive]
        self._plan = plan_actors(self._config, nodes, device, useful, may_grow=self._folder is None)
        return self._plan

    def plan_scanners(self, useful: int) -> int:
        """See Cluster."""
        self._plan = ActorPlan(1, useful, 1, 0.0)
        cpus = sum(int(node["Resources"].get("CPU", 0)) for node in self._ray.nodes() if node["Alive"])
        return min(useful, cpus)

    def create(self) -> Any:
        """See Cluster."""
        return self._class.options(
            num_cpus=self._plan.cpus,
            num_gpus=self._plan.gpus,
            max_restarts=0,
            max_task_retries=0,
            max_concurrency=3,  # a call that waits for messages, an order, and one to stop
            scheduling_strategy="SPREAD",
            enable_task_events=False,
        ).remote()

    def call(self, actor: Any, method: str, *arguments: Any) -> None:
        """See Cluster."""
        self._calls[getattr(actor, method).remote(*arguments)] = actor

    def tell(self, actor: Any, method: str, *arguments: Any) -> None:
        """See Cluster."""
        getattr(actor, method).remote(*arguments)

    def kill(self, actor: Any) -> None:
        """See Cluster."""
        self._calls = {answer: of for answer, of in self._calls.items() if of is not actor}
        if self._watch is None or not self._watch.failing:  # without its head, Ray would wait for it
            self._ray.kill(actor)

    def poll(self, seconds: float) -> list[tuple[Any, Any]]:
        """See Cluster."""
        if not self._calls:
            time.sleep(seconds)
            return []
        answers = list(self._calls)
        if self._ray.wait(answers, num_returns=1, timeout=seconds)[0]:
            answers = self._ray.wait(answers, num_returns=len(answers), timeout=0)[0]
            return [(self._calls.pop(answer), self._answer(answer)) for answer in answers]
        return []

    def check(self) -> None:
        """See Cluster."""
        if self._watch is not None and self._watch.is_gone:
            raise EmbedkitError(
                f"the head of the Ray cluster at {self._watch.address} is gone",
                hint="committed shards stay; start Ray again, or use --engine local: the same command with "
                "--on-exists resume continues",
            )

    def _knock(self, address: str) -> None:
        """Checks that a head listens where one is named: Ray would try for 40 s, and log it."""
        host, _, port = address.rpartition(":")
        if not host:
            return
        hosts = [host]
        if host in {"127.0.0.1", "localhost"}:  # Ray takes the machine's own address then
            hosts.append(self._ray.util.get_node_ip_address())
        reason = refusal([f"{each}:{port}" for each in hosts])
        if reason is not None:
            raise _no_cluster(address, reason)

    def _answer(self, answer: Any) -> Any:
        exceptions = self._ray.exceptions
        try:
            return self._ray.get(answer)
        except exceptions.RayActorError as error:
            never_began = bool(getattr(error, "actor_init_failed", False))
            return Death("died" if not getattr(error, "preempted", False) else "was preempted", never_began)
        except exceptions.RayTaskError as error:
            return Death(f"failed ({type(error.cause).__name__})", never_began=True)
        except exceptions.RayError as error:
            # Its message may hold anything.
            return Death(f"failed ({type(error).__name__})")

    def _connect(self, address: str) -> None:
        quiet: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False}
        if address == "local":
            parent = tempfile.gettempdir()
            self._folder = tempfile.mkdtemp(
                prefix="embedkit-",
                dir=parent if len(parent) <= _LONGEST_FOLDER else "/tmp",  # noqa: S108
            )
            cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
            quiet |= {
                "num_cpus": max(cores, self._config.most_workers or 1),
                "include_dashboard": False,
                "object_store_memory": _OBJECT_STORE_BYTES,
                "_temp_dir": self._folder,
            }
        else:
            self._knock(address)
        try:
            with quick_start() if address == "local" else contextlib.nullcontext():
                try:
                    self._ray.init(address, **quiet)
                except Exception as error:
                    if "timed out during startup" not in str(error):
                        raise
                    # On a busy machine, 30 s may not be enough, and they cannot be set.
                    self._ray.init(address, **quiet)
        except SystemExit:  # by Ray's handler of a signal
            raise Stopped("stopped by a signal; no shard was begun", hint="run the command again") from None
        except Exception as error:  # noqa: BLE001 - Ray raises a dozen kinds, some of them its own
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            if address == "local":
                hint = "start it again when the machine is less busy, or use --engine local"
                raise EmbedkitError(f"cannot start Ray here: {reason}", hint=hint) from None
            raise _no_cluster(address, reason) from None
        _silence()


def _no_cluster(address: str, reason: str) -> EmbedkitError:
    return EmbedkitError(
        f"cannot connect to Ray at {address}: {reason}",
        hint="embedkit has to run on a node of the cluster, with the same versions of Ray and Python; "
        "--ray-address gives the HOST:PORT of its head",
    )


def _import_ray() -> Any:
    try:
        import ray
    except ImportError:
        raise UsageError(
            "--engine ray needs the package ray",
            hint="install it on all nodes: pip install 'embedkit-cli[ray]'",
        ) from None
    return ray


@functools.cache
def _token() -> str:
    """Returns the token of this process: Ray reads it once, and would write one of its own to the home folder."""
    return secrets.token_hex(32)


def _silence() -> None:
    """Keeps Ray from printing the errors of actors to stdout: the engine tells of them."""
    with contextlib.suppress(ImportError, AttributeError):
        import ray._private.worker

        ray._private.worker.print_to_stdstream = lambda *_, **__: None  # noqa: SLF001 - it has no option
