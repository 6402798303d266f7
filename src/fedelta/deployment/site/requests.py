"""The messages of a server as a site reads them: every value is checked before it is used.

A manifest comes from outside, so types are strict and numbers bounded. Keys that are not known here are ignored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from fedelta.data.clients import Name
from fedelta.errors import PayloadError
from fedelta.federation.form import safe_repr

_MAX_CLIENTS = 1_000_000
_NUM_SHOWN = 200

Whole = Annotated[int, Field(ge=0, lt=2**31)]
Round = Annotated[int, Field(ge=1, lt=2**31)]
Text = Annotated[str, Field(max_length=1000)]
Key = Annotated[int, Field(ge=-(2**63), lt=2**63)] | Text
T = TypeVar("T")
Pair = Annotated[tuple[Whole, T], Field(strict=False)]  # JSON has lists instead
ManifestT = TypeVar("ManifestT", bound="Manifest")


class Manifest(BaseModel):
    """A manifest, the JSON part of a message.

    Args:
        run: id of the run.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)
    run: Annotated[str, Field(min_length=1, max_length=200)]


class Describe(Manifest):
    """Asks for the site's clients and classes.

    Args:
        protocol: number of the form of messages.
        version: of fedelta at the server.
        config: the recipe in TOML.
    """

    protocol: int
    version: Text
    config: Annotated[str, Field(max_length=2**20)]


class Prepare(Manifest):
    """Says what the site's part in the run is; the answer says whether it can take it.

    Args:
        class_names: of the whole federation, in label order.
        clients: number in the federation and key of each of the site's clients.
        depths: number of a client and the blocks that it runs; None if all run the whole model.
        num_clients: of the whole federation.
        noise_multiplier: of the section `[privacy]`, given or calculated for the target; None without that section.
        task: section `[task]` with the settings that follow from the data of all sites; empty: as in the recipe.
    """

    class_names: list[Text]
    clients: Annotated[list[Pair[Key]], Field(min_length=1, max_length=_MAX_CLIENTS)]
    depths: Annotated[list[Pair[Whole]], Field(max_length=_MAX_CLIENTS)] | None = None
    num_clients: Round
    noise_multiplier: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    task: dict[str, Any] = Field(default_factory=dict)  # Any: JSON values

    @property
    def numbers(self) -> dict[Name, int]:
        """Key of a client to its number."""
        return {key: number for number, key in self.clients}

    @model_validator(mode="after")
    def _each_client_once(self) -> Prepare:
        numbers = {number for number, _ in self.clients}
        if len(numbers) < len(self.clients) or len(self.numbers) < len(self.clients):
            raise ValueError("expected each client once")
        if self.depths is not None and dict(self.depths).keys() != numbers:
            raise ValueError("expected a depth for each client")
        return self


class Trainee(BaseModel):
    """What one client has to do in a round.

    Args:
        id: number of the client.
        download: index of the blob that it gets.
        upload: index of the names that it sends.
        version: of the memory that it must have (`MemoryStore`); 0 for none.
        keeps_adrift: whether it was in the cohort of every round since then.
        remembered: index of the blob with what it remembers for the strategy, for a client that has lost its memory.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)
    id: Whole
    download: Whole
    upload: Whole
    version: Whole = 0
    keeps_adrift: bool = True
    remembered: Whole | None = None


class Train(Manifest):
    """Asks clients to train.

    Args:
        round: number of the round.
        num_clients: of the whole federation.
        uploads: names of the tensors that clients send.
        clients: what each has to do.
    """

    round: Round
    num_clients: Round
    uploads: list[list[str]]
    clients: Annotated[list[Trainee], Field(min_length=1, max_length=_MAX_CLIENTS)]

    @model_validator(mode="after")
    def _each_client_once(self) -> Train:
        if len({client.id for client in self.clients}) < len(self.clients):
            raise ValueError("expected each client once")
        return self


class ClientVersion(BaseModel):
    """A client, and the version of the memory that it must have."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)
    id: Whole
    version: Whole = 0


class Evaluate(Manifest):
    """Asks for the sums of the task's measures over the site's test rows.

    Args:
        round: that has ended.
        clients: of the site; if they keep tensors that never travel, each is measured with its own.
        with_answers: whether a language model answers prompts, too.
    """

    round: Whole
    clients: Annotated[list[ClientVersion], Field(max_length=_MAX_CLIENTS)] = []
    with_answers: bool = False


class Finish(Manifest):
    """Says that the run has ended."""


def read(kind: type[ManifestT], manifest: Mapping[str, Any]) -> ManifestT:
    """The manifest as a value whose types are right.

    Raises:
        PayloadError: a key is missing or has another value than expected; names the first.
    """
    try:
        return kind.model_validate(manifest)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        expectation = first["msg"].removeprefix("Value error, ")
        value = f"`{place}` is {safe_repr(first['input'])[:_NUM_SHOWN]}: " if place else ""
        value = f"`{place}` is missing: " if first["type"] == "missing" else value
        raise PayloadError(f"a message `{kind.__name__.lower()}` cannot be used: {value}{expectation}.") from error


def indexed(items: Sequence[Any], index: int, what: str) -> Any:
    """The item at `index`.

    Raises:
        PayloadError: there are not so many.
    """
    if index >= len(items):
        raise PayloadError(f"a message refers to {what} {index}, but has {len(items)}, numbered from 0.")
    return items[index]
