"""embedkit, its peers, and the matrix products alone, each as its users run it: masked mean, scaled to length 1.

Imports a library only when it is asked for: each may be in an environment of its own.
"""

from __future__ import annotations

import json
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

MAX_LENGTH = 256
#: Seconds of a run that are measured well enough by one.
_LONG = 1.0
CORES = len(os.sched_getaffinity(0))


class Library(ABC):
    """A library with its model loaded.

    Attributes:
        settings: what it runs with, as the table says it.
        choices: the batch sizes among which `tune` chooses; none where the library needs no choice.
    """

    settings = ""
    choices: Sequence[int] = (8, 16, 32)
    batch = 32

    @abstractmethod
    def __init__(self, folder: str, dtype: str) -> None: ...

    @abstractmethod
    def encode(self, texts: list[str]) -> np.ndarray:
        """Returns a vector of length 1 a text, [N, D]."""

    def tune(self, texts: list[str]) -> None:
        """Takes the batch size that is the fastest here, after a run for caches."""
        if self.choices:
            self.encode(texts)
            self.batch = min(self.choices, key=lambda size: self._seconds(texts, size))
            self.settings = f"{self.settings}, batches of {self.batch}".lstrip(", ")

    def _seconds(self, texts: list[str], batch: int) -> float:
        """Returns the best of two runs, or the only one if that takes long."""
        self.batch, times = batch, []
        while not times or (len(times) < 2 and times[0] < _LONG):
            began = time.perf_counter()
            self.encode(texts)
            times.append(time.perf_counter() - began)
        return min(times)


class Embedkit(Library):
    choices = ()

    def __init__(self, folder: str, dtype: str) -> None:
        from embedkit import Encoder

        self.encoder = Encoder(
            folder, pool="mean", normalize=True, max_length=MAX_LENGTH, dtype=dtype, device="cpu"
        )

    def encode(self, texts: list[str]) -> np.ndarray:
        return self.encoder.encode(texts)


class SentenceTransformers(Library):
    """torch's models of transformers; sorts by length itself."""

    settings = "sorted"

    def __init__(self, folder: str, dtype: str) -> None:
        from sentence_transformers import SentenceTransformer

        assert dtype == "fp32"
        self.model = SentenceTransformer(folder, device="cpu")
        self.model.max_seq_length = MAX_LENGTH

    def encode(self, texts: list[str]) -> np.ndarray:
        return self.model.encode(texts, batch_size=self.batch, normalize_embeddings=True, show_progress_bar=False)


class Onnx(SentenceTransformers):
    """Optimum's export in ONNX Runtime; int8 is its dynamic quantisation for this processor."""

    def __init__(self, folder: str, dtype: str) -> None:
        from sentence_transformers import SentenceTransformer, export_dynamic_quantized_onnx_model

        path = exported_onnx(folder)
        if dtype == "int8":
            kind = "avx512_vnni" if has_avx512_vnni() else "avx2"
            if not (found := list(path.parent.glob(f"*int8*{kind}*"))):
                plain = SentenceTransformer(folder, device="cpu", backend="onnx")
                export_dynamic_quantized_onnx_model(plain, kind, folder)
                found = list(path.parent.glob(f"*int8*{kind}*"))
            path, self.settings = found[0], f"sorted, {kind}"
        options = {"file_name": f"onnx/{path.name}", "provider": "CPUExecutionProvider"}
        self.model = SentenceTransformer(folder, device="cpu", backend="onnx", model_kwargs=options)
        self.model.max_seq_length = MAX_LENGTH


class FastEmbed(Library):
    """ONNX Runtime with its own tokenising and pooling, on the same export; does not sort, so we do."""

    settings = "sorted by us"

    def __init__(self, folder: str, dtype: str) -> None:
        from fastembed import TextEmbedding
        from fastembed.common.model_description import ModelSource, PoolingType

        assert dtype == "fp32"
        width = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))["hidden_size"]
        exported_onnx(folder)
        TextEmbedding.add_custom_model(
            model="embedkit/peer",
            pooling=PoolingType.MEAN,
            normalization=True,
            sources=ModelSource(url="http://localhost/none"),
            dim=width,
            model_file="onnx/model.onnx",
        )
        self.model = TextEmbedding("embedkit/peer", specific_model_path=folder, threads=CORES)
        self.model.model.tokenizer.enable_truncation(MAX_LENGTH)

    def encode(self, texts: list[str]) -> np.ndarray:
        order = np.argsort([-len(text) for text in texts], kind="stable")
        vectors = np.stack(list(self.model.embed([texts[place] for place in order], batch_size=self.batch)))
        return vectors[np.argsort(order)]


class _Sorted(Library):
    """A runtime that takes padded ids and gives token states: tokenises, sorts by length and pools."""

    settings = "sorted by us"

    def __init__(self, folder: str, dtype: str) -> None:
        self.tokenizer = plain_tokenizer(folder)

    @abstractmethod
    def states(self, batches: list[list[list[int]]]) -> Sequence[np.ndarray]:
        """Returns the token states of each batch, [texts, tokens, D] each."""

    def encode(self, texts: list[str]) -> np.ndarray:
        ids = [encoded.ids for encoded in self.tokenizer.encode_batch(texts)]
        order = sorted(range(len(ids)), key=lambda text: len(ids[text]), reverse=True)
        batches = [order[start : start + self.batch] for start in range(0, len(order), self.batch)]
        vectors = [np.zeros(0)] * len(ids)
        for batch, states in zip(
            batches, self.states([[ids[of] for of in batch] for batch in batches]), strict=True
        ):
            for place, text in enumerate(batch):
                pooled = states[place, : len(ids[text])].mean(axis=0)
                vectors[text] = pooled / np.linalg.norm(pooled)
        return np.stack(vectors)


class CTranslate2(_Sorted):
    def __init__(self, folder: str, dtype: str) -> None:
        import ctranslate2 as ct2

        super().__init__(folder, dtype)
        made = Path(folder) / f"ct2-{dtype}"
        compute = {"fp32": "float32", "int8": "int8"}[dtype]
        if not made.exists():
            ct2.converters.TransformersConverter(folder).convert(str(made), quantization=compute)
        self.encoder = ct2.Encoder(str(made), device="cpu", compute_type=compute, intra_threads=CORES)

    def states(self, batches: list[list[list[int]]]) -> Sequence[np.ndarray]:
        return [np.array(self.encoder.forward_batch(batch).last_hidden_state) for batch in batches]


class _Exported(_Sorted):
    """A runtime with the model that `exported_onnx` makes."""

    inputs: Sequence[str]

    def _fed(self, batch: list[list[int]]) -> dict[str, np.ndarray]:
        longest = max(map(len, batch))
        mask = np.array([[1] * len(ids) + [0] * (longest - len(ids)) for ids in batch])
        made = {
            "input_ids": np.array([ids + [0] * (longest - len(ids)) for ids in batch]),
            "attention_mask": mask,
            "token_type_ids": np.zeros_like(mask),
            "position_ids": np.broadcast_to(np.arange(longest), mask.shape),
        }
        return {name: made[name] for name in self.inputs}


class OnnxRuntime(_Exported):
    """ONNX Runtime by itself, for models that sentence-transformers does not load from ONNX."""

    def __init__(self, folder: str, dtype: str) -> None:
        import onnxruntime

        super().__init__(folder, dtype)
        assert dtype == "fp32"
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = CORES
        path = str(exported_onnx(folder))
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.inputs = [port.name for port in self.session.get_inputs()]

    def states(self, batches: list[list[list[int]]]) -> Sequence[np.ndarray]:
        return [self.session.run(None, self._fed(batch))[0] for batch in batches]


class OpenVino(_Exported):
    """The same export in OpenVINO; int8 is NNCF's static quantisation, calibrated on its own texts.

    Tries one batch at a time on all cores (latency) and several at once (throughput).
    """

    hints = ("LATENCY", "THROUGHPUT")

    def __init__(self, folder: str, dtype: str) -> None:
        import openvino

        super().__init__(folder, dtype)
        model = openvino.Core().read_model(exported_onnx(folder))
        self.inputs = [port.any_name for port in model.inputs]
        if dtype == "int8":
            model = self._quantised(model, folder)
        options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": CORES}
        self.compiled = {
            hint: openvino.Core().compile_model(model, "CPU", {**options, "PERFORMANCE_HINT": hint})
            for hint in self.hints
        }
        self.queues = {hint: openvino.AsyncInferQueue(compiled) for hint, compiled in self.compiled.items()}
        self.hint = self.hints[0]

    def tune(self, texts: list[str]) -> None:
        self.encode(texts)
        ways = [(self._timed(texts, size, hint), size, hint) for hint in self.hints for size in self.choices]
        _, self.batch, self.hint = min(ways)
        self.settings = f"sorted by us, {self.hint.lower()}, batches of {self.batch}"

    def _timed(self, texts: list[str], size: int, hint: str) -> float:
        self.hint = hint
        return self._seconds(texts, size)

    def _quantised(self, model: Any, folder: str) -> Any:
        import nncf

        texts = json.loads((Path(folder) / "calibration.json").read_text(encoding="utf-8"))
        ids = [encoded.ids for encoded in self.tokenizer.encode_batch(texts)]
        data = nncf.Dataset([[of] for of in ids], self._fed)
        return nncf.quantize(model, data, model_type=nncf.ModelType.TRANSFORMER, subset_size=len(ids))

    def states(self, batches: list[list[list[int]]]) -> Sequence[np.ndarray]:
        found: list[np.ndarray] = [np.zeros(0)] * len(batches)
        queue = self.queues[self.hint]
        queue.set_callback(
            lambda request, place: found.__setitem__(place, np.array(request.get_output_tensor(0).data))
        )
        for place, batch in enumerate(batches):
            queue.start_async(self._fed(batch), place)
        queue.wait_all()
        return found


class Gemm(Library):
    """No encoder: the matrix products that one is made of, which nothing can be faster than."""

    choices = ()

    def __init__(self, folder: str, dtype: str) -> None:
        self.config = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
        self.tokenizer, self.dtype = plain_tokenizer(folder), dtype
        self.prepared: dict[int, Callable[[], None]] = {}

    def encode(self, texts: list[str]) -> np.ndarray:
        from benchmarks.peers.limit import batch_tokens, products

        of_texts = hash(tuple(texts))
        if of_texts not in self.prepared:
            lengths = np.array([len(encoded.ids) for encoded in self.tokenizer.encode_batch(texts)])
            self.prepared[of_texts], self.settings = products(self.config, batch_tokens(lengths), self.dtype)
        self.prepared[of_texts]()
        return np.zeros((len(texts), 1))


def exported_onnx(folder: str) -> Path:
    """Returns the model as ONNX, by Optimum, made once a folder."""
    path = Path(folder) / "onnx" / "model.onnx"
    if not path.exists():
        config = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
        path.parent.mkdir(exist_ok=True)
        if config["architectures"] == ["T5EncoderModel"]:
            _export_t5(folder, path)
        else:
            from optimum.exporters.onnx import main_export

            kind = {"task": "feature-extraction", "library_name": "transformers"}
            main_export(folder, path.parent, **kind, do_validation=False)
    return path


def _export_t5(folder: str, path: Path) -> None:
    """Exports an encoder, of which Optimum would make a model with a decoder."""
    import torch
    from transformers import T5EncoderModel

    model = T5EncoderModel.from_pretrained(folder).eval()
    inputs = ["input_ids", "attention_mask"]
    axes = {name: {0: "texts", 1: "tokens"} for name in (*inputs, "states")}
    example = tuple(torch.ones(2, 9, dtype=torch.int64) for _ in inputs)
    torch.onnx.export(
        *(model, example, str(path)),
        input_names=inputs,
        output_names=["states"],
        dynamic_axes=axes,
        opset_version=17,
        dynamo=False,
    )


def plain_tokenizer(folder: str) -> Any:
    """Returns the folder's tokenizer without padding, cut at the length that all contenders have."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(Path(folder) / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(MAX_LENGTH)
    return tokenizer


def has_avx512_vnni() -> bool:
    """Asks the processor, and not Linux, which names what benchmarks.hidden_instructions hides."""
    import torch

    return torch.cpu._is_vnni_supported()  # torch has no public name for it


#: By the name in the table.
LIBRARIES: dict[str, Callable[[str, str], Library]] = {
    "embedkit": Embedkit,
    "sentence-transformers": SentenceTransformers,
    "onnx": Onnx,
    "onnxruntime": OnnxRuntime,
    "openvino": OpenVino,
    "ctranslate2": CTranslate2,
    "fastembed": FastEmbed,
    "gemm": Gemm,
}
