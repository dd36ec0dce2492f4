"""Compares plans and inputs: files are the same if their content is, whatever their names and times."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from itertools import product
from typing import Any

from embedkit.errors import OutputError
from embedkit.manifest.recipe import fingerprint
from embedkit.manifest.schema import InputFacts, ModelSource, Plan
from embedkit.storage.filesystem import BYTES_OF_ENDS

#: Formats of inputs that are queries.
QUERIES = frozenset({"postgresql", "sqlite", "duckdb"})
#: What not all plans say of the content of a file.
_OF_CONTENT = ("content_sha256", "pieces_sha256", "columns_sha256", "etag")
#: The hint where another backend would go on.
_OTHER_MACHINE = (
    "resume in the same installation on a processor of the same kind, as `embedkit doctor` names it, "
    "or use --on-exists overwrite"
)
#: What two runs of groups must have in common to have the same output.
_OF_GROUPS = ("recipe", "input", "kept_types", "format", "precision", "variants", "on_bad_row")


class AnotherPlanError(OutputError):
    """A run to be resumed has another recipe or another input."""


def check_same_plan(stored: Plan, asked: Plan) -> None:
    """Compares the run that was asked for with the plan of the output.

    The model's name is not compared, nor what only the stored plan can say: int8 ranges and batch size. Versions
    are compared if the output is to be updated later, which relies on them.

    Raises:
        AnotherPlanError: they differ; names the first field that does, and both values.
    """
    # The fingerprint follows from the recipe, whose fields say more.
    one, other = (
        replace(plan, fingerprint="", source=ModelSource(), int8_ranges=None, batch_tokens=None).to_json()
        for plan in (stored, asked)
    )
    if stored.hash_key is None:
        for content in (one, other):
            content.pop("versions", None)
    one["input"], other["input"] = _comparable(stored.input, asked.input)
    if asked.groups is not None:
        one, other = ({name: content[name] for name in _OF_GROUPS} for content in (one, other))
    _check_equal(one, other)


def input_difference(stored: InputFacts, now: InputFacts) -> tuple[str, str, str] | None:
    """Compares the input with that of the plan; returns as `first_difference` does."""
    one, other = _comparable(stored, now)
    return first_difference({"input": one}, {"input": other})


def _check_equal(stored: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    difference = first_difference(stored, asked)
    if difference is not None:
        name, was, now = difference
        raise AnotherPlanError(
            f"cannot resume: {name} was {was} when the run was planned and is {now} now",
            hint=_OTHER_MACHINE
            if name == "engine"
            else "resume with the options and the input of the first run, or use --on-exists overwrite",
        )


def _comparable(stored: InputFacts, asked: InputFacts) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns both inputs by content, with what only one of them says left out.

    Older plans have no hashes of whole files, and a run that is resumed hashes no object. ETags are of a place,
    and change when the same bytes are put again: they are compared if both files are objects of the same name, and
    no hash tells of all bytes. Size and hashes of a query are unknown until it is read: a worker process compares
    no more than how it is read, and the run itself reads it again.
    """
    one, other = (_input_content(read, ("mtime_ns",)) for read in (stored, asked))
    for key in ("files", "spans"):
        for pair in zip(one.get(key, ()), other.get(key, ()), strict=False):
            # Of a small file, the first and the last MiB are all of it.
            is_small = all(file["size"] is not None and file["size"] <= BYTES_OF_ENDS for file in pair)
            is_hashed = is_small or all(file.get("content_sha256") is not None for file in pair)
            names = ["etag"] if is_hashed or pair[0]["name"] != pair[1]["name"] else []
            names += [name for name in _OF_CONTENT if not all(name in file for file in pair)]
            for file, name in product(pair, names):
                file.pop(name, None)
            for file in pair:
                del file["name"]
            if any(file["sha256"] is None and file["format"] in QUERIES for file in pair):
                for file in pair:
                    del file["sha256"], file["size"]
    return one, other


def _input_content(read: InputFacts, left_out: Collection[str] = ("name", "mtime_ns", "etag")) -> dict[str, Any]:
    """Returns the plan's `input` without what differs in a copy of the same files: names and times."""
    content = read.to_json()
    for file in (*content["files"], *content.get("spans", ())):
        for name in left_out:
            file.pop(name, None)
    return content


def input_digests(plan: Plan) -> tuple[str, str]:
    """Returns digests of the input that a single file may name: by content, and by names too (before 0.2)."""
    reading = {"on_bad_row": plan.on_bad_row, "kept_types": dict(plan.kept_types)}
    return (
        fingerprint({"input": _input_content(plan.input), **reading}),
        fingerprint({"input": _input_content(plan.input, _OF_CONTENT), **reading}),
    )


def files_digest(files: Iterable[tuple[int | None, str | None]]) -> str | None:
    """Returns one hash of the input's files, by the size and the SHA-256 of head and tail of each, in order.

    Returns:
        64 hexadecimal digits; None if one of the files was stdin, whose size is None.
    """
    facts = list(files)
    if any(size is None for size, _ in facts):
        return None
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def first_difference(stored: Any, asked: Any, name: str = "") -> tuple[str, str, str] | None:
    """Compares two JSON values in the order of their keys.

    Returns:
        The dotted name of the first field that differs, and both values, cut to 80 characters; None if equal.
    """
    if isinstance(stored, Mapping) and isinstance(asked, Mapping):
        prefix = f"{name}." if name else ""
        pairs = [(prefix + key, stored.get(key), asked.get(key)) for key in sorted({*stored, *asked})]
    elif isinstance(stored, list | tuple) and isinstance(asked, list | tuple) and len(stored) == len(asked):
        pairs = [(f"{name}[{place}]", *pair) for place, pair in enumerate(zip(stored, asked, strict=True))]
    elif stored == asked:
        return None
    else:
        was, now = (text if len(text) <= 80 else f"{text[:77]}..." for text in (repr(stored), repr(asked)))
        return name, was, now
    found = (first_difference(one, other, of) for of, one, other in pairs)
    return next((difference for difference in found if difference is not None), None)
