"""Parses Parquet and Arrow files for another process; see parser_probe.py.

Run as a script: it imports nothing of embedkit. Reads one JSON request a line from stdin and replies to each with
a line, which holds no content of a file but the type of the error.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

#: Seconds without a request after which this process ends: it would idle while a model runs.
_IDLE = 20
#: CPU seconds for a file, and the number of bytes that adds another second.
_SECONDS, _BYTES_PER_SECOND = 60, 1_000_000
#: Address space in addition to the machine's memory and the file's size: for stacks and arenas of threads.
_ADDRESSES = 16 << 30
_ARROW_FILE = b"ARROW1"

#: An open file: the number of its parts (None if it is a stream), its columns, and a function that reads the given
#: parts and columns.
_Opened = tuple[int | None, list[str], Callable[[Iterable[int], list[str]], Iterator[Any]]]


def main() -> None:
    """Replies to requests until there are no more."""
    requests, replies = sys.stdin.buffer, sys.stdout.buffer
    sys.path.extend(path for path in json.loads(requests.readline()) if path not in sys.path)
    # Before the first request, so that a failing import is not taken for a damaged file.
    import pyarrow as pa
    import pyarrow.parquet

    _protect_machine()
    kept: tuple[object, _Opened] | None = None
    _reply(replies, {"ready": pa.__version__})
    while _wait_for_request(requests) and (line := requests.readline()):
        request = json.loads(line)
        fault = None
        try:
            path = request["path"]
            if path is None:
                key, source, size = None, requests.read(request["bytes"]), request["bytes"]
            else:
                facts = Path(path).stat()
                size = facts.st_size
                key, source = (path, request["format"], facts.st_ino, size, facts.st_mtime_ns), path
            _limit(size)
            if kept is None or kept[0] != key or path is None:
                kept = None
                kept = (key, _open(source, request["format"]))
            _parse(kept[1], request["part"], frozenset(request["without"]))
        except BaseException as error:  # noqa: BLE001 - panics of libraries, too
            fault = "its page checksum differs" if "CRC" in str(error) else type(error).__name__
            # A file that cannot be read is not damaged: the other process will report it.
            fault = None if isinstance(error, OSError) and error.errno is not None else fault
            kept = None
        _reply(replies, {"fault": fault})


def _reply(replies: Any, message: dict[str, Any]) -> None:
    replies.write(json.dumps(message).encode() + b"\n")
    replies.flush()


def _wait_for_request(requests: Any) -> bool:
    """Waits for a request; False after `_IDLE` seconds. Windows cannot wait for a pipe, and reads it at once."""
    return os.name == "nt" or bool(select.select([requests], [], [], _IDLE)[0])


def _open(source: Any, file_format: str) -> _Opened:
    import pyarrow as pa
    import pyarrow.parquet as pq

    # As bytes: a name may not be UTF-8.
    mapped = pa.memory_map(os.fsencode(source)) if isinstance(source, str) else pa.BufferReader(source)
    if file_format == "parquet":
        file = pq.ParquetFile(mapped, page_checksum_verification=True)

        def of_groups(parts: Iterable[int], columns: list[str]) -> Iterator[Any]:
            for part in parts:
                yield from file.iter_batches(row_groups=[part], columns=columns)

        return file.num_row_groups, list(file.schema_arrow.names), of_groups
    if mapped.read(len(_ARROW_FILE)) != _ARROW_FILE:
        mapped.seek(0)
        stream = pa.ipc.open_stream(mapped)
        return None, list(stream.schema.names), lambda _parts, _columns: iter(stream)
    whole = pa.ipc.open_file(mapped)
    names = list(whole.schema.names)

    def of_file(parts: Iterable[int], columns: list[str]) -> Iterator[Any]:
        fields = [place for place, name in enumerate(names) if name in columns]
        reader = pa.ipc.open_file(mapped, options=pa.ipc.IpcReadOptions(included_fields=fields))
        return (reader.get_batch(part) for part in parts)

    return whole.num_record_batches, names, of_file


def _parse(opened: _Opened, part: int | str, without: frozenset[str]) -> None:
    """Reads the requested parts, and checks every offset."""
    n_parts, names, batches = opened
    if part == "none":
        return
    parts = range(n_parts or 0) if part == "all" else [int(part)]
    for batch in batches(parts, [name for name in names if name not in without]):
        for column in batch.columns:
            try:
                column.validate(full=True)
            except ValueError as error:
                # Invalid UTF-8 is a bad row and harmless; it is checked after the offsets.
                if "UTF8" not in str(error):
                    raise


def _protect_machine() -> None:
    """Has this process killed first when memory runs out, and leaves no core file, which would hold texts."""
    with contextlib.suppress(OSError), Path("/proc/self/oom_score_adj").open("w", encoding="ascii") as score:
        score.write("1000")
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _limit(size: int) -> None:
    """Limits time and memory for a file of `size` bytes: a flipped bit may ask for terabytes or loop for ever."""
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        used = resource.getrusage(resource.RUSAGE_SELF)
        seconds = int(used.ru_utime + used.ru_stime) + _SECONDS + size // _BYTES_PER_SECOND
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") + _ADDRESSES + size
        for kind, wanted in ((resource.RLIMIT_CPU, seconds), (resource.RLIMIT_AS, memory)):
            _, most = resource.getrlimit(kind)
            resource.setrlimit(kind, (wanted if most == resource.RLIM_INFINITY else min(wanted, most), most))


if __name__ == "__main__":
    main()
