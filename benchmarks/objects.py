"""What an output in an object store costs: requests a shard, and their time on a server of this machine.

    python -m benchmarks.objects [--shards 200] [-o RESULT.json]

A tiny model, an input and an output in SeaweedFS, behind a proxy that counts. The same run with half of the shards
is subtracted, so that what a run asks for once (the bucket, the plan, listings, the manifest) is not counted to
the shards. The time of a put is that of this machine, without a network: it says what the server costs here, and
nothing about a store elsewhere.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.peers.__main__ import machine, versions
from tests.cluster.faulty_proxy import FaultyProxy, faulty_proxy
from tests.cluster.servers import S3Server, seaweed
from tests.tiny_models import TEXTS, make

SHARD_ROWS = 64


def counted(proxy: FaultyProxy, server: S3Server, model: Path, shards: int) -> Counter[str]:
    """Counts the requests of a run with so many shards, by verb."""
    bucket = server.make_bucket()
    rows = (
        json.dumps({"id": str(row), "text": TEXTS[row % len(TEXTS)][:80]}) for row in range(shards * SHARD_ROWS)
    )
    server.client().put_object(Bucket=bucket, Key="in.jsonl", Body="\n".join(rows).encode())
    proxy.reset()
    words = ["encode", f"s3://{bucket}/in.jsonl", "-o", f"s3://{bucket}/out", "-m", str(model), "--pool", "mean"]
    command = [sys.executable, "-m", "embedkit", *words, "--shard-rows", str(SHARD_ROWS), "-q"]
    subprocess.run(command, check=True, env=os.environ | proxy.environment)
    return proxy.counts()


def seconds_of_a_put(server: S3Server, puts: int = 50) -> float:
    """Returns the median seconds of a small put, by boto3."""
    client, bucket, took = server.client(), server.make_bucket(), []
    for number in range(puts):
        began = time.perf_counter()
        client.put_object(Bucket=bucket, Key=str(number), Body=b"x" * 1000)
        took.append(time.perf_counter() - began)
    return median(took)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--shards", type=int, default=200)
    options.add_argument("-o", "--output", type=Path)
    asked = options.parse_args()
    with tempfile.TemporaryDirectory() as name, seaweed(Path(name) / "seaweed") as server:
        model = make("bert", Path(name) / "model").folder
        with faulty_proxy(server.endpoint) as proxy:
            half, whole = (counted(proxy, server, model, shards) for shards in (asked.shards // 2, asked.shards))
        more = asked.shards - asked.shards // 2
        result: dict[str, Any] = {
            "machine": machine(),
            "versions": versions(sys.executable),
            "load_average": os.getloadavg()[0],
            "shards": asked.shards,
            "requests_per_shard": {verb: round((whole[verb] - half[verb]) / more, 2) for verb in sorted(whole)},
            "requests_of_the_run": dict(sorted(whole.items())),
            "seconds_per_put_on_this_machine": round(seconds_of_a_put(server), 4),
        }
    text = json.dumps(result, indent=2)
    if asked.output:
        asked.output.write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
