"""``docs/configuration.md``, made from the settings themselves, so that it cannot say anything else than the code.

Keys, types, defaults and descriptions are those of :func:`common.config.describe`; a section's sentence is its class's docstring,
and the bounds are what pydantic checks. A test compares the file with :func:`render`; to write it again::

    python -c "from common.config_docs import render; print(render(), end='')" > docs/configuration.md
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from common.config import Config, describe

_HEAD = """\
# Settings

This file is generated from `common/config_sections.py`; `silorec simulate --settings` shows the same list.

Every setting has a default. A TOML file changes it, and `--set key=value` changes it again. Flower's apps get the same settings
as flat keys in their `run_config`. An unknown key or a value that is not allowed is an error that names the key, the value and
what is allowed. The resolved settings of a run are in its `config.toml`.

The configuration is public: the coordinator and every silo see it, and a silo answers only requests that carry the hash of its
own configuration. Put no secret into it, and nothing that was derived from users.

```toml
name = "my-run"

[privacy]
epsilon = 4.0

[federation]
rounds = 8
```

```bash
silorec simulate my-run.toml --set privacy.epsilon=2
```
"""

_BEFORE_BOUND = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
_WORDS = {"str": "text", "int": "whole number", "float": "number", "bool": "true or false", "unset": "unset"}


def render() -> str:
    """The whole of ``docs/configuration.md``."""
    fields = _fields(Config)
    tables: dict[str, list[str]] = {section: [] for section in _sections(Config)}
    for key, kind, default, description in describe():
        section, _, _ = key.rpartition(".")
        cells = (f"`{key}`", _kind(kind, fields[key]), _default(default), description)
        tables[section].append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    out = [_HEAD]
    for section, about in _sections(Config).items():
        title = f"## `[{section}]`\n\n{about}" if section else "## Top level"
        out.append(f"{title}\n\n| key | value | default | meaning |\n|---|---|---|---|\n" + "\n".join(tables[section]) + "\n")
    return "\n".join(out)


def _sections(model: type[BaseModel], prefix: str = "", about: str = "") -> dict[str, str]:
    """Section to its sentence, in the order of the tree; the top level is ``""``."""
    out = {prefix.rstrip("."): about}
    for key, info in model.model_fields.items():
        if (inner := _section(info)) is not None:
            sentence = " ".join((inner.__doc__ or "").split()).replace("``", "`")
            out |= _sections(inner, f"{prefix}{key}.", sentence)
    return out


def _fields(model: type[BaseModel], prefix: str = "") -> Mapping[str, FieldInfo]:
    """Dotted key to pydantic's field."""
    out: dict[str, FieldInfo] = {}
    for key, info in model.model_fields.items():
        inner = _section(info)
        out |= {f"{prefix}{key}": info} if inner is None else _fields(inner, f"{prefix}{key}.")
    return out


def _section(info: FieldInfo) -> type[BaseModel] | None:
    annotation: Any = info.annotation
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None


def _kind(kind: str, info: FieldInfo) -> str:
    """Type and bounds in words, such as ``number > 0`` or ``none | silo``."""
    parts = kind.split(" | ")
    if all(part in _WORDS for part in parts):
        words = [_WORDS[part] for part in parts]
    elif len(parts) == 1:
        words = parts
    else:
        words = [f"`{part}`" for part in parts]
    bounds = [
        f"{sign} {getattr(constraint, name):g}"
        for constraint in info.metadata
        for name, sign in _BEFORE_BOUND.items()
        if getattr(constraint, name, None) is not None
    ]
    words[0] = " ".join([words[0], " and ".join(bounds)]).strip()
    return ", or ".join(words) if kind.endswith("unset") else ", ".join(words)


def _default(text: str) -> str:
    return "unset" if json.loads(text) is None else f"`{text}`"
