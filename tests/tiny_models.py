"""Tiny random models, saved as a user's folder would be: config.json, model.safetensors, tokenizer files.

Made from the config classes of transformers and a vocabulary counted here, so that no network, no file
and no other test is needed. Knows nothing of embedkit: it is what embedkit's results are held against.

The weights are drawn so that a fault is seen. Norms, biases, the padding rows of the embeddings, positions
and token types are all random and of unit size, where transformers' own initialisation would make them
0 or 1: leaving out any one of them moves the output by far more than 1e-3.
"""

from __future__ import annotations

import atexit
import json
import math
import shutil
import tempfile
from collections import Counter
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from torch import nn
from transformers import (
    AlbertConfig,
    AlbertModel,
    AlbertTokenizer,
    BertConfig,
    BertForPreTraining,
    BertModel,
    BertTokenizer,
    CamembertConfig,
    CamembertModel,
    CamembertTokenizer,
    DebertaV2Config,
    DebertaV2Model,
    DebertaV2Tokenizer,
    DistilBertConfig,
    DistilBertModel,
    DistilBertTokenizer,
    ElectraConfig,
    ElectraModel,
    GPT2Config,
    GPT2Model,
    GPT2Tokenizer,
    ModernBertConfig,
    ModernBertModel,
    MPNetConfig,
    MPNetModel,
    MPNetTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaModel,
    RobertaTokenizer,
    T5Config,
    T5Model,
    T5Tokenizer,
    XLMRobertaConfig,
    XLMRobertaModel,
    XLMRobertaTokenizer,
    XLNetConfig,
    XLNetModel,
    XLNetTokenizer,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

HIDDEN_SIZE = 32
N_HEADS = 4
INTERMEDIATE_SIZE = 64
MAX_LENGTH = 64  # position embeddings, special tokens counted
T5_MAX_LENGTH = 96  # T5 has no position embeddings: only its tokenizer_config.json states a limit
N_PIECES = 280  # a vocabulary is this and its special tokens: 280 to 400 entries
UNIT_STD = 0.18  # of a weight matrix: 0.18 * sqrt(32 inputs) = 1, so that outputs keep their size
#: Queries and keys are larger. Were attention an even mean over the text, its tokens would grow alike with
#: every layer (at 0.2 throughout, ELECTRA's end 0.08 of their length apart), and all poolings with them.
SHARP_STD = 0.35
SHARP = (
    "query.weight",
    "key.weight",
    "query_proj.weight",
    "key_proj.weight",
    "q_lin.weight",
    "k_lin.weight",
    "attn.q.weight",
    "attn.k.weight",
    "rel_attn.q",
    "rel_attn.k",
)

#: What vocabularies are counted on. No patient wrote or is described in any of it.
CORPUS = (
    "The patient is a 67 year old man with HTN, DM2 and CKD s/p CABG who presents with SOB and chest pain.",
    "He was started on metoprolol 25 mg PO BID and the chest pain resolved without further intervention.",
    "Labs: WBC 12.4, Hgb 9.8, Plt 210, Na 138, K 4.1, Cr 1.6; lactate 2.1 mmol/L on admission.",
    "Chest x-ray shows no focal consolidation, pleural effusion or pneumothorax. The heart is enlarged.",
    "Assessment and plan: continue furosemide 40 mg IV daily, hold lisinopril, repeat ECG in the morning.",
    "Pt denies fever, chills, nausea, vomiting and abdominal pain; c/o mild headache, given Tylenol 650 mg.",
    "She was discharged home in stable condition with follow up in the cardiology clinic in two weeks.",
    "Neuro: alert and oriented, moves all extremities, left arm weakness 4/5, no facial droop, speech clear.",
    "MRI of the brain shows an acute infarct in the right middle cerebral artery territory.",
    "The patient was intubated in the ED for hypoxia and transferred to the ICU on norepinephrine 0.1 mcg.",
    "Colonoscopy showed a 6 mm polyp in the sigmoid colon which was removed; pathology is pending.",
    "Vital signs: T 37.2, BP 142/88, HR 96, RR 18, SpO2 94% on room air. Weight 81.5 kg.",
    "AFib, on Xarelto; Zofran 4 mg IV q6h prn, Jevity held, quetiapine 25 mg qhs (for agitation).",
    'Admitted [**2101-05-03**]. The patient said "I can\'t breathe": worse when lying flat? Yes.',
)

_CLINICAL = (
    "Pt is a 71 yo F w/ HTN, AFib on warfarin, s/p R THA, c/o SOB x3 days. WBC 14.2, Cr 1.9 (baseline 1.1). "
    "CXR: RLL opacity. Started on ceftriaxone 1 g IV q24h. "
)

#: Texts to hold embedkit against transformers: lengths from one word to several windows.
TEXTS: list[str] = [
    "pain",
    "SOB",
    "The patient was discharged home in stable condition.",
    "the patient was discharged home in stable condition.",
    "Pt c/o SOB, denies CP; s/p CABG x3 (2101), HTN, DM2, CKD 2/2 NSAIDs. NKDA.",
    "Vital signs: T 37.2, BP 142/88, HR 96, RR 18, SpO2 94% on room air.",
    "Discharge medications:\n1. Metoprolol 25 mg PO BID\n2. Furosemide 40 mg PO daily\n\nFollow up 2 weeks",
    "Admitted [**2101-05-03**], transferred from [**Hospital1**] to the ICU.",
    "The patient states \"I can't catch my breath\" and 'it hurts here'.",
    "Métastases hépatiques, sœur atteinte; température 38,4 °C, 50 µg/h, pH ≥ 7.30.",
    "患者は胸痛を訴えた。 Пациент жалуется на одышку. 😷",
    "caf\u00e9 cafe\u0301",  # composed, and with a combining accent
    "  spaces   and\ttabs\r\nand a line end  ",
    "[PAD] is a word here, and so are <pad>, </s> and [MASK] .",
    "[PAD] [PAD] [PAD]",
    "The patient was discharged home in stable condition.",  # again: the same vector, wherever it stands
    "fever " * 12,
    "Pneumonoultramicroscopicsilicovolcanoconiosis-electroencephalographically",
    "?!",
    "0.5",
    CORPUS[0],
    " ".join(CORPUS[:2]),
    _CLINICAL,  # near the limit of 64
    _CLINICAL * 3,  # far over it
    " ".join(reversed(CORPUS)),  # several windows
    "no " * 400,
]


@dataclass(frozen=True)
class TinyModel:
    """A folder with a model, and what is true of it.

    Attributes:
        model_type: as in its config.json.
        folder: what a user would give to `--model`.
        n_layers: encoder layers.
        hidden_size: of every hidden state.
        max_length: longest input in tokens, special ones counted, that follows from its position
            embeddings or else its tokenizer_config.json; None where neither says.
    """

    model_type: str
    folder: Path
    n_layers: int
    hidden_size: int
    max_length: int | None


@dataclass(frozen=True)
class _Recipe:
    """How one model type is made. `tokenizer_limit` is model_max_length of its tokenizer_config.json."""

    tokenizer: Callable[[], PreTrainedTokenizerBase]
    model: Callable[[PreTrainedTokenizerBase, int], PreTrainedModel]
    max_length: int | None = MAX_LENGTH
    tokenizer_limit: int | None = None


def make(model_type: str, folder: Path, *, seed: int = 0, n_layers: int = 3) -> TinyModel:
    """Saves a random model of this type in `folder`; the same arguments give the same files.

    ModernBERT gets four layers at least, so that global attention comes twice with local in between. Each model is
    made once a process, and copied.
    """
    if model_type == "modernbert":
        n_layers = max(n_layers, 4)
    shutil.copytree(_made(model_type, seed, n_layers), folder, dirs_exist_ok=True)
    return TinyModel(model_type, folder, n_layers, HIDDEN_SIZE, _RECIPES[model_type].max_length)


@cache
def _made(model_type: str, seed: int, n_layers: int) -> str:
    recipe = _RECIPES[model_type]
    tokenizer = recipe.tokenizer()
    model = recipe.model(tokenizer, n_layers)
    _randomise(model, seed)
    folder = tempfile.mkdtemp(prefix=f"{model_type}-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    model.save_pretrained(folder)
    _save_tokenizer(tokenizer, Path(folder), recipe.tokenizer_limit)
    return folder


def make_bio_clinicalbert_layout(folder: Path) -> Path:
    """Saves a cased BERT as emilyalsentzer/Bio_ClinicalBERT has it: three files, none about the tokenizer.

    The weights are a pickled state dict of BertForPreTraining, with `bert.` before each name of the
    encoder, the pre-training heads, and the position_ids that older versions of transformers saved.
    """
    folder.mkdir(parents=True, exist_ok=True)
    vocab = _wordpieces(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"], lowercase=False)
    (folder / "vocab.txt").write_text("".join(f"{piece}\n" for piece in vocab), encoding="utf-8")
    config = {
        "attention_probs_dropout_prob": 0.1,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1,
        "hidden_size": HIDDEN_SIZE,
        "initializer_range": 0.02,
        "intermediate_size": INTERMEDIATE_SIZE,
        "layer_norm_eps": 1e-12,
        "max_position_embeddings": MAX_LENGTH,
        "model_type": "bert",
        "num_attention_heads": N_HEADS,
        "num_hidden_layers": 3,
        "pad_token_id": 0,
        "type_vocab_size": 2,
        "vocab_size": len(vocab),
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    model = BertForPreTraining(BertConfig(**config))
    _randomise(model, seed=0)
    state = dict(model.state_dict())
    state["bert.embeddings.position_ids"] = torch.arange(MAX_LENGTH).unsqueeze(0)
    torch.save(state, folder / "pytorch_model.bin")
    return folder


# Weights ---------------------------------------------------------------------------------------------


def _randomise(model: nn.Module, seed: int) -> None:
    """Draws every parameter anew, by its part: norms about 1, embeddings and matrices of unit effect."""
    generator = torch.Generator().manual_seed(seed)
    in_norm = {
        id(parameter)
        for module in model.modules()
        if "Norm" in type(module).__name__
        for parameter in module.parameters(recurse=False)
    }
    in_embedding = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            noise = torch.randn(parameter.shape, generator=generator)
            if id(parameter) in in_norm and name.endswith("weight"):
                parameter.copy_(1 + 0.3 * noise)
            elif parameter.ndim == 1:
                parameter.copy_(0.1 * noise)
            elif id(parameter) in in_embedding:
                parameter.copy_(noise if len(parameter) > N_PIECES else 0.5 * noise)  # words, all others
            elif name.endswith(SHARP):
                parameter.copy_(SHARP_STD * noise)
            else:
                parameter.copy_(UNIT_STD * noise)
    model.eval()


# Vocabularies ----------------------------------------------------------------------------------------
# Counted here, not by the trainers of `tokenizers`: those for WordPiece and Unigram order (and, at equal
# counts, choose) pieces by a hash that changes from process to process.


def _words(*, lowercase: bool) -> Counter[str]:
    text = " ".join(CORPUS)
    splits = pre_tokenizers.BertPreTokenizer().pre_tokenize_str(text.lower() if lowercase else text)
    return Counter(word for word, _ in splits)


def _by_count(counts: Counter[str]) -> list[str]:
    return sorted((piece for piece in counts if len(piece) > 1), key=lambda piece: (-counts[piece], piece))


def _wordpieces(first: Sequence[str], *, last: Sequence[str] = (), lowercase: bool) -> dict[str, int]:
    """Returns special tokens, every character alone and within a word, then the commonest words and pieces."""
    words = _words(lowercase=lowercase)
    characters = sorted(set("".join(words)))
    inner = ["##" + character for character in characters if character.isalnum()]
    pieces: Counter[str] = Counter()
    for word, n in words.items():
        for start in range(1, len(word)):
            for stop in range(start + 2, min(start + 4, len(word)) + 1):
                pieces["##" + word[start:stop]] += n
    body = [*characters, *inner, *_by_count(words)[:120], *_by_count(pieces)][: N_PIECES + 40]
    return {piece: i for i, piece in enumerate([*first, *body, *last])}


def _unigrams(
    first: Sequence[str], *, last: Sequence[str] = (), lowercase: bool = False
) -> list[tuple[str, float]]:
    """Returns special tokens with score 0, then every character and the commonest pieces with their log odds."""
    text = " ".join(CORPUS)
    words = Counter((text.lower() if lowercase else text).split())
    counts: Counter[str] = Counter()
    for word, n in words.items():
        marked = "▁" + word
        for start in range(len(marked)):
            for stop in range(start + 1, min(start + 7, len(marked)) + 1):
                counts[marked[start:stop]] += n
    characters = sorted(piece for piece in counts if len(piece) == 1)
    body = [*characters, *_by_count(counts)][:N_PIECES]
    total = sum(counts[piece] for piece in body)
    scored = [(piece, math.log(counts[piece] / total)) for piece in body]
    return [*((piece, 0.0) for piece in first), *scored, *((piece, 0.0) for piece in last)]


def _byte_pairs(first: Sequence[str], *, last: Sequence[str] = ()) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Returns special tokens, the 256 bytes, then what the commonest neighbours make when they are merged."""
    splitter = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words = Counter(word for word, _ in splitter.pre_tokenize_str(" ".join(CORPUS)))
    split = {word: tuple(word) for word in words}
    merges: list[tuple[str, str]] = []
    while len(merges) < N_PIECES - 200:
        pairs = Counter({pair: 0 for pieces in split.values() for pair in pairwise(pieces)})
        for word, pieces in split.items():
            for pair in pairwise(pieces):
                pairs[pair] += words[word]
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        split = {word: _merged(pieces, best) for word, pieces in split.items()}
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    body = [*alphabet, *(left + right for left, right in merges)]
    return {piece: i for i, piece in enumerate([*first, *body, *last])}, merges


def _merged(pieces: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    out: list[str] = []
    for piece in pieces:
        if out and (out[-1], piece) == pair:
            out[-1] += piece
        else:
            out.append(piece)
    return tuple(out)


# Tokenizers ------------------------------------------------------------------------------------------
# Special tokens stand at the ids where the real checkpoints have them.


def _bert_tokenizer() -> PreTrainedTokenizerBase:
    return BertTokenizer(vocab=_wordpieces(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"], lowercase=True))


def _distilbert_tokenizer() -> PreTrainedTokenizerBase:
    first = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    return DistilBertTokenizer(vocab=_wordpieces(first, lowercase=False), do_lower_case=False)


def _roberta_tokenizer() -> PreTrainedTokenizerBase:
    vocab, merges = _byte_pairs(["<s>", "<pad>", "</s>", "<unk>"], last=["<mask>"])
    return RobertaTokenizer(vocab=vocab, merges=merges)


def _albert_tokenizer() -> PreTrainedTokenizerBase:
    first = ["<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]"]
    return AlbertTokenizer(vocab=_unigrams(first, lowercase=True))


def _xlm_roberta_tokenizer() -> PreTrainedTokenizerBase:
    return XLMRobertaTokenizer(vocab=_unigrams(["<s>", "<pad>", "</s>", "<unk>"], last=["<mask>"]))


def _camembert_tokenizer() -> PreTrainedTokenizerBase:
    first = ["<s>NOTUSED", "<pad>", "</s>NOTUSED", "<unk>", "<unk>NOTUSED", "<s>", "</s>"]
    return CamembertTokenizer(vocab=_unigrams(first, last=["<mask>"]))


def _mpnet_tokenizer() -> PreTrainedTokenizerBase:
    first = ["<s>", "<pad>", "</s>", "<unk>", "[UNK]"]
    return MPNetTokenizer(vocab=_wordpieces(first, last=["<mask>"], lowercase=True))


def _deberta_v2_tokenizer() -> PreTrainedTokenizerBase:
    return DebertaV2Tokenizer(vocab=_unigrams(["[PAD]", "[CLS]", "[SEP]", "[UNK]"], last=["[MASK]"]), unk_id=3)


def _modernbert_tokenizer() -> PreTrainedTokenizerBase:
    """Returns a plain tokenizer.json without a class of its own, as the real one has."""
    names = ["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]"]
    vocab, merges = _byte_pairs([], last=names)
    backend = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B [SEP]",
        special_tokens=[("[CLS]", vocab["[CLS]"]), ("[SEP]", vocab["[SEP]"])],
    )
    roles = ("unk_token", "cls_token", "sep_token", "pad_token", "mask_token")
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_input_names=["input_ids", "attention_mask"],
        **dict(zip(roles, names, strict=True)),
    )


def _t5_tokenizer() -> PreTrainedTokenizerBase:
    extra_ids = [f"<extra_id_{i}>" for i in range(99, -1, -1)]
    return T5Tokenizer(vocab=_unigrams(["<pad>", "</s>", "<unk>"], last=extra_ids))


def _gpt2_tokenizer() -> PreTrainedTokenizerBase:
    vocab, merges = _byte_pairs([], last=["<|endoftext|>"])
    return GPT2Tokenizer(vocab=vocab, merges=merges)


def _xlnet_tokenizer() -> PreTrainedTokenizerBase:
    first = ["<unk>", "<s>", "</s>", "<cls>", "<sep>", "<pad>", "<mask>", "<eod>", "<eop>"]
    # transformers 4 gave token types (2 for <cls>) unasked; 5 gives them to a folder that names them.
    names = ["input_ids", "token_type_ids", "attention_mask"]
    return XLNetTokenizer(vocab=_unigrams(first), model_input_names=names)


def _save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path, limit: int | None) -> None:
    """Saves it; model_max_length is left out where there is none, as many real folders leave it out."""
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    settings.pop("model_max_length", None)
    if limit is not None:
        settings["model_max_length"] = limit
    path.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")


# Models ----------------------------------------------------------------------------------------------


def _encoder(
    model_class: type[PreTrainedModel], config_class: type[PreTrainedConfig], **settings: Any
) -> Callable[[PreTrainedTokenizerBase, int], PreTrainedModel]:
    """How to make a model whose config has the usual names of sizes."""

    def build(tokenizer: PreTrainedTokenizerBase, n_layers: int) -> PreTrainedModel:
        config = config_class(
            vocab_size=len(tokenizer),
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            hidden_size=HIDDEN_SIZE,
            num_hidden_layers=n_layers,
            num_attention_heads=N_HEADS,
            intermediate_size=INTERMEDIATE_SIZE,
            **{"max_position_embeddings": MAX_LENGTH, **settings},
        )
        return model_class(config)

    return build


def _distilbert(tokenizer: PreTrainedTokenizerBase, n_layers: int) -> PreTrainedModel:
    return DistilBertModel(
        DistilBertConfig(
            vocab_size=len(tokenizer),
            max_position_embeddings=MAX_LENGTH,
            n_layers=n_layers,
            n_heads=N_HEADS,
            dim=HIDDEN_SIZE,
            hidden_dim=INTERMEDIATE_SIZE,
        )
    )


def _modernbert(tokenizer: PreTrainedTokenizerBase, n_layers: int) -> PreTrainedModel:
    return ModernBertModel(
        ModernBertConfig(
            vocab_size=len(tokenizer),
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.cls_token_id,
            cls_token_id=tokenizer.cls_token_id,
            eos_token_id=tokenizer.sep_token_id,
            sep_token_id=tokenizer.sep_token_id,
            hidden_size=HIDDEN_SIZE,
            num_hidden_layers=n_layers,
            num_attention_heads=N_HEADS,
            intermediate_size=INTERMEDIATE_SIZE,
            max_position_embeddings=MAX_LENGTH,
            local_attention=8,  # four tokens to each side: texts are several windows long
            global_attn_every_n_layers=3,
        )
    )


def _t5(tokenizer: PreTrainedTokenizerBase, n_layers: int) -> PreTrainedModel:
    """Encoder and decoder, as the real checkpoints have both; more rows than tokens, as they have."""
    return T5Model(
        T5Config(
            vocab_size=8 * math.ceil((len(tokenizer) + 1) / 8),
            d_model=HIDDEN_SIZE,
            d_kv=HIDDEN_SIZE // N_HEADS,
            d_ff=INTERMEDIATE_SIZE,
            num_layers=n_layers,
            num_heads=N_HEADS,
            decoder_start_token_id=tokenizer.pad_token_id,
        )
    )


def _gpt2(tokenizer: PreTrainedTokenizerBase, n_layers: int) -> PreTrainedModel:
    return GPT2Model(
        GPT2Config(
            vocab_size=len(tokenizer),
            n_positions=MAX_LENGTH,
            n_embd=HIDDEN_SIZE,
            n_layer=n_layers,
            n_head=N_HEADS,
            n_inner=INTERMEDIATE_SIZE,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )


def _xlnet(tokenizer: PreTrainedTokenizerBase, n_layers: int) -> PreTrainedModel:
    return XLNetModel(
        XLNetConfig(
            vocab_size=len(tokenizer),
            d_model=HIDDEN_SIZE,
            n_layer=n_layers,
            n_head=N_HEADS,
            d_inner=INTERMEDIATE_SIZE,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )


# RoBERTa counts positions from pad_token_id + 1 = 2, so 66 rows are 64 tokens; MPNet does the same.
_OFFSET_2 = {"max_position_embeddings": MAX_LENGTH + 2}
_ROBERTA_LIKE: dict[str, Any] = {**_OFFSET_2, "type_vocab_size": 1, "layer_norm_eps": 1e-5}

_RECIPES: dict[str, _Recipe] = {
    "bert": _Recipe(_bert_tokenizer, _encoder(BertModel, BertConfig), tokenizer_limit=MAX_LENGTH),
    "roberta": _Recipe(
        _roberta_tokenizer, _encoder(RobertaModel, RobertaConfig, **_ROBERTA_LIKE), tokenizer_limit=MAX_LENGTH
    ),
    "distilbert": _Recipe(_distilbert_tokenizer, _distilbert, tokenizer_limit=MAX_LENGTH),
    "albert": _Recipe(_albert_tokenizer, _encoder(AlbertModel, AlbertConfig, embedding_size=16)),
    "electra": _Recipe(_bert_tokenizer, _encoder(ElectraModel, ElectraConfig, embedding_size=16)),
    "xlm-roberta": _Recipe(_xlm_roberta_tokenizer, _encoder(XLMRobertaModel, XLMRobertaConfig, **_ROBERTA_LIKE)),
    "camembert": _Recipe(_camembert_tokenizer, _encoder(CamembertModel, CamembertConfig, **_ROBERTA_LIKE)),
    "mpnet": _Recipe(_mpnet_tokenizer, _encoder(MPNetModel, MPNetConfig, **_OFFSET_2), tokenizer_limit=MAX_LENGTH),
    # As DeBERTa-v3: relative positions in buckets, none added to the input; 4 buckets a side, so that
    # texts of 64 tokens reach the logarithmic ones.
    "deberta-v2": _Recipe(
        _deberta_v2_tokenizer,
        _encoder(
            DebertaV2Model,
            DebertaV2Config,
            relative_attention=True,
            position_buckets=8,
            norm_rel_ebd="layer_norm",
            share_att_key=True,
            pos_att_type=["p2c", "c2p"],
            position_biased_input=False,
            type_vocab_size=0,
        ),
    ),
    "modernbert": _Recipe(_modernbert_tokenizer, _modernbert, tokenizer_limit=MAX_LENGTH),
    "t5": _Recipe(_t5_tokenizer, _t5, max_length=T5_MAX_LENGTH, tokenizer_limit=T5_MAX_LENGTH),
    "gpt2": _Recipe(_gpt2_tokenizer, _gpt2, tokenizer_limit=MAX_LENGTH),
    "xlnet": _Recipe(_xlnet_tokenizer, _xlnet, max_length=None),
}

MODEL_TYPES: tuple[str, ...] = tuple(_RECIPES)
