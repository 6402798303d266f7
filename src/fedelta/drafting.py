"""The first configuration of a user: looks at data and writes a commented TOML file for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import tomli_w

from fedelta.config import Config, parse_config
from fedelta.data.columns import kinds_of
from fedelta.data.files import load_splits
from fedelta.data.naming import Naming
from fedelta.errors import ConfigError, InputError, listed
from fedelta.settings.base import Table
from fedelta.settings.override import override
from fedelta.settings.reading import read_sections

Kind = Literal["images", "recordings", "texts", "words", "dialogues"]
KINDS: tuple[Kind, ...] = get_args(Kind)

# Kind to the backbone that is written where none is given; the bundled ones need no network.
_MODELS: dict[Kind, str] = {
    "images": "bundled:vit-micro",
    "recordings": "bundled:vit-micro",
    "texts": "sentence-transformers/all-MiniLM-L6-v2",
    "words": "sentence-transformers/all-MiniLM-L6-v2",
    "dialogues": "bundled:words-micro",
}
# Usual names of columns, in order of preference.
_LABELS = ("label", "labels", "class", "category", "target", "fine_label", "sentiment", "diagnosis", "intent", "topic")
_TEXTS = ("text", "sentence", "review", "content", "message", "note", "question", "title")
_CLIENTS = (
    "client",
    "client_id",
    "site",
    "hospital",
    "user",
    "user_id",
    "author",
    "speaker",
    "writer",
    "device",
    "office",
    "clinic",
    "center",
    "centre",
    "institution",
)
_PROMPTS, _RESPONSES = ("prompt", "instruction", "question", "input"), ("response", "answer", "output", "completion")
# Key of section `[data]`, contents of the column, kind and task of the data, usual names where several columns fit.
_COLUMNS: tuple[tuple[str, tuple[str, ...], Kind, str, tuple[str, ...]], ...] = (
    ("image_column", ("image", "array", "bytes"), "images", "classification", ("image",)),
    ("audio_column", ("audio",), "recordings", "classification", ("audio",)),
    ("words_column", ("lists of text", "words"), "words", "tokens", ("words", "tokens")),
    ("text_column", ("text",), "texts", "classification", _TEXTS),
)
_TARGETS = ("classes", "integer", "text", "float")
_NUM_CLIENTS = 8
_PER_ROUND = 8
_COMMENTS = {
    "model.source": "the pre-trained model: bundled, a directory, or a name on the hub",
    "data.source": "a file, a folder, or the name of a data set on the hub",
    "data.client_column": "the column that says to which client a row belongs",
    "partition.name": '"natural": the clients that the data name; "iid": rows divided at random',
    "tuning.name": "what is trained and sent; `fedelta list tuning` has the others",
    "strategy.clients_per_round": "how many clients train in a round",
    "client.lr": "a usual start; `fedelta compare FILE --over client.lr=0.001,0.003,0.01` tries others",
    "codec.name": "half the bytes of float32",
}


@dataclass(frozen=True)
class Found:
    """What the data are.

    Args:
        kind: of the data.
        task: that fits them.
        data: keys of section `[data]` besides `source`.
        num_rows: of the training split.
        num_clients: that the data name; 0 if they name none.
    """

    kind: Kind
    task: str
    num_rows: int
    num_clients: int
    data: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        clients = f" of {self.num_clients:,} clients" if self.num_clients else ""
        return f"{self.kind}: {self.num_rows:,} training rows{clients}, task {self.task}"


def look(source: str, kind: Kind | None = None, given: Mapping[str, object] | None = None) -> Found:
    """What the data at `source` are, from their folders or the types and names of their columns.

    Args:
        source: as `data.source`.
        kind: where the data could be read as several.
        given: keys of section `[data]` that are known already, such as `label_column`.

    Raises:
        DataError: they cannot be read.
        InputError: their columns do not tell; the hint has the setting that does.
    """
    given = given or {}
    splits = load_splits(source, None, _naming(source, given))
    rows = splits.rows.get("train", next(iter(splits.rows.values())))
    columns = kinds_of(rows)
    client = str(given.get("client_column") or splits.client or _named(columns, _CLIENTS) or "") or None
    # A folder's own column of clients is found again without being named.
    keys = {"client_column": client} if client is not None and client != splits.client else {}
    rest = {name: content for name, content in columns.items() if name != client}
    found, task, inputs = _inputs(source, rest, kind, given)
    num_clients = 0 if client is None else len(rows.unique(client))
    if found != "dialogues":
        label = _target(source, {name: rest[name] for name in rest if name not in inputs.values()}, found, given)
        keys["label_column"] = label
        task = "regression" if task == "classification" and rest[label] == "float" else task
    # The columns of folders and of single candidates are found without being named, but naming them is clearer.
    named = {} if _is_folder(source, columns) else inputs | keys
    return Found(found, task, len(rows), num_clients, named)


def draft(
    source: str, *, kind: Kind | None = None, model: str | None = None, clients: int | None = None,
    overrides: Sequence[str] = (),
) -> tuple[str, Found]:  # fmt: skip
    """The text of a configuration for the data at `source`, valid and commented, and what the data are.

    Args:
        source: as `data.source`.
        kind: where the data could be read as several.
        model: as `model.source`; by default a small one for the kind.
        clients: number of clients that the rows are divided among; by default those that the data name, or 8.
        overrides: `section.key=value` strings, which the text contains.

    Raises:
        FedeltaError: the data cannot be read or do not tell what they are, or an override is not valid.
    """
    wanted: Table = {}
    override(wanted, overrides, Config)
    given = wanted.get("data", {})
    found = look(source, kind, given if isinstance(given, dict) else {})
    is_natural = clients is None and found.num_clients > 0
    count = found.num_clients if is_natural else clients or _NUM_CLIENTS
    table: Table = {
        "seed": 0,
        "model": {"source": model or _MODELS[found.kind]},
        "data": {"source": source, **found.data},
        "task": {"name": found.task},
        "partition": {"name": "natural"} if is_natural else {"name": "iid", "num_clients": count},
        "tuning": {"name": "lora", "r": 8, "lora_alpha": 16},
        "strategy": {"name": "fedavg", "clients_per_round": min(_PER_ROUND, count), "num_rounds": 20},
        "client": {"local_epochs": 1, "batch_size": 16, "lr": 0.003, "optimizer": {"name": "adamw"}},
        "codec": {"name": "float16"},
    }
    problems = override(table, overrides, Config)
    if problems:
        raise InputError(f"`--set` cannot be used: {'; '.join(problems)}", hint="`fedelta list SECTION` has its keys.")
    parse_config(table, origin="the new configuration")
    return _commented(table, found), found


def _naming(source: str, given: Mapping[str, object]) -> Naming:
    """What the names of files and folders mean, as far as that was given."""
    sections, problems = read_sections({"data": {"source": source, **given}}, Config)
    if problems:
        raise ConfigError(problems, hint="`fedelta list data` describes every key.")
    naming: Naming = sections["data"].naming
    return naming


def _inputs(
    source: str, columns: Mapping[str, str | None], kind: Kind | None, given: Mapping[str, Any]
) -> tuple[Kind, str, dict[str, str]]:
    """Kind, task, and the keys of the input columns."""
    kinds: dict[Kind, tuple[str, dict[str, str]]] = {}
    prompt, response = _named(columns, _PROMPTS), _named(columns, _RESPONSES)
    if "messages" in columns:
        kinds["dialogues"] = ("language", {"messages_column": "messages"})
    elif prompt and response:
        kinds["dialogues"] = ("language", {"prompt_column": prompt, "response_column": response})
    for name, content, found, task, usual in _COLUMNS:
        candidates = [column for column, value in columns.items() if value in content]
        labels = _named(columns, _LABELS) if name == "text_column" and len(candidates) > 1 else None
        candidates = [column for column in candidates if column != labels]
        single = candidates[0] if len(candidates) == 1 else _named(dict.fromkeys(candidates), usual)
        if (chosen := given.get(name) or single) is not None:
            kinds[found] = (task, {name: str(chosen)})
    if kind is None and kinds:
        kind = next(iter(kinds))
    if kind is None or kind not in kinds:
        what = "columns that it knows" if kind is None else kind
        raise InputError(
            f"data source {source!r} has no {what}: found the columns {listed(list(columns))}.",
            hint="name what shall be read, such as `--set data.text_column=NAME`.",
        )
    return kind, *kinds[kind]


def _target(source: str, columns: Mapping[str, str | None], kind: Kind, given: Mapping[str, Any]) -> str:
    """The column of targets."""
    wanted = ("lists of classes", "lists of text", "lists of integer") if kind == "words" else _TARGETS
    candidates = {name: content for name, content in columns.items() if content in wanted}
    chosen = given.get("label_column") or _named(candidates, _LABELS)
    if chosen is None and len(candidates) == 1:
        chosen = next(iter(candidates))
    if chosen is None or chosen not in columns:
        raise InputError(
            f"data source {source!r} does not tell which column has the targets: found {listed(list(columns))}.",
            hint="name it: `--set data.label_column=NAME`.",
        )
    return str(chosen)


def _named(columns: Mapping[str, object], names: Sequence[str]) -> str | None:
    """The first column with one of these names, whatever its case."""
    lower = {column.lower(): column for column in reversed(list(columns))}
    return next((lower[name] for name in names if name in lower), None)


def _is_folder(source: str, columns: Mapping[str, object]) -> bool:
    """Whether the columns were made from the names of files and folders."""
    return Path(source).is_dir() and set(columns) <= {"image", "audio", "label", "client"}


def _commented(table: Table, found: Found) -> str:
    """The table as TOML, with a comment above the keys that a newcomer meets first."""
    lines, section = [f"# {found}.", "# `fedelta check FILE` tries it, `fedelta run FILE` runs it.", ""], ""
    for line in tomli_w.dumps(table).splitlines():
        if line.startswith("["):
            section = line.strip("[]")
        comment = _COMMENTS.get(f"{section}.{line.partition(' = ')[0]}")
        lines += [f"# {comment}", line] if comment else [line]
    return "\n".join([*lines, ""])
