"""What the server and a site must agree on before a site trains: otherwise they would compute different things."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fedelta.runtimes.remote.answers import one_line
from fedelta.runtimes.remote.messages import Message
from fedelta.runtimes.remote.roster import Roster
from fedelta.tuning.identity import unlike

_NUM_SHOWN = 12  # digits of a digest


@dataclass(frozen=True)
class Terms:
    """The server's side of the agreement.

    Args:
        run: id of the run.
        class_names: the classes of the run, in label order; sites map their labels by name.
        fingerprint: of every tensor that can travel (`Federation.wire`), in hexadecimal digits.
        identity: digests of the base model (tuning/identity.py).
        task: name of the task.
        depths: client number to the number of blocks that it runs; None if all run the whole model.
        noise_multiplier: of the section `[privacy]`, given or calculated for the target; None without that section.
        settled: section `[task]` with the settings that follow from the data of all sites; empty: as in the recipe.
    """

    run: str
    class_names: tuple[str, ...]
    fingerprint: str
    identity: Mapping[str, str]
    task: str
    depths: Mapping[int, int] | None = None
    noise_multiplier: float | None = None
    settled: Mapping[str, Any] = field(default_factory=dict)  # Any: JSON values

    def message(self, roster: Roster, site: str) -> Message:
        """What is sent to a site."""
        numbers = roster.numbers[site]
        depths = None if self.depths is None else [[number, self.depths[number]] for number in numbers.values()]
        manifest = {
            "run": self.run,
            "class_names": list(self.class_names),
            "clients": [[number, key] for key, number in numbers.items()],
            "depths": depths,
            "num_clients": len(roster.clients.numbers),
            "noise_multiplier": self.noise_multiplier,
            "task": dict(self.settled),
        }
        return Message("prepare", manifest)

    def problems(self, manifest: Mapping[str, Any]) -> list[str]:
        """In which points the answer of a site differs, naming both sides."""
        problems = []
        if manifest.get("task") != self.task:
            problems.append(f"its task is {manifest.get('task')!r:.40}, the server's is {self.task!r}")
        identity = manifest.get("identity")
        theirs = identity if isinstance(identity, dict) else {}
        for part in unlike(self.identity, theirs):
            digest = one_line({part: str(theirs.get(part, "missing"))}, part)[:_NUM_SHOWN]
            ours = self.identity[part][:_NUM_SHOWN]
            problems.append(f"its {part} are not those of the server: digest {digest}, the server's is {ours}")
        if not problems and manifest.get("fingerprint") != self.fingerprint:
            theirs_text = f"{manifest.get('fingerprint')!r:.40}"
            problems.append(
                f"it tunes other tensors: fingerprint {theirs_text}, the server's is {self.fingerprint!r}; compare the "
                "versions of the libraries"
            )
        return problems
