"""Options of what runs the shards: this machine's processes, or Ray's. Not part of the plan."""

from __future__ import annotations

from dataclasses import dataclass

from embedkit.config.checks import at_least, one_of
from embedkit.errors import UsageError

ENGINES = ("local", "ray")


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """The engine, and what it asks of Ray."""

    engine: str = "local"  # one of ENGINES
    ray_address: str | None = None  # HOST:PORT or auto; None: by RAY_ADDRESS, else a Ray of this run alone
    least_workers: int = 1  # the run begins once so many are ready
    most_workers: int | None = None  # to ask Ray for; None: by the cluster
    workers_per_gpu: int | None = None  # None: one

    @property
    def is_ray(self) -> bool:
        """True if Ray runs the shards."""
        return self.engine == "ray"

    def __post_init__(self) -> None:
        one_of("--engine", self.engine, ENGINES)
        at_least("--workers-per-gpu", self.workers_per_gpu, 1, most=100)
        if not self.is_ray:
            given = (("--ray-address", self.ray_address), ("--workers-per-gpu", self.workers_per_gpu))
            for option, value in given:
                if value is not None:
                    raise UsageError(f"{option} is for --engine ray", hint="add --engine ray, or leave it out")
        if self.ray_address is not None:
            check_ray_address("--ray-address", self.ray_address)


def check_ray_address(name: str, address: str) -> None:
    """Checks the address of a Ray cluster.

    Args:
        name: of what gives it, for the error.
        address: auto, local or HOST:PORT.

    Raises:
        UsageError: it is something else, such as the URL of a dashboard.
    """
    host, _, port = address.rpartition(":")
    if address not in {"auto", "local"} and ("/" in address or not host or not port.isdecimal()):
        raise UsageError(
            f"{name} cannot be '{address}'",
            hint="give the HOST:PORT of the head, such as 10.0.0.1:6379, and run embedkit on a node of the "
            "cluster, such as by `ray job submit`",
        )


def parse_workers(text: str | None) -> tuple[int, int] | None:
    """Returns the least and the most workers of `--workers N` or `MIN:MAX`; None for None."""
    if text is None:
        return None
    least, colon, most = text.partition(":")
    numbers = (least, most) if colon else (text, text)
    if not all(number.isascii() and number.isdigit() for number in numbers):
        raise UsageError(
            f"--workers cannot be '{text}'",
            hint="use a whole number, or with --engine ray the least and the most, such as 2:16",
        )
    first, last = int(numbers[0]), int(numbers[1])
    at_least("--workers", first, 1)
    if first > last:
        raise UsageError(f"--workers cannot be '{text}'", hint=f"put the smaller number first: {last}:{first}")
    return (first, last) if colon else (1, last)
