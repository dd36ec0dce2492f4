"""Every way to fail that a user can meet: one `error:` line, one `hint:` line, the contract's exit code.

Every text of every table here holds MARK, which stands for what a patient wouldn't want printed.
"""

from __future__ import annotations

import errno
import io
import json
import shutil
import sys
from pathlib import Path
from string import Template

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.torch import load_file, save_file

from embedkit.config.poolings import LAYER_AGGREGATIONS, POOLING_NAMES, WHOLE_NAMES

MARK = "xyzzyplugh"
USAGE, INPUT, MODEL, OUTPUT = 2, 3, 4, 5
LONG = "n" * 300


def write_tables(folder):
    rows = [f'"{MARK} no. {number}, ""quoted"" {MARK}"' for number in range(12)]
    csv = "id,label,text\n" + "".join(f"00{number},x,{row}\n" for number, row in enumerate(rows))
    good = "".join(json.dumps({"id": str(number), "text": MARK}) + "\n" for number in range(12))
    files = {
        "notes.csv": csv,
        "notes.dat": csv,
        "shouting.csv": csv.replace("text", "TEXT", 1),
        "no_text.csv": csv.replace("text", "free", 1),
        "two_texts.csv": csv.replace("label,text", "text,text", 1),
        "short.csv": f"{csv}0012,{MARK}\n0013,x,{MARK}\n",
        "quote.csv": f'{csv}0012,x,"{MARK}\n',
        "behind_quote.csv": f'{csv}0012,x,"{MARK}" {MARK}\n',
        "latin1.csv": csv.encode() + f"0012,x,{MARK} é\n".encode("latin-1"),
        "broken.jsonl": f'{good}{{"id": "12", "text": "{MARK}}}\n[1]\n{{"id": "14", "text": {{"{MARK}": 1}}}}\n',
        "array.jsonl": f'[{{"text": "{MARK}"}}]',
        "empty.csv": "",
        "notes.parquet": csv,
        "notes.csv.gz": csv,
    }
    for name, content in files.items():
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    pq.write_table(pa.table({"text": [1, 2], "id": ["a", "b"], "note": [MARK, MARK]}), folder / "numbers.parquet")


def without_weights(model, folder, part):
    """A copy of the model without the weights whose names hold `part`."""
    shutil.copytree(model, folder)
    weights = load_file(folder / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if part not in name}
    assert len(kept) < len(weights)
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})


def edit_config(model, folder, **values):
    shutil.copytree(model, folder)
    config = {**json.loads((folder / "config.json").read_text()), **values}
    config = {name: value for name, value in config.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(config))


def make_models(bert, folder):
    from tests.tiny_models import make

    for name in ("gpt2", "distilbert"):
        make(name, folder / name)
    without_weights(bert, folder / "no_pooler", "pooler")
    without_weights(bert, folder / "no_layer", "encoder.layer.1.attention.self.query.weight")
    edit_config(bert, folder / "no_type", model_type=None)
    edit_config(bert, folder / "other_type", model_type="bort9")
    edit_config(bert, folder / "other_width", intermediate_size=128)
    for name in ("no_files", "no_config", "no_weights", "cut_off", "no_tokenizer"):
        shutil.copytree(bert, folder / name)
    shutil.rmtree(folder / "no_files")
    (folder / "no_files").mkdir()
    (folder / "no_config" / "config.json").write_text("{")
    (folder / "no_weights" / "model.safetensors").unlink()
    weights = (folder / "cut_off" / "model.safetensors").read_bytes()
    (folder / "cut_off" / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    for path in (folder / "no_tokenizer").glob("token*"):
        path.unlink()


def make_outputs(bert, notes, folder):
    from embedkit.cli import run

    for name in ("done", "done.parquet"):
        assert run(["encode", str(notes), "-m", str(bert), "-o", str(folder / name), "-q"]) == 0
    (folder / "a_file").touch()
    (folder / "foreign").mkdir()
    (folder / "foreign" / "thesis.docx").touch()
    shutil.copytree(folder / "done", folder / "damaged_plan")
    (folder / "damaged_plan" / "plan.json").write_text("{")
    (folder / "damaged_plan" / "manifest.json").unlink()


def write_configs(folder):
    (folder / "key.toml").write_text('pool = "mean"\ncolour = "red"\n')
    (folder / "broken.toml").write_text("pool = mean\n")
    (folder / "value.toml").write_text('limit = "ten"\n')


@pytest.fixture(scope="module")
def places(bert, tmp_path_factory):
    """Names in the arguments below, and what they stand for."""
    root = tmp_path_factory.mktemp("errors")
    tables, models, outputs, configs = (root / name for name in ("tables", "models", "outputs", "configs"))
    for folder in (tables, models, outputs, configs):
        folder.mkdir()
    write_tables(tables)
    make_models(bert, models)
    make_outputs(bert, tables / "notes.csv", outputs)
    write_configs(configs)
    return {"tables": tables, "models": models, "outputs": outputs, "configs": configs, "bert": bert}


@pytest.fixture
def here(places, tmp_path):
    """Returns the same, with a copy of the outputs that this test alone sees."""
    return {**places, "outputs": shutil.copytree(places["outputs"], tmp_path / "outputs")}


def everything_in(folder):
    return {path: path.read_bytes() if path.is_file() else None for path in sorted(Path(folder).rglob("*"))}


NOTES = "$tables/notes.csv"
NEW = "-o $outputs/new"


def option(arguments, code, error, hint):
    """Returns a case about an option: a good table, a good model, a new output."""
    return pytest.param(f"encode {NOTES} -m $bert {NEW} {arguments}", code, error, hint, id=arguments)


def table(arguments, error, hint):
    """Returns a case about the input."""
    return pytest.param(f"encode $tables/{arguments} -m $bert {NEW}", INPUT, error, hint, id=arguments)


def model(arguments, error, hint):
    """Returns a case about the model."""
    return pytest.param(f"encode {NOTES} {NEW} -m {arguments}", MODEL, error, hint, id=arguments)


def output(arguments, error, hint):
    """Returns a case about the output."""
    return pytest.param(f"encode {NOTES} -m $bert -o $outputs/{arguments}", OUTPUT, error, hint, id=arguments)


WAYS = "--on-exists resume|--on-exists overwrite|-o"

#: Arguments, exit code, and words that the error and the hint must have, separated by |.
CASES = [
    # The command line
    pytest.param("encod", USAGE, "encod", "--help", id="unknown command"),
    pytest.param("encode", USAGE, "INPUT", "--help", id="no input"),
    option("--poool mean", USAGE, "--poool", "--help"),
    option("--limit ten", USAGE, "--limit|integer", "--help"),
    option("--pool meen", USAGE, "|".join(["meen", *POOLING_NAMES, *WHOLE_NAMES]), "--pool mean"),
    option("--pool bm25", USAGE, "|".join(["bm25", *POOLING_NAMES, *WHOLE_NAMES]), "one of these"),
    option("--pool cls,cls", USAGE, "--pool|cls twice", "once"),
    option("--pool auto,cls", USAGE, "auto|part of a list", "--pool auto"),
    option("--pool idf:x.safetensors", MODEL, "cannot read x.safetensors", "embedkit fit"),
    option("--pool mean --with-head", USAGE, "--with-head", "embedkit fit --label"),
    option("--pool none --normalize", USAGE, "--normalize|--pool none", "leave"),
    option("--pool none --output-format npy", USAGE, "npy|--pool none", "parquet|arrow|jsonl"),
    option("--pool pooler --layers 1", USAGE, "pooler|last layer", "--layers"),
    option("--layers 4", USAGE, "layer 4|0 (embeddings) to 3 (last)", "0 to 3"),
    option("--layers -1,-5", USAGE, "layer -5|0 (embeddings) to 3 (last)", "-4 to -1"),
    option("--layers 3:3", USAGE, "3:3|no layer|0 (embeddings) to 3 (last)", "a to b-1"),
    option("--layers last", USAGE, "--layers|last", "-1|-4:|all"),
    option("--layers 3,-1", USAGE, "--layers|3 twice", "once"),
    option("--layer-agg median", USAGE, "--layer-agg|median", ", ".join(LAYER_AGGREGATIONS)),
    option("--dtype float", USAGE, "--dtype|float", "auto, fp32, bf16, fp16, int8"),
    option("--stride 4", USAGE, "--stride", "--on-long chunk"),
    option("--on-long chunk --stride 62", USAGE, "--stride 62|62 besides special", "below 62"),
    option("--on-long chunk --chunk-pool sum", USAGE, "--chunk-pool|sum", "mean, max, first"),
    option("--on-long chunk --pool none", USAGE, "--pool none", "--level token"),
    option("--level sentence", USAGE, "--level|sentence", "text, chunk, word, token"),
    option("--level word --pool mean", USAGE, "--pool|word", "--subtoken-pooling"),
    option("--subtoken-pooling first", USAGE, "--subtoken-pooling", "--level word"),
    option("--level word --subtoken-pooling sum", USAGE, "--subtoken-pooling|sum", "first, last, max"),
    option("--spans-column id --pool cls", USAGE, "--pool cls|spans", "mean, max"),
    option("--spans-column id --level word", USAGE, "spans|word", "--level"),
    option("--order-by id", USAGE, "--order-by", "--group-by"),
    option("--group-by id --group-pool last", USAGE, "--order-by", "both"),
    option("--group-by id --level token", USAGE, "--group-by", "--level"),
    option("--on-long cut", USAGE, "--on-long|cut", "truncate, chunk, error"),
    option("--device tpu", USAGE, "--device|tpu", "cpu"),
    option("--device cuda:99", USAGE, "cuda:99", "cpu"),
    option("--precision float64", USAGE, "--precision|float64", "float32, float16, int8, binary"),
    option("--format xls", USAGE, "--format|xls", "csv|parquet"),
    option("--output-format csv", USAGE, "--output-format|csv", "parquet, npy, jsonl, arrow"),
    option("--on-exists ask", USAGE, "--on-exists|ask", "error, resume, overwrite"),
    option("--on-bad-row drop", USAGE, "--on-bad-row|drop", "fail, null, skip"),
    option("--lowercase maybe", USAGE, "--lowercase|maybe", "auto, yes, no"),
    option("--progress dots", USAGE, "--progress|dots", "auto, bar, json, none"),
    option("--max-length many", USAGE, "--max-length|many", "auto"),
    option("--max-length 65", USAGE, "--max-length 65|64 positions", "at most 64"),
    option("--max-length 2", USAGE, "--max-length 2|2 special tokens", "3"),
    *(
        option(f"{name} 0", USAGE, f"{name}|0", "from 1")
        for name in ("--max-length", "--shard-rows", "--batch-tokens", "--batch-size", "--truncate-dim")
    ),
    option("--limit -1", USAGE, "--limit|-1", "from 0"),
    option("--prompt a --prompt-name b", USAGE, "--prompt|--prompt-name", "one of the two"),
    option("--prompt-name query", USAGE, "query|none", "--prompt"),
    option("--trust-remote-code", USAGE, "--trust-remote-code|commit", "--revision"),
    option("--template {}", USAGE, "--template", "{name}"),
    option("--template text", USAGE, "--template|no column", "{name}"),
    option("--keep id", USAGE, "--keep id", "--keep"),
    option("--config $configs/key.toml", USAGE, "key.toml|colour", "pool|text-column"),
    option("--config $configs/broken.toml", USAGE, "broken.toml|line 1", "fix"),
    option("--config $configs/value.toml", USAGE, "--limit|integer", "--help"),
    option("--config $configs/none.toml", USAGE, "none.toml|No such file", "path"),
    pytest.param(
        f"encode {NOTES} -m $bert -o $outputs/x.parquet --output-format npy",
        USAGE,
        "x.parquet|--output-format is npy",
        "leave out --output-format",
        id="-o against --output-format",
    ),
    pytest.param("encode - --format jsonl", USAGE, "'-'", "-o", id="stdin without -o"),
    pytest.param("encode *.csv", USAGE, "'*.csv'", "-o", id="glob without -o"),
    pytest.param(f"encode nope://bucket/notes.csv {NEW}", USAGE, "nope://bucket/notes.csv", "-", id="remote"),
    pytest.param(f"encode $tables/notes.dat {NEW}", USAGE, "notes.dat|.csv|.parquet", "--format", id="no suffix"),
    # The input
    table("none.csv", "none.csv|No such file", "name"),
    table("none*.csv", "none*.csv|no file", "name"),
    table("empty.csv", "empty.csv|empty", "id,text"),
    table("no_text.csv", "no_text.csv|text, note, sentence|columns: id, label, free", "--text-column"),
    table("two_texts.csv", "two_texts.csv|2 columns|text", "rename"),
    table("notes.csv --text-column body", "body|columns: id, label, text", "columns"),
    table("shouting.csv --text-column text", "text|columns: id, label, TEXT", "TEXT?"),
    table("notes.csv --id-column key", "key|columns: id, label, text", "columns"),
    table("notes.csv --keep ward", "ward|columns: id, label, text", "columns"),
    table("notes.csv --template {ward}", "ward|columns: id, label, text", "columns"),
    table("numbers.parquet", "numbers.parquet|text|int64", "--text-column"),
    table("notes.parquet", "notes.parquet|parquet", ""),
    table("notes.csv.gz", "notes.csv.gz|gz", ""),
    table("short.csv", "1 row|row 12|short.csv|short_row|byte", "--on-bad-row null|skip"),
    table(
        "broken.jsonl", "3 rows|row 12|invalid_json|row 13|not_an_object|row 14|text_not_string", "--on-bad-row"
    ),
    table("quote.csv", "quote.csv|row 12|never closed", "double the quote"),
    table("behind_quote.csv", "behind_quote.csv|row 12|closing quote", "double the quote"),
    table("latin1.csv", "latin1.csv|row 12|not_utf8", "iconv|--on-bad-row"),
    table("array.jsonl", "array.jsonl|array", "jq"),
    table("notes.csv --on-long error --max-length 5", "row 0|--on-long error|5", "truncate"),
    # The model
    model("nosuchmodel", "nosuchmodel|folder|alias|hub id", "embedkit doctor"),
    model("bio_clinicalbrt", "bio_clinicalbrt", "Bio_ClinicalBERT"),
    model("nobody/nothing --offline", "nobody/nothing|--offline", "folder|--model"),
    model("minilm --offline --revision v9", "minilm|--offline", "pip install|folder"),
    model("$models/no_files", "no_files|config.json", "folder"),
    model("$models/no_config", "config.json|no_config|JSON", "config.json"),
    model("$models/no_type", "no_type|model_type", "config.json"),
    model("$models/no_weights", "no_weights|no weights", "model.safetensors"),
    model("$models/no_tokenizer", "tokenizer|no_tokenizer", "tokenizer.json"),
    model("$models/no_layer", "no_layer|lacks 1|encoder.layer.1.attention.self.query.weight", "random"),
    model("$models/other_type", "other_type|bort9", "model type"),
    model("$models/other_width", "other_width|shapes", "config.json"),
    model("$models/cut_off", "cut_off", "whole"),
    model("$models/no_pooler --pool pooler", "--pool pooler|no_pooler|no weights", "--pool cls|--pool mean"),
    model("$models/distilbert --pool mean,pooler", "--pool pooler|distilbert", "--pool cls|--pool mean"),
    model("$models/gpt2 --pool cls", "--pool cls|gpt2", "--pool lasttoken"),
    # The output
    output("done", "done|another run", WAYS),
    output("done.parquet", "done.parquet|exists", WAYS),
    output("a_file", "a_file|not a folder", "-o"),
    output("foreign", "foreign|not embedkit's", "-o"),
    output("foreign --on-exists overwrite", "foreign|not embedkit's", "-o"),
    output("damaged_plan --on-exists resume", "plan.json is damaged|nothing was changed", "overwrite"),
    output("no_folder/out.parquet", "no_folder", "-o"),
    output("a_file/out", "a_file", "-o"),
    *(
        pytest.param(
            f"{words} {LONG}{suffix}", OUTPUT, "File name too long", "shorter name", id=f"{words} LONG{suffix}"
        )
        for words, suffix in [
            ("encode $tables/notes.csv -m $bert -o", ""),
            ("encode $tables/notes.csv -m $bert -o", ".parquet"),
            ("encode $tables/notes.csv -m $bert --group-by label -o", ".parquet"),
            ("fit $tables/notes.csv -m $bert --pooler idf -o", ".safetensors"),
            ("sweep $tables/notes.csv -m $bert --label label -o", ""),
            ("verify", ".npy"),
            ("inspect", ""),
        ]
    ),
    pytest.param(f"encode {LONG}.csv {NEW}", INPUT, "File name too long", "name", id="input LONG"),
    pytest.param("inspect $outputs/none", OUTPUT, "none", "", id="inspect nothing"),
    pytest.param(
        "inspect $outputs/foreign", OUTPUT, "foreign|manifest.json", "embedkit encode", id="inspect other"
    ),
    pytest.param("inspect $tables/notes.parquet", OUTPUT, "notes.parquet", "", id="inspect a table"),
]


@pytest.mark.parametrize(("arguments", "code", "error", "hint"), CASES)
def test_a_failure_prints_one_error_line_and_one_hint_line(embedkit_cli, here, arguments, code, error, hint):
    before = everything_in(here["outputs"])
    ran = embedkit_cli(*(Template(argument).substitute(here) for argument in arguments.split()))
    assert ran.code == code, ran.err
    assert ran.out == ""
    assert [line.split(" ")[0] for line in ran.told] == ["error:", "hint:"], ran.err
    for line, words in zip(ran.told, (error, hint), strict=True):
        assert [word for word in words.split("|") if word not in line] == [], line
        assert len(line) > len("error: .")
    assert MARK not in ran.err
    assert everything_in(here["outputs"]) == before


def test_an_internal_error_shows_its_position_and_no_content(encode, places, monkeypatch, tmp_path):
    def fail(*_, **__):
        raise ValueError(f"cannot pool {MARK}")

    monkeypatch.setattr("embedkit.engines.shard_loop.finish_shard", fail)
    ran = encode(places["tables"] / "notes.csv", "-o", tmp_path / "out")
    assert ran.code == 1
    error, hint = ran.told
    assert error.startswith("error: internal error of embedkit: ValueError at test_errors.py, line ")
    assert hint.startswith("hint: please report")
    assert MARK not in ran.err


@pytest.mark.parametrize(
    ("fault", "code", "told"),
    [
        (MemoryError(MARK), MODEL, "not enough memory"),
        (OSError(errno.EMFILE, MARK), OUTPUT, "too many open files"),
        (OSError(errno.EAGAIN, MARK), OUTPUT, "cannot start another process or thread"),
        (RuntimeError("can't start new thread"), OUTPUT, "cannot start another process or thread"),
        (OSError(errno.ENOSPC, MARK), OUTPUT, "the disk is full"),
    ],
)
def test_limits_of_the_machine_are_not_internal_errors(embedkit_cli, monkeypatch, fault, code, told):
    def fail(*_, **__):
        raise fault

    monkeypatch.setattr("embedkit.verify.verify_output", fail)
    ran = embedkit_cli("verify", "out")
    assert ran.code == code
    assert told in ran.told[0]
    assert ran.told[1].startswith("hint: ")
    assert MARK not in ran.err


def test_a_missing_working_folder_is_named_in_the_error(embedkit_cli, places, monkeypatch, tmp_path):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    ran = embedkit_cli("encode", "notes.csv")
    assert ran.code == USAGE
    assert "the working folder no longer exists" in ran.told[0]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device that is always full")
def test_a_full_disk_behind_stdout_is_an_output_error(encode, places, monkeypatch):
    with Path("/dev/full").open("wb", buffering=0) as full, monkeypatch.context() as patched:
        patched.setattr(sys, "stdout", io.TextIOWrapper(full, write_through=True))
        ran = encode(places["tables"] / "notes.csv", "-o", "-", "-q")
    assert ran.code == OUTPUT
    error, hint = ran.told
    assert error.startswith("error: ")
    assert "No space left on device" in error
    assert hint.startswith("hint: ")
