"""The stages' settings as command-line options and as YAML: both are made from the fields of their dataclasses.

A YAML file has a mapping for each stage; what the command line says comes before it, and the defaults after it.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import shlex
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from eagle.errors import InputError


def add_options(
    parse: argparse._ActionsContainer, kind: type[Any], prefix: str = "", skip: tuple[str, ...] = ()
) -> None:
    """An option for each field of a settings class; one that is not given leaves no trace in the namespace.

    Args:
        parse: a parser, or a group of one.
        kind: the dataclass.
        prefix: of the options' names and of their places in the namespace.
        skip: fields that have no option.
    """
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        if field.name in skip:
            continue
        hint, many = _plain(hints[field.name])
        shown = "" if field.default in (None, ()) else f" (default: {_shown(field.default)})"
        kwargs: dict[str, Any] = {
            "dest": prefix + field.name,
            "default": argparse.SUPPRESS,
            "help": (field.metadata["help"] + shown).replace("%", "%%"),
        }
        if hint is bool:
            kwargs["action"] = argparse.BooleanOptionalAction
        else:
            kwargs |= {"type": hint, "metavar": hint.__name__.upper()} | ({"nargs": "+"} if many else {})
        parse.add_argument(f"--{prefix}{field.name.replace('_', '-')}", **kwargs)


def names(kind: type[Any]) -> tuple[str, ...]:
    """The fields of a settings class."""
    return tuple(field.name for field in dataclasses.fields(kind))


def given(args: argparse.Namespace, kind: type[Any], prefix: str = "") -> dict[str, Any]:
    """What the command line said of a settings class."""
    found = ((field.name, getattr(args, prefix + field.name, None)) for field in dataclasses.fields(kind))
    return {name: tuple(value) if isinstance(value, list) else value for name, value in found if value is not None}


def read_config(file: Path, stages: Mapping[str, type[Any]]) -> dict[str, dict[str, Any]]:
    """The settings of a YAML file by stage, in the types of the settings classes.

    Raises:
        InputError: the file cannot be read, or names a stage or a setting that does not exist, or one of another type.
    """
    try:
        raw = yaml.safe_load(file.read_text(encoding="utf-8-sig")) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"cannot read {file}: {error}") from error
    if not isinstance(raw, dict) or not all(isinstance(values, dict) for values in raw.values()):
        raise InputError(f"{file} must hold a mapping for each stage: {', '.join(stages)}")
    settings: dict[str, dict[str, Any]] = {}
    for stage, values in raw.items():
        if stage not in stages:
            raise InputError(f"{file} has {stage!r}; the stages are {', '.join(stages)}")
        hints = typing.get_type_hints(stages[stage])
        for name, value in values.items():
            if name not in hints:
                raise InputError(f"{file}: {stage} has no setting {name!r}; it has {', '.join(hints)}")
            settings.setdefault(stage, {})[name] = _convert(value, hints[name], f"{file}: {stage}.{name}")
    return settings


def write_config(file: Path, settings: Mapping[str, Any]) -> None:
    """Put the settings of some stages into a YAML file, beside those of others.

    Raises:
        InputError: the file cannot be read or written.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        there = (yaml.safe_load(file.read_text(encoding="utf-8-sig")) if file.is_file() else None) or {}
        there |= {stage: _plain_values(values) for stage, values in settings.items()}
        # Every process of a training writes the same.
        temporary = file.with_name(f".{file.name}-{os.getpid()}")
        temporary.write_text(yaml.safe_dump(there, sort_keys=False), encoding="utf-8")
        temporary.replace(file)
    except (OSError, yaml.YAMLError) as error:
        raise InputError(f"cannot write {file}: {error}") from error


@contextlib.contextmanager
def on_record(file: Path, stage: str, settings: Any) -> Iterator[None]:
    """Have the settings of a stage in a YAML file while it is at work, and afterwards unless it was refused.

    Raises:
        InputError: as ``write_config``.
    """
    before = file.read_bytes() if file.is_file() else None
    write_config(file, {stage: settings})
    try:
        yield
    except InputError:
        if before is None:
            file.unlink(missing_ok=True)
        else:
            file.write_bytes(before)
        raise


def command(stage: str, kind: type[Any], values: Mapping[str, Any]) -> str:
    """The command line of a stage: the options that differ from the defaults."""
    words = ["python", "-m", "eagle.train", stage]
    for field in dataclasses.fields(kind):
        value = values.get(field.name, field.default)
        if value is None or value == field.default or _shown(value) == _shown(field.default):
            continue
        option = field.name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{option}" if value else f"--no-{option}")
        else:
            words += [f"--{option}", *(map(str, value) if isinstance(value, list | tuple) else [str(value)])]
    return shlex.join(words)


def _plain(hint: Any) -> tuple[type[Any], bool]:
    """The type behind ``T | None`` and ``tuple[T, ...]``, and whether there may be many."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        hint = next(each for each in typing.get_args(hint) if each is not type(None))
    if typing.get_origin(hint) is tuple:
        return typing.get_args(hint)[0], True
    return hint, False


def _convert(value: Any, hint: Any, what: str) -> Any:
    plain, many = _plain(hint)
    if value is None:
        if type(None) in typing.get_args(hint):
            return None
        raise InputError(f"{what} must have a value")
    if many:
        if not isinstance(value, list):
            raise InputError(f"{what} must be a list, not {value!r}")
        return tuple(_convert(each, plain, what) for each in value)
    fits = {
        bool: isinstance(value, bool),
        int: isinstance(value, int) and not isinstance(value, bool),
        # YAML reads 1e-3 as a text.
        float: isinstance(value, int | float | str) and not isinstance(value, bool),
        str: isinstance(value, str),
        Path: isinstance(value, str),
    }[plain]
    try:
        if not fits:
            raise ValueError
        return plain(value)
    except ValueError:
        raise InputError(f"{what} must be of type {plain.__name__}, not {value!r}") from None


def _plain_values(settings: Any) -> dict[str, Any]:
    def plain(value: Any) -> Any:
        if isinstance(value, tuple):
            return [plain(each) for each in value]
        return str(value) if isinstance(value, Path) else value

    return {name: plain(value) for name, value in dataclasses.asdict(settings).items()}


def _shown(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
