"""Says what a folder is that is given as a model: a model whose files are whole, or something else, by its name.

Looks at names, sizes and the first bytes of files; knows neither aliases nor the hub, and loads no weights.
"""

from __future__ import annotations

import json
import os
import re
import zipfile
from collections.abc import Iterable, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from embedkit.errors import ModelError
from embedkit.models.repository.weight_files import WEIGHTS
from embedkit.suggest import closest_names

#: Files beside the weights that decide numbers, in the folder of an encoder.
READ = (
    *("config.json", "modules.json", "config_sentence_transformers.json", "sentence_*_config.json"),
    *("tokenizer*.json", "special_tokens_map.json", "added_tokens.json", "vocab*", "merges.txt"),
    *("*.model", "*.spm", "*.bpe", "*.codes"),
)
#: Modules of sentence-transformers that are an encoder of transformers.
ENCODER_MODULES = ("Transformer", "MLMTransformer")
_OTHER_LIBRARY = "use sentence-transformers for it, or give --model an encoder, such as minilm"
_STATIC = "a static model: one vector for each word piece, added up, and no layers"
_MODULES = {
    "StaticEmbedding": _STATIC,
    "SparseStaticEmbedding": _STATIC,
    "WordEmbeddings": "word vectors (WordEmbeddings), and no transformer",
    "BoW": "a bag of words (BoW), and no transformer",
    "CLIPModel": "a model of images and texts (CLIPModel)",
    "Router": "a Router, which has a model for queries and one for documents",
    "Asym": "a Router (Asym), which has a model for queries and one for documents",
}
_IMAGES = (
    "beit bit clip_vision_model convnext convnextv2 cvt data2vec-vision deit detr dinov2 dinov2_with_registers "
    "dinov3_convnext dinov3_vit dpt efficientnet hiera ijepa levit mobilenet_v1 mobilenet_v2 mobilevit poolformer "
    "pvt regnet resnet sam segformer siglip_vision_model swin swinv2 timm_wrapper vit vit_mae vit_msn yolos"
)
_SOUND = (
    "audio-spectrogram-transformer data2vec-audio encodec hubert mimi moonshine sew sew-d speech_to_text "
    "unispeech unispeech-sat wav2vec2 wav2vec2-bert wav2vec2-conformer wavlm whisper"
)
_BOTH = (
    "align altclip blip blip-2 bridgetower chinese_clip clap clip clipseg flava groupvit owlvit siglip siglip2 "
    "vilt vision-text-dual-encoder x-clip"
)
#: What models of other kinds than text read, by their `model_type`.
_READS = {
    **dict.fromkeys(_IMAGES.split(), "images"),
    **dict.fromkeys(_SOUND.split(), "sound"),
    **dict.fromkeys(_BOTH.split(), "texts together with images or sound"),
}
#: Weights that are not read: a pattern, and whose they are.
_FOREIGN = (
    ("**/*.gguf", "GGUF (llama.cpp)"),
    ("**/*.onnx", "ONNX"),
    ("tf_model*.h5", "TensorFlow"),
    ("*.ckpt.index", "TensorFlow"),
    ("*.ckpt-*.index", "TensorFlow"),
    ("flax_model*.msgpack", "Flax"),
    ("**/openvino_model.xml", "OpenVINO"),
    ("rust_model.ot", "Rust"),
    ("**/*.mlmodel", "Core ML"),
    ("*.tflite", "TensorFlow Lite"),
    ("*.nemo", "NeMo"),
)
#: Files of a training run, which hold no model.
_OF_TRAINING = ("training_args.bin", "optimizer", "scheduler", "rng_state", "scaler", "adapter_", "trainer_state")
_LFS = b"version https://git-lfs.github.com/spec/"
#: A pointer has three lines; the specification allows a kilobyte.
_POINTER_BYTES = 1024
_SAFETENSORS_LENGTH = 8
_SHOWN = 3


def not_a_model(name: str, folder: Path) -> ModelError:  # noqa: PLR0911 - a way out for each kind of folder
    """Say what a folder without config.json and modules.json is instead of a model's."""
    if (folder / "adapter_config.json").is_file():
        return _adapter(name, folder)
    if (folder / "manifest.json").is_file() or (folder / "plan.json").is_file():
        return ModelError(
            f"folder '{name}' is an output of embedkit, not a model",
            hint="give it to `embedkit inspect`; --model takes the folder of an encoder",
        )
    if (folder / "snapshots").is_dir():
        commits = sorted((folder / "snapshots").iterdir())
        hub_id = folder.name.removeprefix("models--").replace("--", "/")
        return ModelError(
            f"folder '{name}' is a model's place in the hub's cache, which has a folder for each commit in it",
            hint=f"use --model {hub_id}" + (f", or --model {commits[-1]}" if commits else ""),
        )
    inside = _models_inside(folder)
    if inside:
        return ModelError(
            f"folder '{name}' has no config.json, so it is not a model's",
            hint=f"the model may be in the folder below: --model {Path(name) / inside[0]}",
        )
    foreign = _foreign(folder)
    if foreign is not None:
        return _foreign_weights(name, *foreign)
    # os.access says it of folders that may not be listed, in which every file seems to be missing.
    if not os.access(folder, os.R_OK | os.X_OK):
        return ModelError(f"folder '{name}' may not be read", hint="change its permissions, or give another one")
    empty = "; it is empty" if next(folder.iterdir(), None) is None else ""
    return ModelError(
        f"folder '{name}' has no config.json, so it is not a model's{empty}",
        hint="give the folder that holds config.json, the weights and the tokenizer's files",
    )


def file_not_folder(name: str, path: Path) -> ModelError:
    """Say what to give instead of a file: its folder, or another option."""
    if any((path.parent / file).is_file() for file in ("config.json", "modules.json")):
        hint = f"give its folder: --model {path.parent}"
    elif path.suffix == ".safetensors":
        hint = "give the folder that holds config.json and weights; a pooler made by `embedkit fit` is for --pool"
    elif path.suffix in {".gguf", ".onnx"}:
        hint = (
            "embedkit reads model.safetensors or pytorch_model.bin, in a folder with config.json and the tokenizer"
        )
    else:
        hint = "give the folder that holds config.json, the weights and the tokenizer's files"
    return ModelError(f"--model '{name}' is a file; a model is a folder", hint=hint)


def missing_folder(name: str, path: Path) -> ModelError:
    """Say which part of a path is not there, and what is there that is spelled like it."""
    if os.path.islink(path):  # noqa: PTH114 - never raises, as for a name that is too long
        return ModelError(
            f"folder '{name}' is a link to {path.readlink()}, which is not there",
            hint="mend the link, or give the folder itself",
        )
    there = path
    while not os.path.isdir(there) and there != there.parent:  # noqa: PTH112
        there, lacks = there.parent, there
    # A path ends above at "." or "/", which are there; a folder that may not be entered hides what is in it.
    if not os.access(there, os.X_OK):
        return ModelError(f"folder '{name}' may not be read: '{there}' forbids it", hint="change its permissions")
    if os.path.isfile(lacks):  # noqa: PTH113
        return ModelError(f"folder '{name}' is missing: '{lacks}' is a file", hint="give the folder of a model")
    try:
        siblings = [entry.name for entry in there.iterdir() if entry.is_dir()]
    except OSError:
        siblings = []
    near = [there / one / path.relative_to(lacks) for one in closest_names(lacks.name, siblings)]
    which = "" if lacks == path else f": there is no '{lacks}'"
    otherwise = "check its spelling" if lacks == path else f"'{there}' is there"
    return ModelError(
        f"folder '{name}' is missing{which}",
        hint=f"did you mean --model {' or '.join(map(str, near))}?"
        if near
        else f"{otherwise}; a hub id has another form: owner/name",
    )


def refuse_other_kinds(name: str, root: Path, folder: Path, modules: Sequence[tuple[str, str]]) -> None:
    """Refuse a folder that is no text encoder's, and say what it is.

    Args:
        name: of the model, as the user gave it.
        root: the model's folder.
        folder: of its encoder.
        modules: class and folder of the modules of its recipe.

    Raises:
        ModelError: it is an adapter, a model without layers or of something else than text.
    """
    has_weights = any((folder / weights).is_file() for weights in WEIGHTS)
    if not has_weights:
        for of_adapter in (folder, root):
            if (of_adapter / "adapter_config.json").is_file():
                raise _adapter(name, of_adapter)
    kinds = [kind.rsplit(".", 1)[-1] for kind, _ in modules]
    has_config = (folder / "config.json").is_file()
    told = next((_MODULES[kind] for kind in kinds if kind in _MODULES), None)
    if kinds and not set(kinds) & {*ENCODER_MODULES} and (told is not None or not has_config):
        inside = _models_inside(root)
        hint = f"give one of its encoders: --model {Path(name) / inside[0]}" if inside else _OTHER_LIBRARY
        if told == _STATIC:
            hint = _OTHER_LIBRARY.replace("use ", "use model2vec or ")
        own = next((kind for kind, _ in modules if not kind.startswith("sentence_transformers.")), None)
        if told is None and own is not None:
            told = f"made of code of its own ('{own}')"
        raise ModelError(
            f"model '{name}' is {told or 'made of ' + ', '.join(kinds) + ', and no transformer'}: "
            "embedkit is for transformer encoders of text",
            hint=hint,
        )
    if not has_config:
        place = "" if folder == root else f" in {folder.name}, where its modules.json has the encoder"
        raise ModelError(
            f"model '{name}' has no config.json{place}",
            hint="put the config.json of the encoder there, or fetch the model again",
        )


def refuse_kind_of_config(name: str, config: Any) -> None:
    """Refuse what config.json says is no encoder of text.

    Raises:
        ModelError: it says nothing of what it is, or that it is something else.
    """
    if not isinstance(config, dict):
        raise ModelError(
            f"config.json of model '{name}' is not a JSON object", hint="mend it, or fetch the model again"
        )
    kind = config.get("model_type")
    if kind == "model2vec" or "StaticModel" in (config.get("architectures") or ()):
        raise ModelError(
            f"model '{name}' is {_STATIC}: embedkit is for transformer encoders of text",
            hint="use model2vec or sentence-transformers for it, or give --model an encoder, such as minilm",
        )
    if not kind:
        raise ModelError(
            f"config.json of model '{name}' does not say its model_type",
            hint='add "model_type": "bert" (or what it is) to config.json',
        )
    reads = _READS.get(str(kind))
    if reads is not None:
        raise ModelError(
            f"model '{name}' ({kind}) reads {reads}: embedkit is for transformer encoders of text",
            hint="give --model an encoder of text, such as minilm"
            + ("; a folder with its text part alone (clip_text_model) can be used" if kind == "clip" else ""),
        )


def refuse_missing_weights(name: str, folder: Path) -> None:
    """Refuse a folder without weights that are read, and say which others it has.

    Raises:
        ModelError: there are none, only those of another library, or their index is damaged.
    """
    weights = next((one for one in WEIGHTS if (folder / one).is_file()), None)
    if weights is None:
        raise _no_weights(name, folder)
    if weights.endswith(".index.json"):
        refuse_damaged(name, folder, [folder / weights])


def refuse_damaged(name: str, root: Path, paths: Iterable[Path]) -> None:
    """Refuse files that are a pointer, a web page, empty or cut, by their first bytes and their size.

    Args:
        name: of the model, as the user gave it.
        root: the model's folder.
        paths: files of it, those that are read.

    Raises:
        ModelError: a file is not what its name says.
    """
    paths = list(paths)
    starts = {path: _start(name, path) for path in paths}
    pointers = [path for path, start in starts.items() if start.startswith(_LFS)]
    if pointers:
        others = f", and so are {len(pointers) - 1} more" if len(pointers) > 1 else ""
        raise ModelError(
            f"{_inside(pointers[0], root)} of model '{name}' is a Git LFS pointer, not the file itself{others}",
            hint=f"run `git lfs pull` in {root}, or fetch the model again",
        )
    for path, start in starts.items():
        shown = _inside(path, root)
        if re.match(rb"\s*<(!doctype\s+)?html", start, re.IGNORECASE):
            raise ModelError(
                f"{shown} of model '{name}' is a web page, not the file itself",
                hint="fetch the file again: on the hub its address has /resolve/ where the page's has /blob/",
            )
        is_weights = path.suffix in {".safetensors", ".bin"}
        if not start and (is_weights or path.suffix == ".json"):
            raise ModelError(f"{shown} of model '{name}' is empty (0 bytes)", hint="fetch the model again")
        if is_weights:
            fault = _cut(path, start)
            if fault is not None:
                raise ModelError(
                    f"{shown} of model '{name}' {fault}", hint="copy or fetch the file again, the whole of it"
                )


def small_files(folder: Path) -> list[Path]:
    """List the files of a folder that settings and tokenizers are read from, sorted."""
    files = (path for path in folder.iterdir() if any(fnmatch(path.name, pattern) for pattern in READ))
    return sorted(path for path in files if path.is_file())


def _adapter(name: str, folder: Path) -> ModelError:
    try:
        settings = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        base = str(settings.get("base_model_name_or_path") or settings.get("model_name") or "")
    except (OSError, ValueError, AttributeError):
        base = ""
    return ModelError(
        f"model '{name}' is an adapter (adapter_config.json) without the model that it changes"
        + (f": '{base}'" if base else ""),
        hint="merge it into its model with peft (merge_and_unload, then save_pretrained), and give that folder",
    )


def _models_inside(folder: Path) -> list[str]:
    found = []
    for config in sorted(folder.glob("*/config.json")):
        try:
            settings = json.loads(config.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(settings, dict) and settings.get("model_type"):
            found.append(config.parent.name)
    return found


def _foreign(folder: Path) -> tuple[str, str] | None:
    for pattern, whose in _FOREIGN:
        path = next(iter(sorted(folder.glob(pattern))), None)
        if path is not None:
            return path.relative_to(folder).as_posix(), whose
    return None


def _foreign_weights(name: str, file: str, whose: str) -> ModelError:
    return ModelError(
        f"model '{name}' has weights for {whose} only: {file}",
        hint=f"embedkit reads {' or '.join(WEIGHTS[::2])}: fetch these, or convert the model with transformers",
    )


def _no_weights(name: str, folder: Path) -> ModelError:
    foreign = _foreign(folder)
    if foreign is not None:
        return _foreign_weights(name, *foreign)
    numbered = sorted(
        path.name for path in folder.iterdir() if re.search(r"-\d+-of-\d+\.(safetensors|bin)$", path.name)
    )
    if numbered:
        stem = re.sub(r"-\d+-of-\d+", "", numbered[0])
        return ModelError(
            f"model '{name}' has its weights in parts, such as {numbered[0]}, without {stem}.index.json",
            hint="fetch the index, too: it says which weight is in which part",
        )
    others = [
        path.name
        for path in sorted(folder.iterdir())
        if path.suffix in {".safetensors", ".bin", ".pt", ".pth", ".ckpt"}
        and path.is_file()
        and not path.name.startswith(_OF_TRAINING)
    ]
    if others:
        shown = ", ".join(others[:_SHOWN]) + (", …" if len(others) > _SHOWN else "")
        return ModelError(
            f"model '{name}' has no weights under a name that is read, but {shown}",
            hint=f"if that is the encoder, name it {' or '.join(WEIGHTS[::2])}",
        )
    return ModelError(
        f"model '{name}' has no weights in {folder}",
        hint=f"put one of these there: {', '.join(WEIGHTS[::2])}",
    )


def _start(name: str, path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_POINTER_BYTES)
    except OSError as fault:
        raise ModelError(
            f"{path.name} of model '{name}' cannot be read: {fault.strerror}",
            hint=f"check the permissions of {path}, and its disk",
        ) from None


def _cut(path: Path, start: bytes) -> str | None:
    """Say how a file of weights is shorter than its own header says; None if it is not."""
    size = path.stat().st_size
    if path.suffix == ".bin":
        # Since torch 1.6 it is a zip archive, whose list of contents is at its end.
        cut = start.startswith(b"PK\x03\x04") and not zipfile.is_zipfile(path)
        return "is cut: its end is missing" if cut else None
    length = int.from_bytes(start[:_SAFETENSORS_LENGTH], "little")
    is_header = start[_SAFETENSORS_LENGTH : _SAFETENSORS_LENGTH + 1] == b"{"
    if size <= _SAFETENSORS_LENGTH or (is_header and _SAFETENSORS_LENGTH + length > size):
        return f"is cut: it has {size:,} bytes, fewer than its header alone"
    if not is_header:
        return "is not a safetensors file, and cannot be read"
    with path.open("rb") as file:
        file.seek(_SAFETENSORS_LENGTH)
        header = file.read(length)
    try:
        tensors = [entry for key, entry in json.loads(header).items() if key != "__metadata__"]
        whole = _SAFETENSORS_LENGTH + length + max((entry["data_offsets"][1] for entry in tensors), default=0)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):
        return "has a header that is not that of a safetensors file, and cannot be read"
    return f"is cut: it has {size:,} bytes of {whole:,}" if size < whole else None


def _inside(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name
