"""How a command line is read: no option is dropped in silence, and a mistyped one is told what it was meant to be.

Knows Typer's options and arguments, not what embedkit does with them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from embedkit.errors import UsageError
from embedkit.storage.filesystem import seems_there
from embedkit.suggest import LIKENESS, closest_names

#: What Typer raises for a wrong command line, whichever click it carries.
WRONG_USAGE: type[Exception] = typer.BadParameter.__mro__[2]
#: Options whose value is a comma list: given twice, they are one list.
JOINED = ("pool", "layers", "device")
#: Options and arguments whose values name files that embedkit opens itself: any bytes may be in such a name.
_PATHS = frozenset({"inputs", "input", "config", "spans"})
#: Those that name what pyarrow, safetensors and tokenizers open: they take UTF-8 alone.
_OF_LIBRARIES = frozenset({"out", "outs", "output", "model"})
#: Dashes that word processors and web pages make of `--`.
_LONG_DASHES = "\u2010\u2011\u2012\u2013\u2014\u2015\u2212"
_GIVEN = "embedkit.given"

#: What other tools call an option: its name there → what it is here. Where there are several, the first that the
#: command has.
_MEANT: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("resume", "continue", "restart"), ("--on-exists resume",)),
    **dict.fromkeys(("overwrite", "force", "replace"), ("--on-exists overwrite", "--overwrite")),
    "on-exists": ("--overwrite",),
    **dict.fromkeys(("fp16", "half", "float16"), ("--dtype fp16",)),
    **dict.fromkeys(("bf16", "bfloat16"), ("--dtype bf16",)),
    **dict.fromkeys(("fp32", "float32"), ("--dtype fp32",)),
    **dict.fromkeys(("int8", "quantize", "quantized", "load-in-8bit"), ("--dtype int8",)),
    **dict.fromkeys(("torch-dtype", "compute-dtype", "data-type"), ("--dtype",)),
    **dict.fromkeys(("gpu", "cuda", "use-gpu", "use-cuda", "gpus"), ("--device cuda",)),
    **dict.fromkeys(("cpu", "no-gpu", "no-cuda", "use-cpu"), ("--device cpu",)),
    "mps": ("--device mps",),
    **dict.fromkeys(
        ("pooling", "pooling-mode", "pooling-strategy", "pooling-method", "pool-type"), ("--pool", "--pooler")
    ),
    "pool": ("--pooler",),
    "pooler": ("--pool",),
    **{name: (f"--pool {name}",) for name in ("cls", "mean", "max", "min")},
    **dict.fromkeys(
        ("output-dir", "output-file", "output-path", "out", "out-dir", "outdir", "save", "save-dir", "dest"),
        ("--output",),
    ),
    **dict.fromkeys(
        ("max-seq-length", "max-seq-len", "max-len", "max-tokens", "seq-length", "context-length"),
        ("--max-length",),
    ),
    **dict.fromkeys(("truncate", "truncation"), ("--on-long truncate",)),
    **dict.fromkeys(("chunk", "chunking", "chunks", "sliding-window", "windows"), ("--on-long chunk",)),
    **dict.fromkeys(("overlap", "chunk-overlap", "doc-stride"), ("--stride",)),
    **dict.fromkeys(("layer", "hidden-layer", "hidden-layers", "layer-index"), ("--layers",)),
    **dict.fromkeys(("aggregation", "agg", "layer-aggregation", "layer-pooling"), ("--layer-agg",)),
    **dict.fromkeys(
        ("num-workers", "n-workers", "jobs", "n-jobs", "num-proc", "nproc", "processes"), ("--workers",)
    ),
    **dict.fromkeys(("column", "text", "text-field", "text-col", "field", "text-columns"), ("--text-column",)),
    **dict.fromkeys(("id", "id-col", "id-field", "ids", "key"), ("--id-column",)),
    **dict.fromkeys(("keep-column", "keep-columns", "keep-col", "passthrough", "include"), ("--keep",)),
    **dict.fromkeys(("bs", "batch", "batchsize", "per-device-batch-size"), ("--batch-size",)),
    **dict.fromkeys(("normalise", "norm", "l2", "l2-normalize", "normalize-embeddings"), ("--normalize",)),
    "no-normalise": ("--no-normalize",),
    **dict.fromkeys(("dim", "dims", "dimension", "dimensions", "embedding-dim"), ("--truncate-dim",)),
    **dict.fromkeys(("model-name", "model-id", "model-name-or-path", "model-path", "checkpoint"), ("--model",)),
    **dict.fromkeys(("commit", "tag", "branch"), ("--revision",)),
    **dict.fromkeys(("local-files-only", "local"), ("--offline",)),
    **dict.fromkeys(("trust", "remote-code"), ("--trust-remote-code",)),
    **dict.fromkeys(("instruction", "prefix", "query-prefix"), ("--prompt",)),
    **dict.fromkeys(("rank", "shard", "shard-index"), ("--shard-id",)),
    **dict.fromkeys(("world-size", "shards", "n-shards"), ("--num-shards",)),
    **dict.fromkeys(("lower", "lower-case", "do-lower-case", "uncased"), ("--lowercase yes",)),
    "cased": ("--lowercase no",),
    **dict.fromkeys(("input-format", "file-format", "file-type"), ("--format",)),
    **dict.fromkeys(("sep", "separator", "delim", "field-separator"), ("--delimiter",)),
    **dict.fromkeys(("quote", "quotes", "quote-char", "quotechar"), ("--quoting",)),
    **dict.fromkeys(("n-rows", "nrows", "max-rows", "head", "max-samples", "num-rows"), ("--limit",)),
    **dict.fromkeys(("token-embeddings", "tokens"), ("--level token",)),
    **dict.fromkeys(("skip-bad-rows", "skip-errors", "ignore-errors"), ("--on-bad-row skip",)),
    **dict.fromkeys(("labels", "target", "label-column", "y"), ("--label",)),
    **dict.fromkeys(("groups", "group-column", "group"), ("--group", "--group-by")),
    "silent": ("--quiet",),
    "no-progress": ("--progress none",),
    "json": ("--json", "--progress json"),
    **dict.fromkeys(("colour", "color-by"), ("--color",)),
    **dict.fromkeys(("conf", "configuration", "config-file"), ("--config",)),
    "learning-rate": ("--lr",),
    **dict.fromkeys(("n-epochs", "num-epochs", "max-epochs"), ("--epochs",)),
    "early-stopping": ("--patience",),
    **dict.fromkeys(("n-folds", "cv", "k-folds", "splits"), ("--folds",)),
    **dict.fromkeys(("random-state", "random-seed"), ("--seed",)),
    **dict.fromkeys(("scoring", "score"), ("--metric",)),
}
#: Options that other tools have for what stands here without one.
_INPUT_OPTIONS = frozenset(
    {"input", "inputs", "input-file", "input-path", "data", "file", "files", "in", "i", "f", "csv", "dataset"}
)
_COMMANDS = {
    **dict.fromkeys(("embed", "embeddings", "run", "vectorize", "extract", "infer"), "encode"),
    **dict.fromkeys(("train", "train-pooler"), "fit"),
    **dict.fromkeys(("check", "validate", "test"), "verify"),
    **dict.fromkeys(("show", "info", "stat", "stats", "describe"), "inspect"),
    **dict.fromkeys(("estimate", "dry-run", "forecast"), "plan"),
    **dict.fromkeys(("probe", "compare", "search"), "sweep"),
    **dict.fromkeys(("html", "page", "visualize"), "report"),
    **dict.fromkeys(("diagnose", "env", "devices", "models"), "doctor"),
}


class Group(TyperGroup):
    """`embedkit`, and the commands under it."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find the command that the first argument names.

        Raises:
            UsageError: there is none of this name.
        """
        name = args[0]
        if name in self.commands:
            return super().resolve_command(ctx, args)
        near = closest_names(name, self.commands, synonyms=_COMMANDS)
        lists = "`embedkit --help` lists the commands"
        if _looks_like_input(name):
            raise UsageError(
                f"'{name}' is no command of embedkit", hint=f"did you mean `embedkit encode {name}`? {lists}"
            )
        meant = "`embedkit --version`" if name == "version" else " or ".join(f"`embedkit {it}`" for it in near)
        raise UsageError(
            f"'{name}' is no command of embedkit", hint=f"did you mean {meant}? {lists}" if near else lists
        )


class Command(TyperCommand):
    """One command: an option that is given twice is joined where that means something, else refused."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the command line.

        Raises:
            UsageError: an option is given twice, or has a form that would be read as something else.
        """
        given = _given(self.params, args)
        ctx.meta[_GIVEN] = {one.parameter.name: one.value for one in given}
        for one in given:
            _check_not_empty(one.parameter, one.value)
        joined = _joined(given)
        if joined:
            again = {place for one in given if one.parameter.name in joined for place in one.places}
            args = [argument for place, argument in enumerate(args) if place not in again]
            args = [*(f"{option}={value}" for option, value in joined.values()), *args]
        try:
            rest = super().parse_args(ctx, args)
        except WRONG_USAGE as wrong:
            vars(wrong).update(ctx=vars(wrong).get("ctx") or ctx)
            raise
        _check_texts(self.params, ctx.params)
        return rest


@dataclass(frozen=True, slots=True)
class _Given:
    """One option on the command line.

    Attributes:
        parameter: it.
        option: as it was typed.
        value: what follows; None for a flag.
        places: of the arguments that it takes.
    """

    parameter: Any
    option: str
    value: str | None
    places: tuple[int, ...]


def _given(parameters: list[Any], args: list[str]) -> list[_Given]:
    """Every option on a command line, up to the first that is unknown: that is told when it is parsed."""
    options = {name: one for one in parameters for name in (*one.opts, *one.secondary_opts) if name[:1] == "-"}
    found: list[_Given] = []
    place = 0
    while place < len(args) and args[place] != "--":
        argument = args[place]
        _check_dashes(argument, options)
        for option, tied, is_known in _split(argument, options):
            if not is_known:
                return found
            parameter = options[option]
            if parameter.is_flag or tied is not None:
                _check_tied(argument, option, tied, parameter)
                found.append(_Given(parameter, option, tied, (place,)))
            elif place + 1 == len(args):
                return found
            else:
                _check_value(option, args[place + 1], parameter, options)
                found.append(_Given(parameter, option, args[place + 1], (place, place + 1)))
                place += 1
        place += 1
    return found


def _check_tied(argument: str, option: str, tied: str | None, parameter: Any) -> None:
    """Refuse `-o=out`, which is a file called `=out` by the rules."""
    if len(option) == len("-o") and tied is not None and tied.startswith("="):
        raise UsageError(
            f"'{argument}': an option of one letter takes its value without =",
            hint=f"write {option} {tied[1:]}, or {parameter.opts[-1]}{tied}",
        )


def _check_value(option: str, value: str, parameter: Any, options: Mapping[str, Any]) -> None:
    """Refuse `-o --quiet`, which is a folder called `--quiet` by the rules."""
    if value in options:
        raise UsageError(
            f"{option} is followed by the option {value}, not by a value",
            hint=f"give {option} its value, or write {parameter.opts[-1]}={value} if that is the value",
        )


def _split(argument: str, options: Mapping[str, Any]) -> Iterator[tuple[str, str | None, bool]]:
    """The options in one argument (`--pool=cls`, `-qv`, `-mX`), what is tied to them, whether they are known."""
    if argument.startswith("--"):
        name, tied, value = argument.partition("=")
        yield name, value if tied else None, name in options
    elif argument.startswith("-") and len(argument) > 1:
        for place, letter in enumerate(argument[1:], 2):
            option = options.get(f"-{letter}")
            if option is None or not option.is_flag:
                yield f"-{letter}", argument[place:] or None, option is not None
                return
            yield f"-{letter}", None, True


def _joined(given: list[_Given]) -> dict[str, tuple[str, str]]:
    """The options that are given several times and make one list: by name, how it was typed and the list.

    Raises:
        UsageError: an option is given twice that has one value.
    """
    joined: dict[str, tuple[str, str]] = {}
    for name in dict.fromkeys(one.parameter.name for one in given):
        those = [one for one in given if one.parameter.name == name]
        parameter = those[0].parameter
        if parameter.multiple or len(those) == 1:
            continue
        if parameter.is_flag:
            if {one.option in parameter.secondary_opts for one in those} == {True, False}:
                raise UsageError(
                    f"{those[0].option} and {those[-1].option} exclude each other", hint="give one of the two"
                )
            continue
        if name not in JOINED:
            values = " and ".join(f"'{one.value}'" for one in those)
            raise UsageError(f"{those[-1].option} is given {len(those)} times: {values}", hint="give it once")
        joined[name] = (parameter.opts[-1], ",".join(str(one.value) for one in those))
    return joined


def _check_dashes(argument: str, options: Mapping[str, Any]) -> None:
    """Refuse `-model X`, which is `-m odel X` by the rules, and `—model X`, which would be a file."""
    name = argument.partition("=")[0].lstrip(f"-{_LONG_DASHES}")
    option = f"--{name}"
    if (
        argument[:1] in f"-{_LONG_DASHES}"
        and not argument.startswith("--")
        and option in options
        and len(name) > 1
    ):
        raise UsageError(f"'{argument}' is no option", hint=f"did you mean {option}, with two hyphens?")


def _check_not_empty(parameter: Any, value: Any) -> None:
    """Refuse '' for a file: that is the folder where the command runs, by the rules of paths."""
    if isinstance(value, str) and not value.strip() and parameter.name in _PATHS | _OF_LIBRARIES:
        what = parameter.opts[0] if parameter.opts[0].startswith("-") else parameter.metavar.removesuffix("...")
        raise UsageError(f"{what} is empty", hint="name a file or a folder; a shell variable may be unset")


def _check_texts(parameters: list[Any], values: Mapping[str, Any]) -> None:
    """Refuse bytes that are no text where a text is needed."""
    for parameter in parameters:
        value = values.get(parameter.name)
        texts = value if isinstance(value, (list, tuple)) else (value,)
        for text in texts:
            _check_not_empty(parameter, text)
        if parameter.name in _PATHS or all(_is_utf8(str(text)) for text in texts):
            continue
        what = parameter.opts[-1] if parameter.opts[-1].startswith("-") else parameter.metavar
        if parameter.name in _OF_LIBRARIES:
            raise UsageError(
                f"the name that {what} gives is not UTF-8, and the libraries that open such files need it to be",
                hint="rename it, or give a link to it: ln -s OLD NEW; see the locale of the shell (`locale`)",
            )
        raise UsageError(f"the value of {what} is not UTF-8", hint="see the locale of the shell (`locale`)")


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def given_on(ctx: typer.Context) -> frozenset[str]:
    """Names of the parameters that were given on the command line, whatever their values."""
    return frozenset(ctx.meta.get(_GIVEN, {}))


# Errors ----------------------------------------------------------------------------------------------


def explained(wrong: Any) -> UsageError:
    """Say what Typer found wrong with a command line as an error of embedkit's."""
    context, parameter = getattr(wrong, "ctx", None), getattr(wrong, "param", None)
    path = context.command_path if context is not None else "embedkit"
    lists = f"`{path} --help` lists all options"
    name = getattr(wrong, "option_name", None)
    if type(wrong).__name__ == "NoSuchOption" and context is not None:
        return UsageError(
            f"there is no option {name} of `{path}`", hint=_hint_for_option(str(name), context, lists)
        )
    sentence = " ".join(wrong.format_message().split()).rstrip(".")
    if type(wrong).__name__ == "BadParameter" and context is not None and parameter is not None:
        value = context.meta.get(_GIVEN, {}).get(parameter.name)
        if value is not None:
            reason = wrong.message.rstrip(".")
            sentence = f"{parameter.opts[-1]} cannot be '{value}'"
            needed = {int: "an integer", float: "a number"}.get(annotation_of(parameter))
            if needed is not None:
                return UsageError(f"{sentence}: it takes {needed}", hint=f"give {needed}; {lists}")
            sentence += f": {reason[:1].lower()}{reason[1:]}"
    return UsageError(sentence, hint=lists)


def _hint_for_option(name: str, context: Any, lists: str) -> str:
    word = name.lstrip("-")
    if not isinstance(context.command, Command):
        known = (option for one in context.command.commands.values() for option in _options_of(one.params))
        if name in known:
            return (
                f"options stand behind the command: `embedkit encode INPUT {name} …`; `embedkit --help` lists all"
            )
        return lists
    arguments = [one for one in context.command.params if one.param_type_name == "argument"]
    if arguments and word.replace("_", "-") in _INPUT_OPTIONS and not _is_option(word, context.command.params):
        return (
            f"files stand without an option: `{context.command_path} {arguments[0].metavar or 'INPUT'}`; {lists}"
        )
    near = closest_options(word, context.command.params)
    return f"did you mean {' or '.join(near)}? {lists}" if near else lists


def closest_options(word: str, parameters: list[Any]) -> tuple[str, ...]:
    """What a mistyped option, or key of a config file, was meant to be.

    Args:
        word: without its hyphens.
        parameters: of the command.

    Returns:
        Options, some with a value, such as `--on-exists resume`; the likeliest first.
    """
    options = {option.lstrip("-"): option for option in _options_of(parameters)}
    usual: dict[str, str] = {}
    for name, phrases in _MEANT.items():
        known = next((phrase for phrase in phrases if phrase.split()[0] in options.values()), None)
        if known is not None and name not in options:
            usual[name] = known
    # A name of another tool has to be spelled nearly right: --seed is not like --uncased.
    for names, likeness in (({**options, **usual}, 0.9), (options, LIKENESS), (usual, 0.8)):
        near = tuple(dict.fromkeys(names[name] for name in closest_names(word, names, likeness=likeness)))
        if near:
            return near
    return ()


def annotation_of(parameter: Any) -> Any:
    """The type that an option or argument has in Python."""
    return getattr(parameter.type_descriptor, "annotation", None)


def _is_option(word: str, parameters: list[Any]) -> bool:
    """Whether an option is spelled like this but for case and underscores."""
    return f"--{word.replace('_', '-').lower()}" in _options_of(parameters)


def _options_of(parameters: list[Any]) -> list[str]:
    names = (name for one in parameters for name in (*one.opts, *one.secondary_opts))
    return [name for name in names if name.startswith("--")]


def _looks_like_input(name: str) -> bool:
    return name == "-" or (name != "" and seems_there(name)) or bool(re.search(r"\.\w+$|[/*]", name))
