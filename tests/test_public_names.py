from __future__ import annotations

import inspect
from dataclasses import fields

import pytest
import typer

import embedkit
from embedkit.cli import app
from embedkit.config import BatchConfig, InputConfig, ModelConfig, OutputConfig, PoolingConfig, TextConfig

COMMANDS = typer.main.get_command(app).commands
OPTIONS = {option.name: option for option in COMMANDS["encode"].params}

#: Options of encode that are not about the numbers of one vector.
NOT_OF_ENCODER = {
    "inputs",
    "output",
    *("output_format", "shard_rows", "on_exists", "on_bad_row"),
    *("sql", "format", "text_column", "template", "id_column", "keep", "limit"),
    *("delimiter", "quoting", "max_expansion", "max_decompressed_gb", "verify", "private"),
    *("shard_id", "num_shards", "workers", "engine", "ray_address", "workers_per_gpu", "store_option"),
    *("update", "other_versions", "keep_hashes", "hash_key"),
    # Encoder gives one vector a text; rows of units and groups are for tables.
    *("level", "subtoken_pooling", "spans", "spans_column", "group_by", "group_pool", "order_by"),
    *("progress", "quiet", "verbose", "config"),
    *("precision", "with_head"),  # Encoder gives float32 arrays; fewer bits and scores are for files
}


def test_the_package_has_these_names_and_no_others():
    assert sorted(embedkit.__all__) == ["EmbedkitError", "Encoder", "__version__", "read", "read_head"]
    assert dir(embedkit) == embedkit.__all__
    assert all(getattr(embedkit, name) for name in embedkit.__all__)
    with pytest.raises(AttributeError, match="encode_all"):
        _ = embedkit.encode_all


def test_the_commands_are_these():
    studies, outputs = {"sweep", "fit"}, {"inspect", "verify", "diff", "report"}
    assert set(COMMANDS) == {"encode", "plan", *studies, *outputs, "doctor", "completion"}


def test_encoder_arguments_have_the_names_and_defaults_of_encode_options():
    arguments = inspect.signature(embedkit.Encoder).parameters
    assert set(arguments) == set(OPTIONS) - NOT_OF_ENCODER
    configs = {
        field.name for config in (ModelConfig, TextConfig, PoolingConfig, BatchConfig) for field in fields(config)
    }
    assert set(arguments) == configs - {"precision", "with_head"}
    for name, argument in arguments.items():
        default = OPTIONS[name].default
        # A model that is not given may be that of a fitted file: the command line knows whether it is given.
        is_decided_later = name == "model" or (default == "auto" and name in {"max_length", "batch_tokens"})
        assert argument.default == (None if is_decided_later else default)


def test_every_field_of_the_config_is_an_option():
    # The secrets are those in a URL.
    spelled = {"text_columns": "text_column", "secrets": "inputs", "uri_secrets": "inputs"}
    names = {
        spelled.get(field.name, field.name) for config in (InputConfig, OutputConfig) for field in fields(config)
    }
    assert names <= set(OPTIONS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_has_a_help_text(command):
    assert COMMANDS[command].help
    assert [param.name for param in COMMANDS[command].params if not getattr(param, "help", None)] == []
