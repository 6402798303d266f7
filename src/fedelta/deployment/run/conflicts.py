"""What a configuration can ask for in a simulation only."""

from __future__ import annotations

from fedelta.assembly.server_model import NO_TEST_SET, lacking_test
from fedelta.config import Config
from fedelta.errors import ConfigError
from fedelta.runtimes.stability import Stability


def refuse_conflicts(config: Config) -> None:
    """Refuses a configuration that cannot be deployed; reads no data.

    Raises:
        ConfigError: every problem in one message.
    """
    problems, hints = [], []
    if config.stability != Stability():
        problems.append("`[stability]` simulates failures, and a deployment has real ones")
        hints.append("leave `[stability]` out.")
    if config.personalization.num_held_out:
        problems.append("`[personalization]` holds clients out, but sites take part with all of their clients")
        hints.append("leave `personalization.held_out` and `held_out_clients` out.")
    if config.model.batch_norm == "local" and config.model.adapter is not None:
        problems.append("`model.adapter` has norms, but with `model.batch_norm` = 'local' sites begin with their own")
        hints.append("leave one of the two out.")
    if config.deployment.evaluate == "server":
        without_test = lacking_test(config.data)
        if config.model.batch_norm == "local":
            without_test.append("`model.batch_norm` is 'local', so that only the clients have whole models")
        if config.aggregation.keeps is not None:
            without_test.append(
                f"`aggregation.name` is {config.aggregation.name!r}, so that only the clients have whole models"
            )
        problems += without_test
        hints += [NO_TEST_SET] if without_test else []
    if problems:
        raise ConfigError(problems, origin="a configuration to be deployed", hint=" ".join(hints))
