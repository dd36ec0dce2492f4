"""The command class of the command line: checks of options beyond Typer's, and suggestions for mistyped names.

No option is ignored silently. Depends on Typer's parameters, not on what the options mean to embedkit.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from embedkit.cli import environment
from embedkit.cli.progress import make_callbacks
from embedkit.errors import UsageError
from embedkit.storage.filesystem import seems_there
from embedkit.suggest import LIKENESS, closest_names

#: What Typer raises for a wrong command line: its UsageError, which has no public name since Typer vendors Click.
WRONG_USAGE: type[Exception] = typer.BadParameter.__mro__[2]
#: Options whose value is a comma list: repeated, their values are joined.
JOINED = ("pool", "layers", "device")
#: Parameters that name files which embedkit opens itself: any bytes are allowed in these names.
_PATHS = frozenset({"inputs", "input", "config", "spans"})
#: Parameters that name files which pyarrow, safetensors and tokenizers open: they require UTF-8.
_LIBRARY_PATHS = frozenset({"out", "outs", "output", "model"})
#: Dashes that word processors and web pages put in place of `--`.
_LONG_DASHES = "\u2010\u2011\u2012\u2013\u2014\u2015\u2212"
_GIVEN = "embedkit.given"
_FROM_ENVIRONMENT = "embedkit.from_environment"

#: Options of other tools, by the option here; of several, the first that the command has is suggested.
_OPTION_SYNONYMS: dict[str, tuple[str, ...]] = {
    word: tuple(options.split(" | "))
    for options, words in {
        "--on-exists resume": "resume continue restart",
        "--on-exists overwrite | --overwrite": "overwrite force replace",
        "--overwrite": "on-exists",
        "--dtype fp16": "fp16 half float16",
        "--dtype bf16": "bf16 bfloat16",
        "--dtype fp32": "fp32 float32",
        "--dtype int8": "int8 quantize quantized load-in-8bit",
        "--dtype": "torch-dtype compute-dtype data-type",
        "--device cuda": "gpu cuda use-gpu use-cuda gpus",
        "--device cpu": "cpu no-gpu no-cuda use-cpu",
        "--device mps": "mps",
        "--pool | --pooler": "pooling pooling-mode pooling-strategy pooling-method pool-type",
        "--pooler": "pool",
        "--pool": "pooler",
        "--pool cls": "cls",
        "--pool mean": "mean",
        "--pool max": "max",
        "--pool min": "min",
        "--output": "output-dir output-file output-path out out-dir outdir save save-dir dest",
        "--max-length": "max-seq-length max-seq-len max-len max-tokens seq-length context-length",
        "--on-long truncate": "truncate truncation",
        "--on-long chunk": "chunk chunking chunks sliding-window windows",
        "--stride": "overlap chunk-overlap doc-stride",
        "--layers": "layer hidden-layer hidden-layers layer-index",
        "--layer-agg": "aggregation agg layer-aggregation layer-pooling",
        "--workers": "num-workers n-workers jobs n-jobs num-proc nproc processes",
        "--text-column": "column text text-field text-col field text-columns",
        "--id-column": "id id-col id-field ids key",
        "--keep": "keep-column keep-columns keep-col passthrough include",
        "--batch-size": "bs batch batchsize per-device-batch-size",
        "--normalize": "normalise norm l2 l2-normalize normalize-embeddings",
        "--no-normalize": "no-normalise",
        "--truncate-dim": "dim dims dimension dimensions embedding-dim",
        "--model": "model-name model-id model-name-or-path model-path checkpoint",
        "--revision": "commit tag branch",
        "--offline": "local-files-only local",
        "--trust-remote-code": "trust remote-code",
        "--prompt": "instruction prefix query-prefix",
        "--shard-id": "rank shard shard-index",
        "--num-shards": "world-size shards n-shards",
        "--lowercase yes": "lower lower-case do-lower-case uncased",
        "--lowercase no": "cased",
        "--format": "input-format file-format file-type",
        "--delimiter": "sep separator delim field-separator",
        "--quoting": "quote quotes quote-char quotechar",
        "--limit": "n-rows nrows max-rows head max-samples num-rows",
        "--level token": "token-embeddings tokens",
        "--on-bad-row skip": "skip-bad-rows skip-errors ignore-errors",
        "--label": "labels target label-column y",
        "--group | --group-by": "groups group-column group",
        "--quiet": "silent",
        "--progress none": "no-progress",
        "--json | --progress json": "json",
        "--color": "colour color-by",
        "--config": "conf configuration config-file",
        "--lr": "learning-rate",
        "--epochs": "n-epochs num-epochs max-epochs",
        "--patience": "early-stopping",
        "--folds": "n-folds cv k-folds splits",
        "--seed": "random-state random-seed",
        "--metric": "scoring score",
        "--split-column": "split split-col set-column",
        "--test": "test-file test-set test-data test-size test-share holdout",
        "--exclude-rare": "min-count min-class-count min-class-size min-samples",
        "--dedupe": "dedup deduplicate drop-duplicates",
        "--label-delimiter": "label-separator label-sep",
        "--missing-label": "na-values null-values missing-values",
    }.items()
    for word in words.split()
}
#: Options of other tools for what is an argument here.
_INPUT_OPTIONS = frozenset(
    {"input", "inputs", "input-file", "input-path", "data", "file", "files", "in", "i", "f", "csv", "dataset"}
)
_COMMAND_SYNONYMS = {
    word: command
    for command, words in {
        "encode": "embed embeddings run vectorize extract infer",
        "fit": "train train-pooler",
        "verify": "check validate test",
        "inspect": "show info stat stats describe",
        "plan": "estimate dry-run forecast",
        "sweep": "probe compare search",
        "diff": "compare-outputs cmp difference",
        "report": "html page visualize",
        "doctor": "diagnose env devices models",
    }.items()
    for word in words.split()
}


class Group(TyperGroup):
    """The command `embedkit`, which has the other commands."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Returns the command that the first argument names.

        Raises:
            UsageError: there is no such command; suggests the closest.
        """
        name = args[0]
        if name in self.commands:
            return super().resolve_command(ctx, args)
        near = closest_names(name, self.commands, synonyms=_COMMAND_SYNONYMS)
        if _looks_like_input(name):
            meant = f"`embedkit encode {name}`"
        else:
            meant = "`embedkit --version`" if name == "version" else " or ".join(f"`embedkit {it}`" for it in near)
        raise UsageError(
            f"'{name}' is not a command of embedkit",
            hint=f"{f'did you mean {meant}? ' * bool(meant)}`embedkit --help` lists the commands",
        )

    def format_commands(self, ctx: Any, formatter: Any) -> None:  # noqa: ARG002 - Typer's signature
        """Writes the commands of `--help` in sections, each with its first sentence."""
        width = formatter.width - max(map(len, self.commands)) - 6
        for title, commands in groupby(self.commands.values(), lambda one: getattr(one, "rich_help_panel", "")):
            with formatter.section(title):
                formatter.write_dl([(str(one.name), one.get_short_help_str(width)) for one in commands])


class Command(TyperCommand):
    """One command. The values of a repeated option are joined if it takes a comma list, else it is an error."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parses the command line.

        Raises:
            UsageError: an option is repeated, or its form would be read as something else.
        """
        given = _given(self.params, args)
        ctx.meta[_GIVEN] = {one.parameter.name: one.value for one in given}
        ctx.meta[_FROM_ENVIRONMENT] = environment.defaults(self.params)
        ctx.default_map = {**ctx.meta[_FROM_ENVIRONMENT], **(ctx.default_map or {})}
        for one in given:
            _check_not_empty(one.parameter, one.value)
        joined = _joined(given)
        if joined:
            replaced = {place for one in given if one.parameter.name in joined for place in one.positions}
            args = [argument for place, argument in enumerate(args) if place not in replaced]
            args = [*(f"{option}={value}" for option, value in joined.values()), *args]
        try:
            rest = super().parse_args(ctx, args)
        except WRONG_USAGE as wrong:
            vars(wrong).update(ctx=vars(wrong).get("ctx") or ctx)
            raise
        _check_values(self.params, ctx.params)
        return rest

    def invoke(self, ctx: Any) -> Any:
        """Runs the command, after a note about each value from an environment variable."""
        callbacks = make_callbacks(ctx.params.get("progress", "auto"), quiet=ctx.params.get("quiet", False))
        for sentence in environment.notes(ctx, ctx.meta[_FROM_ENVIRONMENT]):
            callbacks.notice(sentence)
        return super().invoke(ctx)

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Returns what follows the command in the usage line: its arguments, then `[OPTIONS]`."""
        arguments = [str(one.metavar) for one in self.get_params(ctx) if one.param_type_name == "argument"]
        return [*arguments, "[OPTIONS]"]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Writes the options of `--help` in sections, those without a section last."""
        sections: dict[str, list[Any]] = {}
        for parameter in self.get_params(ctx):
            is_argument = parameter.param_type_name == "argument"
            title = "Arguments" if is_argument else getattr(parameter, "rich_help_panel", None) or "Options"
            record: Any = parameter.get_help_record(ctx)
            # Typer adds the Python type to the name of an argument.
            sections.setdefault(title, []).append((parameter.metavar, record[1]) if is_argument else record)
        sections["Options"] = sections.pop("Options")
        for title, rows in sections.items():
            with formatter.section(title):
                formatter.write_dl(rows)


@dataclass(frozen=True, slots=True)
class _Given:
    """One option on the command line."""

    parameter: Any
    option: str  # as typed
    value: str | None  # None for a flag
    positions: tuple[int, ...]  # of its arguments on the command line


def _given(parameters: list[Any], args: list[str]) -> list[_Given]:
    """Returns the options on a command line, up to the first unknown one, for which parsing raises."""
    options = {name: one for one in parameters for name in (*one.opts, *one.secondary_opts) if name[:1] == "-"}
    found: list[_Given] = []
    place = 0
    while place < len(args) and args[place] != "--":
        argument = args[place]
        _check_dashes(argument, options)
        for option, attached, is_known in _split(argument, options):
            if not is_known:
                return found
            parameter = options[option]
            if parameter.is_flag or attached is not None:
                # Click would read `-o=out` as a file named `=out`.
                if len(option) == len("-o") and attached is not None and attached.startswith("="):
                    raise UsageError(
                        f"'{argument}': a one-letter option takes its value without =",
                        hint=f"write {option} {attached[1:]}, or {parameter.opts[-1]}{attached}",
                    )
                found.append(_Given(parameter, option, attached, (place,)))
                continue
            if place + 1 == len(args):
                return found
            value = args[place + 1]
            # Click would read `-o --quiet` as a folder named `--quiet`.
            if value in options:
                raise UsageError(
                    f"{option} is followed by the option {value}, not by a value",
                    hint=f"add the value of {option}, or write {parameter.opts[-1]}={value} if that is the value",
                )
            found.append(_Given(parameter, option, value, (place, place + 1)))
            place += 1
        place += 1
    return found


def _split(argument: str, options: Mapping[str, Any]) -> Iterator[tuple[str, str | None, bool]]:
    """Yields the options in one argument (`--pool=cls`, `-qv`, `-mX`), their attached values, and if known."""
    if argument.startswith("--"):
        name, equals, value = argument.partition("=")
        yield name, value if equals else None, name in options
    elif argument.startswith("-") and len(argument) > 1:
        for place, letter in enumerate(argument[1:], 2):
            option = options.get(f"-{letter}")
            if option is None or not option.is_flag:
                yield f"-{letter}", argument[place:] or None, option is not None
                return
            yield f"-{letter}", None, True


def _joined(given: list[_Given]) -> dict[str, tuple[str, str]]:
    """Joins the values of repeated options that take comma lists: name → (option, list).

    Raises:
        UsageError: another option is repeated.
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
                    f"{those[0].option} and {those[-1].option} exclude each other", hint="give only one of them"
                )
            continue
        if name not in JOINED:
            values = " and ".join(f"'{one.value}'" for one in those)
            raise UsageError(f"{those[-1].option} is given {len(those)} times: {values}", hint="give it once")
        joined[name] = (parameter.opts[-1], ",".join(str(one.value) for one in those))
    return joined


def _check_dashes(argument: str, options: Mapping[str, Any]) -> None:
    """Rejects `-model X`, which Click reads as `-m odel X`, and `—model X`, which it reads as a file."""
    name = argument.partition("=")[0].lstrip(f"-{_LONG_DASHES}")
    option = f"--{name}"
    if (
        argument[:1] in f"-{_LONG_DASHES}"
        and not argument.startswith("--")
        and option in options
        and len(name) > 1
    ):
        raise UsageError(f"'{argument}' is not an option", hint=f"did you mean {option}, with two hyphens?")


def _check_not_empty(parameter: Any, value: Any) -> None:
    """Rejects '' for a file: as a path it is the working folder."""
    if isinstance(value, str) and not value.strip() and parameter.name in _PATHS | _LIBRARY_PATHS:
        what = parameter.opts[0] if parameter.opts[0].startswith("-") else parameter.metavar.removesuffix("...")
        raise UsageError(f"{what} is empty", hint="name a file or a folder; a shell variable may be unset")


def _check_values(parameters: list[Any], values: Mapping[str, Any]) -> None:
    """Rejects empty names, and bytes that are not UTF-8 where text is required."""
    for parameter in parameters:
        value = values.get(parameter.name)
        texts = value if isinstance(value, (list, tuple)) else (value,)
        for text in texts:
            _check_not_empty(parameter, text)
        if parameter.name in _PATHS or all(is_utf8(str(text)) for text in texts):
            continue
        what = parameter.opts[-1] if parameter.opts[-1].startswith("-") else parameter.metavar
        if parameter.name in _LIBRARY_PATHS:
            raise UsageError(
                f"the name given to {what} is not UTF-8, which the libraries that open it require",
                hint="rename it, or link to it (ln -s OLD NEW); check the locale of the shell (`locale`)",
            )
        raise UsageError(f"the value of {what} is not UTF-8", hint="check the locale of the shell (`locale`)")


def is_utf8(text: str) -> bool:
    """Checks whether a name from the command line is UTF-8: its other bytes are surrogates."""
    return not any("\ud800" <= letter <= "\udfff" for letter in text)


def given_on(ctx: typer.Context) -> frozenset[str]:
    """Returns the names of the parameters that are on the command line."""
    return frozenset(ctx.meta.get(_GIVEN, {}))


# Errors ----------------------------------------------------------------------------------------------


def as_usage_error(wrong: Any) -> UsageError:
    """Converts what Typer raises for a wrong command line into an error of embedkit, with a suggestion."""
    context, parameter = getattr(wrong, "ctx", None), getattr(wrong, "param", None)
    path = context.command_path if context is not None else "embedkit"
    see_help = f"`{path} --help` lists all options"
    if type(wrong).__name__ == "NoSuchOption" and context is not None:
        name = str(wrong.option_name)
        return UsageError(f"`{path}` has no option {name}", hint=_hint_for_option(name, context, see_help))
    sentence = " ".join(wrong.format_message().split()).rstrip(".")
    if type(wrong).__name__ == "BadParameter" and context is not None and parameter is not None:
        value = context.meta.get(_GIVEN, {}).get(parameter.name)
        if value is not None:
            reason = wrong.message.rstrip(".")
            sentence = f"{parameter.opts[-1]} cannot be '{value}'"
            needed = {int: "an integer", float: "a number"}.get(annotation_of(parameter))
            if needed is not None:
                return UsageError(f"{sentence}: it takes {needed}", hint=f"give {needed}; {see_help}")
            sentence += f": {reason[:1].lower()}{reason[1:]}"
    return UsageError(sentence, hint=see_help)


def _hint_for_option(name: str, context: Any, see_help: str) -> str:
    word = name.lstrip("-")
    if not isinstance(context.command, Command):
        known = (option for one in context.command.commands.values() for option in _long_options(one.params))
        if name in known:
            return f"put options after the command: `embedkit encode INPUT {name} …`; {see_help}"
        return see_help
    params = context.command.params
    arguments = [one for one in params if one.param_type_name == "argument"]
    is_misspelled = f"--{word.replace('_', '-').lower()}" in _long_options(params)
    if arguments and word.replace("_", "-") in _INPUT_OPTIONS and not is_misspelled:
        argument = arguments[0].metavar or "INPUT"
        return f"give files without an option: `{context.command_path} {argument}`; {see_help}"
    near = closest_options(word, params)
    return f"did you mean {' or '.join(near)}? {see_help}" if near else see_help


def closest_options(word: str, parameters: list[Any]) -> tuple[str, ...]:
    """Finds the options that a mistyped option, or key of a config file, is closest to.

    Args:
        word: without its hyphens.
        parameters: of the command.

    Returns:
        Options, some with a value, such as `--on-exists resume`; the closest first.
    """
    options = {option.lstrip("-"): option for option in _long_options(parameters)}
    synonyms: dict[str, str] = {}
    for name, phrases in _OPTION_SYNONYMS.items():
        known = next((phrase for phrase in phrases if phrase.split()[0] in options.values()), None)
        if known is not None and name not in options:
            synonyms[name] = known
    # A synonym has to be spelled nearly right: --seed is not meant by --uncased.
    for names, likeness in (({**options, **synonyms}, 0.9), (options, LIKENESS), (synonyms, 0.8)):
        near = tuple(dict.fromkeys(names[name] for name in closest_names(word, names, likeness=likeness)))
        if near:
            return near
    return ()


def annotation_of(parameter: Any) -> Any:
    """Returns the Python type of an option or argument."""
    return getattr(parameter.type_descriptor, "annotation", None)


def _long_options(parameters: list[Any]) -> list[str]:
    names = (name for one in parameters for name in (*one.opts, *one.secondary_opts))
    return [name for name in names if name.startswith("--")]


def _looks_like_input(name: str) -> bool:
    return name == "-" or (name != "" and seems_there(name)) or bool(re.search(r"\.\w+$|[/*]", name))
