"""The matrix products of a model's linear layers and nothing else: what this machine could do at most.

Of the same shapes and batches as the forward passes. There are several ways to compute a product, and which one is
the fastest depends on the processor: all are tried, and the fastest is taken. Knows nothing of texts but lengths.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from embedkit.models.native.packed_products import PackedProducts, load_fp32_products, load_int8_products
from embedkit.models.native.thread_pool import ThreadPool

#: Computes the product of rows [start, stop) of made-up activations.
Product = Callable[[int, int], object]
#: Rows at once (all of a batch, or as many as stay in the caches), and whether each core computes such rows of its
#: own; else all cores share each product, and wait for each other after it.
_DIVISIONS = ((1 << 30, False), (512, False), (512, True))


def batch_tokens(lengths: np.ndarray) -> list[int]:
    """Tokens of each batch that embedkit makes of texts of these lengths, by its default."""
    from embedkit.inference.batching import make_batches
    from embedkit.inference.build import BATCH_TOKENS

    return [batch.tokens for batch in make_batches(lengths, max_tokens=BATCH_TOKENS["cpu"], padded=False)]


def products(config: dict[str, Any], batches: Sequence[int], dtype: str) -> tuple[Callable[[], None], str]:
    """Returns the products of all layers and batches, in the way that is the fastest here.

    Args:
        config: of the model: `hidden_size`, `intermediate_size`, `num_hidden_layers`.
        batches: tokens of each.
        dtype: fp32 or int8.

    Returns:
        What computes them, and the name of the way.
    """
    width, inner = config["hidden_size"], config["intermediate_size"]
    shapes = ((width, 3 * width), (width, width), (width, inner), (inner, width))
    made = {name: [make(max(batches), *shape) for shape in shapes] for name, make in _ways(dtype).items()}
    threads = ThreadPool()

    def run(name: str, rows_at_once: int, apart: bool, which: Sequence[int], layers: int) -> None:
        def compute(start: int, stop: int) -> None:
            for product in made[name]:
                product(start, stop)

        with torch.inference_mode():
            for tokens in which:
                starts = [start for start in range(0, tokens, rows_at_once) for _ in range(layers)]
                stops = [min(tokens, start + rows_at_once) for start in starts]
                for _ in (threads.map if apart else map)(compute, starts, stops):
                    pass

    def seconds(name: str, rows_at_once: int, apart: bool) -> float:
        times = []
        for _ in range(3):  # the first is for caches
            began = time.perf_counter()
            run(name, rows_at_once, apart, batches[:2], 1)
            times.append(time.perf_counter() - began)
        return min(times)

    name, block, apart = min(
        ((name, *division) for name in made for division in _DIVISIONS), key=lambda way: seconds(*way)
    )
    at_once = "all rows" if block == _DIVISIONS[0][0] else f"{block} rows"
    return (
        lambda: run(name, block, apart, batches, config["num_hidden_layers"]),
        f"{name}, {at_once} at once{' on each core' if apart else ''}",
    )


def _ways(dtype: str) -> dict[str, Callable[[int, int, int], Product]]:
    products = load_int8_products() if dtype == "int8" else load_fp32_products()
    own = _own_bytes if dtype == "int8" else _own_floats
    ours = {} if products is None else {"embedkit's own": partial(own, products)}
    if dtype == "int8":
        return {"torch._int_mm": _int_mm, "onednn.qlinear_pointwise": _qlinear, **ours}
    has_onednn = torch.backends.mkldnn.is_available() and platform.machine() in {"x86_64", "AMD64"}
    return {"torch.mm": _mm, **({"mkldnn._linear_pointwise": _linear} if has_onednn else {}), **ours}


def _mm(rows: int, k: int, n: int) -> Product:
    values, weight, out = torch.randn(rows, k), torch.randn(n, k).t(), torch.empty(rows, n)
    return lambda start, stop: torch.mm(values[start:stop], weight, out=out[start:stop])


def _linear(rows: int, k: int, n: int) -> Product:
    packed = torch.ops.mkldnn._reorder_linear_weight(torch.randn(n, k), 512)
    values, bias = torch.randn(rows, k), torch.zeros(n)
    return lambda start, stop: torch.ops.mkldnn._linear_pointwise(values[start:stop], packed, bias, "none", [], "")


def _int_mm(rows: int, k: int, n: int) -> Product:
    values, weight = _bytes(rows, k), _bytes(n, k).t()
    return lambda start, stop: torch._int_mm(values[start:stop], weight)


def _qlinear(rows: int, k: int, n: int) -> Product:
    packed = torch.ops.onednn.qlinear_prepack(_bytes(n, k), [512, k])
    values, scale, zeros = _bytes(rows, k).view(torch.uint8), torch.ones(n), torch.zeros(n, dtype=torch.int64)
    return lambda start, stop: torch.ops.onednn.qlinear_pointwise(
        *(values[start:stop], 1.0, 128, packed, scale, zeros, None, 1.0, 0, torch.float32, "none", [], "none")
    )


def _own_bytes(products: PackedProducts, rows: int, k: int, n: int) -> Product:
    weights, values = products.pack_bytes(_bytes(n, k), torch.ones(n)), _bytes(rows, k).view(torch.uint8)
    return lambda start, stop: products.multiply(values[start:stop], weights)


def _own_floats(products: PackedProducts, rows: int, k: int, n: int) -> Product:
    weights, values = products.pack_fp32(torch.randn(n, k), torch.zeros(n)), torch.randn(rows, k)
    return lambda start, stop: products.multiply(values[start:stop], weights)


def _bytes(rows: int, columns: int) -> Tensor:
    return torch.randint(-127, 127, (rows, columns), dtype=torch.int8)
