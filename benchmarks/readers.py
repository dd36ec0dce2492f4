"""What other libraries read from an output of embedkit: the same rows with the same numbers, to the bit.

Run by `make bench-readers`, in a virtual environment of its own: these libraries are heavy, and want other
versions than embedkit's tests do. Needs no torch.

    python benchmarks/readers.py PARQUET_FOLDER NPY_FOLDER
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import datasets
import numpy as np
from embedding_reader import EmbeddingReader

import embedkit


def main(parquet: Path, npy: Path) -> None:
    datasets.disable_progress_bars()
    expected = embedkit.read(parquet)
    told("embedkit.read, parquet", expected.ids, expected.vectors, expected)
    of_npy = embedkit.read(npy)
    told("embedkit.read, npy", of_npy.ids, of_npy.vectors, expected)
    parts = sorted((npy / "embeddings").glob("*.npy"))
    told("numpy", of_npy.ids, np.concatenate([np.load(part) for part in parts]), expected)
    with tempfile.TemporaryDirectory() as cache:
        told("datasets", *with_datasets(parquet, cache), expected)
    told("embedding-reader", *with_embedding_reader(npy), expected)


def with_datasets(folder: Path, cache: str) -> tuple[list[str], np.ndarray]:
    files = str(folder / "embeddings" / "*.parquet")
    rows = datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=cache)
    rows = rows.filter(lambda vector: vector is not None, input_columns="embedding").with_format("numpy")
    return list(rows["id"]), np.asarray(rows["embedding"][:])


def with_embedding_reader(folder: Path) -> tuple[list[str], np.ndarray]:
    reader = EmbeddingReader(
        embeddings_folder=str(folder / "embeddings"),
        metadata_folder=str(folder / "metadata"),
        meta_columns=["id"],
        file_format="parquet_npy",
    )
    batches = list(reader(batch_size=7, start=0, end=reader.count, show_progress=False))
    ids = [identity for _, facts in batches for identity in facts["id"]]
    return ids, np.concatenate([vectors for vectors, _ in batches])


def told(name: str, ids: list[str], vectors: np.ndarray, expected: embedkit.output.read.Embeddings) -> None:
    """Prints a line for one reader; ends with an error if it read anything else than expected."""
    same = list(ids) == expected.ids and np.array_equal(vectors, expected.vectors)
    print(
        f"{name:<24} {len(ids):>6} ids  {vectors.shape[1]} x {vectors.dtype}  {'equal' if same else 'DIFFERENT'}"
    )
    if not same:
        sys.exit(f"error: {name} does not read what was written")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
