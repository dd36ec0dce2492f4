"""Makes the workers of a Ray cluster differ from what its runs expect: the file at ODD_NODE says in what.

Python imports this at its start where this folder is on the path. Without the file, nothing differs.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path


def _other_version(_: str) -> None:
    from embedkit.manifest import versions

    here = versions.library_versions
    versions.library_versions = lambda: {**here(), "transformers": "4.0.0"}


def _other_input(name: str) -> None:
    from embedkit.engines import worker

    table_of = worker.table_of
    worker.table_of = lambda config, _: table_of(replace(config, input=replace(config.input, inputs=(name,))))


def _other_output(folder: str) -> None:
    from embedkit.engines import worker

    destination_of = worker.destination_of
    worker.destination_of = lambda output, share: destination_of(replace(output, output=folder), share)


def _other_model(folder: str) -> None:
    """Only for the first worker."""
    try:
        Path(f"{os.environ['ODD_NODE']}-taken").touch(exist_ok=False)
    except FileExistsError:
        return
    from embedkit.engines import worker
    from embedkit.models.repository.model_folder import open_model_folder

    worker.spec_here = lambda spec: replace(spec, folder=open_model_folder(folder, Path(folder), None, None))


def _at_shard(number: str, act: Callable[[list[str]], object]) -> None:
    """Acts on the texts of a shard when its vectors are there."""
    import embedkit.engines.shard_loop as loop

    finish = loop.finish_shard

    def deadly(shard, *arguments, **options):  # type: ignore[no-untyped-def]
        if shard.read.index == int(number):
            act([record.text for record in shard.read.records])
        return finish(shard, *arguments, **options)

    loop.finish_shard = deadly


def _abort(number: str) -> None:
    _at_shard(number, lambda _: os.abort())


def _raise(number: str) -> None:
    def fail(texts: list[str]) -> None:
        raise ValueError(texts)

    _at_shard(number, fail)


def _no_model(_: str) -> None:
    from embedkit.engines import worker

    here = worker.spec_here
    worker.spec_here = lambda spec: here(replace(spec, folder=replace(spec.folder, folder=Path("/nowhere"))))


def _environment(variables: str) -> None:
    os.environ.update(json.loads(variables))


KINDS = {
    "abort": _abort,
    "environment": _environment,
    "input": _other_input,
    "model": _other_model,
    "nowhere": _no_model,
    "output": _other_output,
    "raise": _raise,
    "version": _other_version,
}
if "default_worker.py" in " ".join(sys.orig_argv):
    with contextlib.suppress(FileNotFoundError):
        kind, _, value = Path(os.environ["ODD_NODE"]).read_text().partition("=")
        KINDS[kind](value)
