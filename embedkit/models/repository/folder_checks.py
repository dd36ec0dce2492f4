"""Checks that a folder holds a text encoder whose files are complete; else the errors describe its content.

Reads names, sizes, headers and the first bytes of files; loads no weights.
"""

from __future__ import annotations

import json
import os
import re
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from embedkit.errors import ModelError
from embedkit.models.repository.weight_files import WEIGHTS
from embedkit.suggest import closest_names

#: Files other than weights that affect the numbers, in the folder of an encoder.
SMALL_FILES = (
    *("config.json", "modules.json", "config_sentence_transformers.json", "sentence_*_config.json"),
    *("tokenizer*.json", "special_tokens_map.json", "added_tokens.json", "vocab*", "merges.txt"),
    *("*.model", "*.spm", "*.bpe", "*.codes"),
)
#: Modules of sentence-transformers that are an encoder of transformers.
ENCODER_MODULES = ("Transformer", "MLMTransformer")
_OTHER_LIBRARY = "use sentence-transformers for it, or give --model an encoder, such as minilm"
_STATIC_LIBRARY = f"use model2vec or {_OTHER_LIBRARY.removeprefix('use ')}"
_STATIC = "a static model: a sum of one vector for each word piece, without layers"
_MODULES = {
    "StaticEmbedding": _STATIC,
    "SparseStaticEmbedding": _STATIC,
    "WordEmbeddings": "word vectors (WordEmbeddings) without a transformer",
    "BoW": "a bag of words (BoW) without a transformer",
    "CLIPModel": "a model of images and texts (CLIPModel)",
    **dict.fromkeys(("Router", "Asym"), "a Router, which has a model for queries and one for documents"),
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
#: Input of models that do not read text alone, by `model_type`.
_READS = {
    **dict.fromkeys(_IMAGES.split(), "images"),
    **dict.fromkeys(_SOUND.split(), "sound"),
    **dict.fromkeys(_BOTH.split(), "texts together with images or sound"),
}
#: Weights of other libraries: a pattern, and the library.
_FOREIGN = (
    ("**/*.gguf", "GGUF (llama.cpp)"),
    ("**/*.onnx", "ONNX"),
    ("tf_model*.h5", "TensorFlow"),
    ("*.ckpt*.index", "TensorFlow"),
    ("flax_model*.msgpack", "Flax"),
    ("**/openvino_model.xml", "OpenVINO"),
    ("rust_model.ot", "Rust"),
    ("**/*.mlmodel", "Core ML"),
    ("*.tflite", "TensorFlow Lite"),
    ("*.nemo", "NeMo"),
)
#: Starts of the names of files of a training run, which hold no model.
_TRAINING_FILES = ("training_args.bin", "optimizer", "scheduler", "rng_state", "scaler", "adapter_", "trainer_")
_LFS = b"version https://git-lfs.github.com/spec/"
#: A Git LFS pointer has three lines; the specification allows a kilobyte.
_POINTER_BYTES = 1024
_MOST_SHOWN = 3
_ENCODERS_ONLY = "embedkit is for transformer encoders of text"
_GIVE_FOLDER = (
    "give the folder that holds config.json, model.safetensors or pytorch_model.bin, and the tokenizer's files"
)


def not_a_model(name: str, folder: Path) -> ModelError:
    """Returns the error for a folder without config.json and modules.json; it describes the folder's content."""
    if (folder / "adapter_config.json").is_file():
        return _adapter(name, folder)
    message, hint = "has no config.json, so it is not a model's", _GIVE_FOLDER
    if (folder / "manifest.json").is_file() or (folder / "plan.json").is_file():
        message = "is an output of embedkit, not a model"
        hint = "give it to `embedkit inspect`; --model takes the folder of an encoder"
    elif (folder / "snapshots").is_dir():
        commits = sorted((folder / "snapshots").iterdir())
        message = "is a model in the hub's cache, which has a folder for each commit"
        hint = f"use --model {folder.name.removeprefix('models--').replace('--', '/')}"
        hint += f", or --model {commits[-1]}" if commits else ""
    elif inside := _models_inside(folder):
        hint = f"the model may be in the folder below: --model {Path(name) / inside[0]}"
    elif foreign := _foreign_weights(name, folder):
        return foreign
    # In a folder that may not be listed, every file seems to be missing.
    elif not os.access(folder, os.R_OK | os.X_OK):
        message, hint = "may not be read", "change its permissions, or give another one"
    elif next(folder.iterdir(), None) is None:
        message += "; it is empty"
    return ModelError(f"folder '{name}' {message}", hint=hint)


def file_not_folder(name: str, path: Path) -> ModelError:
    """Returns the error for a file given as a model; the hint names its folder, or another option."""
    if any((path.parent / file).is_file() for file in ("config.json", "modules.json")):
        hint = f"give its folder: --model {path.parent}"
    elif path.suffix == ".safetensors":
        hint = "give the folder that holds config.json and weights; a pooler made by `embedkit fit` is for --pool"
    else:
        hint = _GIVE_FOLDER
    return ModelError(f"--model '{name}' is a file; a model is a folder", hint=hint)


def missing_folder(name: str, path: Path) -> ModelError:
    """Returns the error for a path that does not exist; names its missing part and similar existing names."""
    if os.path.islink(path):  # noqa: PTH114 - never raises, as for a name that is too long
        return ModelError(
            f"folder '{name}' is a link to {path.readlink()}, which does not exist",
            hint="correct the link, or give the folder itself",
        )
    # A path starts with "." or "/", which exist.
    parent = missing = path
    while not os.path.isdir(parent) and parent != parent.parent:  # noqa: PTH112
        parent, missing = parent.parent, parent
    if not os.access(parent, os.X_OK):
        return ModelError(f"folder '{name}' may not be read: '{parent}' forbids it", hint="change its permissions")
    if os.path.isfile(missing):  # noqa: PTH113
        return ModelError(f"folder '{name}' is missing: '{missing}' is a file", hint="give the folder of a model")
    try:
        siblings = [entry.name for entry in parent.iterdir() if entry.is_dir()]
    except OSError:
        siblings = []
    near = [parent / sibling / path.relative_to(missing) for sibling in closest_names(missing.name, siblings)]
    hint = "check its spelling; a hub id has another form: owner/name"
    if near:
        hint = f"did you mean --model {' or '.join(map(str, near))}?"
    reason = "" if missing == path else f": there is no '{missing}'"
    return ModelError(f"folder '{name}' is missing{reason}", hint=hint)


def check_is_text_encoder(name: str, root: Path, folder: Path, modules: Sequence[tuple[str, str]]) -> None:
    """Checks that `folder`, in a model's `root`, holds a text encoder; `modules` are those of its recipe.

    Raises:
        ModelError: it is an adapter, a model without layers, or one that does not read text.
    """
    adapter = next((path for path in (folder, root) if (path / "adapter_config.json").is_file()), None)
    if adapter is not None and not any((folder / weights).is_file() for weights in WEIGHTS):
        raise _adapter(name, adapter)
    kinds = [kind.rsplit(".", 1)[-1] for kind, _ in modules]
    has_config = (folder / "config.json").is_file()
    known = next((_MODULES[kind] for kind in kinds if kind in _MODULES), None)
    if kinds and not set(kinds) & {*ENCODER_MODULES} and (known is not None or not has_config):
        inside = _models_inside(root)
        hint = f"give one of its encoders: --model {Path(name) / inside[0]}" if inside else _OTHER_LIBRARY
        if known == _STATIC:
            hint = _STATIC_LIBRARY
        if known is None:
            custom = next((kind for kind, _ in modules if not kind.startswith("sentence_transformers.")), None)
            parts = f"its own code ('{custom}')" if custom else f"{', '.join(kinds)}, without a transformer"
            known = f"made of {parts}"
        raise ModelError(f"model '{name}' is {known}: {_ENCODERS_ONLY}", hint=hint)
    if not has_config:
        place = "" if folder == root else f" in {folder.name}, where its modules.json has the encoder"
        raise ModelError(
            f"model '{name}' has no config.json{place}",
            hint="put the config.json of the encoder there, or download the model again",
        )


def check_reads_text(name: str, config: Mapping[str, Any]) -> None:
    """Checks that config.json describes an encoder of text.

    Raises:
        ModelError: it names no model type, or one of another kind.
    """
    kind = config.get("model_type")
    if kind == "model2vec" or "StaticModel" in (config.get("architectures") or ()):
        raise ModelError(f"model '{name}' is {_STATIC}: {_ENCODERS_ONLY}", hint=_STATIC_LIBRARY)
    if not kind:
        raise ModelError(
            f"config.json of model '{name}' has no model_type",
            hint='add "model_type": "bert" (or what it is) to config.json',
        )
    reads = _READS.get(str(kind))
    if reads is not None:
        clip = "; a folder with its text part alone (clip_text_model) can be used" if kind == "clip" else ""
        raise ModelError(
            f"model '{name}' ({kind}) reads {reads}: {_ENCODERS_ONLY}",
            hint=f"give --model an encoder of text, such as minilm{clip}",
        )


def check_has_weights(name: str, folder: Path) -> None:
    """Checks that a folder has weights in a format that is read, and names others that it has.

    Raises:
        ModelError: there are none, or only those of another library; or their index is damaged.
    """
    weights = next((file for file in WEIGHTS if (folder / file).is_file()), None)
    if weights is not None:
        check_complete(name, folder, [folder / weights] if weights.endswith(".index.json") else [])
        return
    foreign = _foreign_weights(name, folder)
    if foreign is not None:
        raise foreign
    readable = " or ".join(WEIGHTS[::2])
    message, hint = f"has no weights in {folder}", f"put {readable} there"
    files = sorted(path.name for path in folder.iterdir() if path.is_file())
    parts = [file for file in files if re.search(r"-\d+-of-\d+\.(safetensors|bin)$", file)]
    weights_like = (file for file in files if file.endswith((".safetensors", ".bin", ".pt", ".pth", ".ckpt")))
    others = [file for file in weights_like if not file.startswith(_TRAINING_FILES)]
    if parts:
        index = re.sub(r"-\d+-of-\d+", "", parts[0]) + ".index.json"
        message = f"has its weights in parts, such as {parts[0]}, without {index}"
        hint = "download the index, too: it says which weight is in which part"
    elif others:
        shown = ", ".join(others[:_MOST_SHOWN]) + (", …" if len(others) > _MOST_SHOWN else "")
        message = f"has no weights under a name that is read, but {shown}"
        hint = f"if that is the encoder, name it {readable}"
    raise ModelError(f"model '{name}' {message}", hint=hint)


def check_complete(name: str, root: Path, paths: Iterable[Path]) -> None:
    """Checks that files are complete, by their headers and size: no Git LFS pointer, web page or partial download.

    Raises:
        ModelError: a file is damaged.
    """
    starts = {path: _start(name, path) for path in paths}
    shown = {
        path: path.relative_to(root if path.is_relative_to(root) else path.parent).as_posix() for path in starts
    }
    pointers = [shown[path] for path, start in starts.items() if start.startswith(_LFS)]
    if pointers:
        others = f", and so are {len(pointers) - 1} more" if len(pointers) > 1 else ""
        raise ModelError(
            f"{pointers[0]} of model '{name}' is a Git LFS pointer, not the file itself{others}",
            hint=f"run `git lfs pull` in {root}, or download the model again",
        )
    for path, start in starts.items():
        damage, hint = None, "copy or download the whole file again"
        if re.match(rb"\s*<(!doctype\s+)?html", start, re.IGNORECASE):
            damage = "is a web page, not the file itself"
            hint = "download it again: on the hub, a file's address has /resolve/ and its page's has /blob/"
        elif not start and path.suffix in {".safetensors", ".bin", ".json"}:
            damage = "is empty (0 bytes)"
        elif path.suffix in {".safetensors", ".bin"}:
            damage = _damage(path, start)
        if damage is not None:
            raise ModelError(f"{shown[path]} of model '{name}' {damage}", hint=hint)


def small_files(folder: Path) -> list[Path]:
    """Lists the files of a folder that settings and tokenizers are read from, sorted."""
    files = (path for path in folder.iterdir() if any(fnmatch(path.name, pattern) for pattern in SMALL_FILES))
    return sorted(path for path in files if path.is_file())


def _adapter(name: str, folder: Path) -> ModelError:
    try:
        settings = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        base = str(settings.get("base_model_name_or_path") or settings.get("model_name") or "")
    except (OSError, ValueError, AttributeError):
        base = ""
    return ModelError(
        f"model '{name}' is an adapter (adapter_config.json) without its base model"
        + (f" '{base}'" if base else ""),
        hint="merge it into that with peft (merge_and_unload, then save_pretrained), and give the new folder",
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


def _foreign_weights(name: str, folder: Path) -> ModelError | None:
    for pattern, library in _FOREIGN:
        path = next(iter(sorted(folder.glob(pattern))), None)
        if path is not None:
            return ModelError(
                f"model '{name}' has weights for {library} only: {path.relative_to(folder).as_posix()}",
                hint=f"embedkit reads {' or '.join(WEIGHTS[::2])}: download these, or convert the model with "
                "transformers",
            )
    return None


def _start(name: str, path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_POINTER_BYTES)
    except OSError as error:
        raise ModelError(
            f"{path.name} of model '{name}' cannot be read: {error.strerror}",
            hint=f"check the permissions of {path}, and its disk",
        ) from None


def _damage(path: Path, start: bytes) -> str | None:
    """Describes the damage to a file of weights, by its header; None if there is none."""
    if path.suffix == ".bin":
        # Since torch 1.6 it is a zip archive, whose list of contents is at its end.
        truncated = start.startswith(b"PK\x03\x04") and not zipfile.is_zipfile(path)
        return "is truncated: its end is missing" if truncated else None
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy"):
            return None
    except SafetensorError as error:
        # "incomplete metadata", "header too small"; in older versions MetadataIncompleteBuffer, HeaderTooSmall.
        if re.search(r"incomplete|too ?small|invalid ?header ?length", str(error), re.IGNORECASE):
            return f"is truncated, or damaged at its end: it has {path.stat().st_size:,} bytes"
        return "is not a safetensors file, and cannot be read"
