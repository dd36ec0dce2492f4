"""How a command line and a config file are read: nothing is dropped in silence, and what was meant is told."""

from __future__ import annotations

import json
import shlex

import pytest

from embedkit.cli.output_names import default_output
from embedkit.errors import Stopped
from tests.conftest import NOTES

USAGE, OUTPUT = 2, 5


@pytest.fixture
def config_of(embedkit_cli, monkeypatch):
    """Returns a function from arguments of `embedkit encode` to the RunConfig that they make; nothing is run."""
    made = []

    def run(config, *_):
        made.append(config)
        raise Stopped("far enough", hint="none")

    def config_of(*arguments):
        made.clear()
        ran = embedkit_cli("encode", *arguments)
        assert ran.code == Stopped.exit_code, ran.err
        return made[0]

    monkeypatch.setattr("embedkit.engines.run.run", run)
    return config_of


def refused(ran, code=USAGE):
    """Returns the error and the hint of a command that was refused."""
    assert (ran.code, ran.out) == (code, ""), ran.err
    assert [line.partition(" ")[0] for line in ran.told] == ["error:", "hint:"], ran.err
    return ran.told


# Options that are given twice --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "once"),
    [
        (["--pool", "cls", "--pool=mean", "--pool", "max"], ["--pool", "cls,mean,max"]),
        (["--layers", "-1", "--layers=-2"], ["--layers", "-1,-2"]),
        (["--device", "cpu", "--device", "cpu"], ["--device", "cpu,cpu"]),
        (["-q", "-q", "-qv", "--offline", "--offline"], ["-q", "-v", "--offline"]),
        (["--normalize", "--normalize"], ["--normalize"]),
        (["--keep", "a", "--keep", "b", "--text-column", "t", "--text-column", "u"], None),
    ],
)
def test_a_repeated_list_option_is_joined_and_a_flag_may_be_repeated(config_of, arguments, once):
    config = config_of("notes.csv", *arguments)
    if once is None:
        assert (config.input.keep, config.input.text_columns) == (("a", "b"), ("t", "u"))
    else:
        assert config == config_of("notes.csv", *once)


@pytest.mark.parametrize(
    ("command", "named", "values"),
    [
        ("encode a.csv -m one -m two", "-m", "'one' and 'two'"),
        ("encode a.csv -m one --model=two", "--model", "'one' and 'two'"),
        ("encode a.csv -mone --model two", "--model", "'one' and 'two'"),
        ("encode a.csv -o x -o y", "-o", "'x' and 'y'"),
        ("encode a.csv --dtype fp32 --dtype fp32", "--dtype", "'fp32' and 'fp32'"),
        ("encode a.csv -qm one -m two", "-m", "'one' and 'two'"),
        ("encode a.csv --id-column a --id-column b", "--id-column", "'a' and 'b'"),
        ("plan a.csv --limit 1 --limit 2", "--limit", "'1' and '2'"),
        ("sweep a.csv --label a --label b -o out", "--label", "'a' and 'b'"),
        ("fit a.csv --pooler idf --pooler pca:2 -o p.safetensors", "--pooler", "'idf' and 'pca:2'"),
        ("report out --color a --color b", "--color", "'a' and 'b'"),
        ("verify out --seed 1 --seed 2", "--seed", "'1' and '2'"),
        ("encode a.csv --config a.toml --config b.toml", "--config", "'a.toml' and 'b.toml'"),
    ],
)
def test_another_repeated_option_is_rejected_with_its_values(embedkit_cli, command, named, values):
    error, _ = refused(embedkit_cli(*command.split()))
    assert error == f"error: {named} is given 2 times: {values}"


@pytest.mark.parametrize(
    ("arguments", "told", "way_out"),
    [
        (["--normalize", "--no-normalize"], "--normalize and --no-normalize", "only one of them"),
        (["-model", "bert"], "'-model' is not an option", "--model"),
        (["-pool=cls"], "'-pool=cls' is not an option", "--pool"),
        (["—pool", "cls"], "'—pool' is not an option", "--pool"),
        (["-o=out"], "'-o=out'", "-o out"),
        (["-o", "--offline"], "-o is followed by the option --offline", "--output=--offline"),
        (["--pool", "-q"], "--pool is followed by the option -q", "--pool=-q"),
        (["-o", ""], "-o is empty", "shell variable"),
        ([""], "INPUT is empty", "shell variable"),
        (["--limit", "ten"], "--limit cannot be 'ten'", "encode --help"),
        (["--pool"], "'--pool' requires an argument", "encode --help"),
    ],
)
def test_an_ambiguous_form_is_rejected(embedkit_cli, arguments, told, way_out):
    error, hint = refused(embedkit_cli("encode", "a.csv", *arguments))
    assert told in error
    assert way_out in hint


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("encode a.csv -o - --on-exists resume", "stdout cannot be resumed"),
        ("encode a.csv --template {a} --text-column b", "--template and --text-column"),
        ("encode a.csv -m $bert --revision main", "--revision is for models on the hub"),
        ("verify out --seed 3", "--seed has no effect without --resample"),
        ("verify out --device cuda", "--device has no effect without --resample"),
        ("fit a.csv --pooler pca:2 --epochs 3 -o p.safetensors", "--epochs has no effect with --pooler pca"),
        ("fit a.csv --pooler idf --class-weight none -o p.safetensors", "--class-weight has no effect with"),
        (
            "fit a.csv --pooler attention --label x --layer-pool cls -o p.safetensors",
            "--layer-pool has no effect with",
        ),
    ],
)
def test_an_option_without_effect_is_rejected(embedkit_cli, bert, command, told):
    assert told in refused(embedkit_cli(*(word.replace("$bert", str(bert)) for word in command.split())))[0]


# What was meant ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "meant"),
    [
        ("encode a.csv --resume", "--on-exists resume"),
        ("encode a.csv --sep ;", "--delimiter?"),
        ("encode a.csv --progess bar", "--progress? `"),
        ("encode a.csv --max-seq-lenght 4", "--max-length?"),
        ("version", "`embedkit --version`"),
        ("encode a.csv -o a.arrow --output-format arow", "--output-format arrow?"),
        ("encode a.csv --overwrite", "--on-exists overwrite"),
        ("encode a.csv --fp16", "--dtype fp16"),
        ("encode a.csv --gpu", "--device cuda"),
        ("encode a.csv --pooling mean", "--pool"),
        ("encode a.csv --batchsize 4", "--batch-size"),
        ("encode a.csv --max_length 4", "--max-length"),
        ("encode a.csv --max-seq-length 4", "--max-length"),
        ("encode a.csv --layer 3", "--layers"),
        ("encode a.csv --num-workers 3", "--workers"),
        ("encode a.csv --output-dir x", "--output"),
        ("encode a.csv --column note", "--text-column"),
        ("encode a.csv --normalise", "--normalize"),
        ("encode --input a.csv", "embedkit encode INPUT"),
        ("--model bert encode a.csv", "embedkit encode INPUT --model"),
        ("sweep a.csv --lable x -o out", "--label"),
        ("fit a.csv --pool attention -o p.safetensors", "--pooler"),
        ("fit a.csv --pooler attn -o p.safetensors", "--pooler attention?"),
        ("fit a.csv --pooler pca64 -o p.safetensors", "--pooler pca:N?"),
        ("fit a.csv --pooler attention --label x --task classif -o p.safetensors", "--task classification?"),
        ("report out --colour x", "--color"),
        ("notes.csv", "`embedkit encode notes.csv`"),
        ("embed notes.csv", "`embedkit encode`"),
        ("inspct out", "`embedkit inspect`"),
        ("encode a.csv --dtype float16", "--dtype fp16?"),
        ("encode a.csv --dtype half", "--dtype fp16?"),
        ("encode a.csv --precision fp16", "--precision float16?"),
        ("encode a.csv --layer-agg average", "--layer-agg mean?"),
        ("encode a.csv --lowercase true", "--lowercase yes?"),
        ("encode a.csv --on-exists skip", "--on-exists resume?"),
        ("encode a.csv --on-bad-row ignore", "--on-bad-row skip?"),
        ("encode a.csv --device gpu", "--device cuda?"),
        ("encode a.csv --format json", "--format jsonl?"),
        ("encode a.csv --level tokens", "--level token?"),
        ("encode a.csv --progress off", "--progress none?"),
        ("encode a.csv --output-format feather", "--output-format arrow?"),
        ("encode a.csv --on-long cut", "--on-long truncate?"),
        ("encode a.csv --group-by a --group-pool average", "--group-pool mean?"),
    ],
)
def test_a_mistyped_option_command_or_value_gets_a_suggestion(embedkit_cli, command, meant):
    _, hint = refused(embedkit_cli(*command.split()))
    assert meant in hint


@pytest.mark.parametrize("command", ["encode a.csv --seed 3", "encode a.csv --cache-dir x"])
def test_an_option_similar_to_none_gets_no_suggestion(embedkit_cli, command):
    _, hint = refused(embedkit_cli(*command.split()))
    assert hint == "hint: `embedkit encode --help` lists all options"


@pytest.mark.parametrize(
    ("command", "option", "way_out"),
    [
        ("encode a.csv --limit abc", "--limit", "an integer"),
        ("encode a.csv --limit 1e3", "--limit", "an integer"),
        ("plan a.csv --rate fast", "--rate", "a number"),
        ("plan a.csv --rate nan", "--rate", "tokens per second"),
        *(
            (f"encode a.csv --{option} {10**26}", f"--{option}", str(2**63 - 1))
            for option in ("limit", "shard-rows", "batch-tokens", "batch-size")
        ),
        (f"sweep a.csv --label x -o out --seed {2**32}", "--seed", str(2**32 - 1)),
        (f"fit a.csv --pooler pca:2 -o p.safetensors --seed {2**32}", "--seed", str(2**32 - 1)),
        ("fit a.csv --pooler pca:2 -o p.safetensors --seed -1", "--seed", "from 0"),
    ],
)
def test_the_error_of_a_bad_number_names_allowed_ones(embedkit_cli, command, option, way_out):
    error, hint = refused(embedkit_cli(*command.split()))
    assert error.startswith(f"error: {option} cannot be ")
    assert way_out in hint


@pytest.mark.parametrize(
    "command",
    [
        *(f"{command} ''" for command in ("encode", "inspect", "verify", "report")),
        *(f"encode a.csv {option}=" for option in ("--output", "--model", "--config", "--spans")),
        *("sweep a.csv --label x -o ''", "report out -o ''", "verify out --resample 1 --input ''"),
    ],
)
def test_an_empty_file_name_is_rejected_as_empty(embedkit_cli, command):
    error, hint = refused(embedkit_cli(*shlex.split(command)))
    assert error.endswith(" is empty")
    assert "a shell variable may be unset" in hint


@pytest.mark.parametrize("option", ["--id-column", "--keep", "--group-by"])
def test_an_empty_column_name_does_not_mean_the_default(encode, tmp_path, option):
    error, _ = refused(encode(NOTES, option, "", "-o", tmp_path / "out"), code=3)
    assert "there is no column (no name)" in error


def test_a_sweep_with_an_empty_group_or_to_stdout_is_rejected(embedkit_cli, bert, tmp_path):
    swept = ("sweep", NOTES, "-m", bert, "--label", "label")
    assert "(no name)" in refused(embedkit_cli(*swept, "--group", "", "-o", tmp_path / "out"), code=3)[0]
    assert "not to stdout" in refused(embedkit_cli(*swept, "-o", "-"))[0]


def test_a_missing_device_is_rejected_even_if_no_shard_is_left(encode, tmp_path):
    error, _ = refused(encode(NOTES, "--limit", 2, "--device", "cpu,cuda:99", "-o", tmp_path / "out"))
    assert error == "error: there is no device 'cuda:99' here"


def test_a_prompt_that_fills_the_window_is_rejected(encode, tmp_path):
    error, hint = refused(encode(NOTES, "--limit", 2, "--prompt", "a " * 100, "-o", tmp_path / "out"))
    assert "leaves no room for a text in 64" in error
    assert "--prompt" in hint


# What an output may be called --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "way_out"),
    [
        *((f"out.{suffix}", "out.parquet?") for suffix in ("pq", "parq", "PARQUET", "parqet")),
        *((f"out.{suffix}", "out.arrow?") for suffix in ("lance", "feather", "ipc")),
        *((f"out.{suffix}", "out.jsonl?") for suffix in ("json", "ndjson")),
        ("out.npz", "out.npy?"),
        *((f"out.{suffix}", "folder of that name") for suffix in ("db", "h5", "pt", "gguf", "csv", "faiss")),
        ("out.parquet.gz", "folder of that name"),
    ],
)
def test_the_name_of_an_unsupported_file_makes_no_folder(encode, tmp_path, name, way_out):
    error, hint = refused(encode(NOTES, "-o", tmp_path / name))
    assert f"{name}: this command does not write ." in error
    assert way_out in hint
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "way_out"),
    [
        ("hdfs://host/vectors", "write to a local path"),
        ("s3:/bucket/vectors", "-o s3://bucket/vectors"),
        ("s3://bucket", "-o s3://bucket/vectors"),
        ("gs://bucket/vectors.parquet", "-o gs://bucket/vectors.parquet/"),
        ("file:///data/vectors.npy", "-o /data/vectors.npy"),
        (".parquet", "vectors.parquet"),
        ("out/.npy", "out/vectors.npy"),
    ],
)
def test_a_uri_or_a_suffix_without_a_name_makes_no_folder(encode, tmp_path, monkeypatch, name, way_out):
    monkeypatch.chdir(tmp_path)
    assert way_out in refused(encode(NOTES, "-o", name))[1]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "way_out"),
    [
        (("--private",), "the bucket's policy"),
        (("--group-by", "id"), "write to a local path"),
        (("--keep-hashes",), "--hash-key FILE"),
    ],
)
def test_what_an_object_store_cannot_do_is_said_before_it_is_asked(encode, options, way_out):
    assert way_out in refused(encode(NOTES, "-o", "s3://bucket/out", *options))[1]


@pytest.mark.parametrize("name", ["v1.2", "run.2024", "notes.embeddings", "out.final", "out.db/", "out.parquet/"])
def test_a_name_that_ends_in_a_dot_or_a_slash_is_a_folder(encode, tmp_path, name):
    assert encode(NOTES, "--limit", 1, "-o", f"{tmp_path}/{name}").code == 0
    assert (tmp_path / name / "manifest.json").exists()


@pytest.mark.parametrize(
    "command",
    [
        "sweep a.csv --label x -o sweep.parquet",
        "sweep a.csv --label x -o s3://bucket/sweep",
        "report out -o s3://bucket/page.html",
        "report out -o page.pdf",
        "fit a.csv --pooler idf -o pooler.pt",
        "encode a.csv -o out.parquet --output-format npy",
    ],
)
def test_other_commands_reject_names_of_unsupported_files(embedkit_cli, command):
    refused(embedkit_cli(*command.split()))


@pytest.mark.parametrize(
    ("name", "output"),
    [
        ("2024.01.15.notes.jsonl", "2024.01.15.notes.embeddings"),
        ("notes.CSV.gz", "notes.embeddings"),
        ("notes.v2", "notes.v2.embeddings"),
        ("data/admissions/", "admissions.embeddings"),
        (".csv", ".csv.embeddings"),
        ("a.csv.csv", "a.csv.embeddings"),
        ("wards.ddb", "wards.embeddings"),
    ],
)
def test_the_default_output_is_the_input_name_without_table_suffixes(name, output):
    assert default_output([name]) == output


@pytest.mark.parametrize("output", ["out", "out.parquet", "out.npy", "out.jsonl", "groups"])
@pytest.mark.parametrize("on_exists", ["error", "resume"])
def test_no_hint_suggests_overwriting_the_output_of_another_input(encode, tmp_path, output, on_exists):
    options = ("--group-by", "patient") if output == "groups" else ()
    for folder in ("data", "old"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "notes.csv").write_text(f"id,patient,text\n1,a,pain in {folder}\n")
    arguments = ("-o", tmp_path / output, *options)
    assert encode(tmp_path / "data/notes.csv", *arguments).code == 0
    again = encode(tmp_path / "data/notes.csv", *arguments)
    assert "--on-exists overwrite" in refused(again, OUTPUT)[1]
    error, hint = refused(encode(tmp_path / "old/notes.csv", *arguments, "--on-exists", on_exists), OUTPUT)
    if output == "out.jsonl":  # it does not say what it was made from
        assert "if the existing output is of this input" in hint
    else:
        assert "overwrite" not in hint
        assert "it was made from another input" in error
    assert "another place with -o" in hint


# Config files ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("toml", "flags"),
    [
        ('pool = ["cls", "mean"]', ["--pool", "cls,mean"]),
        ("layers = [-1, -2]", ["--layers=-1,-2"]),
        ("layers = -1", ["--layers=-1"]),
        ('layers = ["-4:"]', ["--layers=-4:"]),
        ('keep = ["a", "b"]', ["--keep", "a", "--keep", "b"]),
        ('keep = "a"', ["--keep", "a"]),
        ('text_column = ["a", "b"]', ["--text-column", "a", "--text-column", "b"]),
        ('group-by = ["note", "patient"]', ["--group-by", "note", "--group-by", "patient"]),
        ("max-length = 64\nlimit = 3", ["--max-length", "64", "--limit", "3"]),
        ("lowercase = true", ["--lowercase", "yes"]),
        ("normalize = false\noffline = true", ["--no-normalize", "--offline"]),
        ('device = ["cpu", "cpu"]', ["--device", "cpu,cpu"]),
        ('\ufeffpool = "mean"', ["--pool", "mean"]),
    ],
)
def test_a_config_file_takes_lists_numbers_and_booleans_of_toml(config_of, tmp_path, toml, flags):
    (tmp_path / "run.toml").write_text(toml, encoding="utf-8")
    assert config_of("notes.csv", "--config", tmp_path / "run.toml") == config_of("notes.csv", *flags)


def test_a_config_file_may_name_the_input(config_of, tmp_path):
    (tmp_path / "run.toml").write_text('inputs = ["a.csv", "b.csv"]\noutput = "out"')
    assert config_of("--config", tmp_path / "run.toml").input.inputs == ("a.csv", "b.csv")


@pytest.mark.parametrize(
    ("toml", "told", "way_out"),
    [
        ("limit = true", "limit (--limit) to a boolean", "encode --help"),
        ("limit = 2.5", "limit (--limit) to a float", "encode --help"),
        ("limit = [3]", "limit (--limit) to a list", "encode --help"),
        ("offline = 1", "offline (--offline) to an integer", "encode --help"),
        ('offline = "yes"', "offline (--offline) to a string", "encode --help"),
        ("keep = [1]", "keep (--keep) to a list", "encode --help"),
        ('model = ["a", "b"]', "model (--model) to a list", "encode --help"),
        ("pool = true", "pool (--pool) to a boolean", "encode --help"),
        ("layers = []", "layers (--layers) to a list", "encode --help"),
        ("revision = 2024-01-01", "revision (--revision) to a date", "encode --help"),
        ('[encode]\npool = "mean"', "a section [encode]", "remove the line [encode]"),
        ('pooling = "mean"', "'pooling'", "did you mean 'pool'?"),
        ("max_len = 3", "'max_len'", "did you mean 'max-length'?"),
        ("resume = true", "'resume'", 'did you mean on-exists = "resume"?'),
        ("no-normalize = true", "'no-normalize'", "did you mean normalize = false?"),
        ('m = "minilm"', "'m'", "did you mean 'model'?"),
        ('input = "a.csv"', "'input'", "did you mean 'inputs'?"),
        ("pool = []", "pool (--pool) to a list, '[]', but a string or a list of them", "encode --help"),
        ('pool = "cls"\npool = "mean"', "duplicate key", "fix the file"),
        ('spans = ""', "--spans is empty", "a shell variable may be unset"),
        ("max-length = 3\nmax_length = 4", "max_length twice", "leave out one"),
    ],
)
def test_errors_in_a_config_file_name_key_and_type(embedkit_cli, tmp_path, toml, told, way_out):
    (tmp_path / "run.toml").write_text(toml)
    error, hint = refused(embedkit_cli("encode", "a.csv", "--config", tmp_path / "run.toml"))
    assert told in error
    assert way_out in hint


def test_a_value_that_is_not_utf8_is_rejected_and_such_file_names_are_shown(embedkit_cli, encode, tmp_path):
    error, _ = refused(embedkit_cli("encode", "a.csv", "--prompt", "caf\udce9"))
    assert "--prompt is not UTF-8" in error
    for arguments in (["-o", "caf\udce9"], ["-m", "caf\udce9"]):
        assert "is not UTF-8" in refused(embedkit_cli("encode", "a.csv", *arguments))[0]
    ran = encode(f"{tmp_path}/caf\udce9.csv", "-o", tmp_path / "out", "--progress", "json")
    assert ran.code == 3
    assert json.loads(ran.err.splitlines()[0])["message"].endswith("caf\\xe9.csv")
