"""What protects a site's clients in a run: noise that only the site knows, and a limit that only the site sets.

A recipe says what is protected and how strongly (merging.py refuses one that does less than the site insists on). The
noise comes from the site's own key, and what would release more about a client than the site allows is not trained.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from fedelta.config import Config
from fedelta.deployment.site.account import Account, Due, Limit
from fedelta.deployment.site.requests import Prepare, Train, Trainee
from fedelta.deployment.site.settings import SiteSettings
from fedelta.durable import only_owner_may_read, write_secret
from fedelta.errors import InputError
from fedelta.federation.client import Site
from fedelta.federation.memory import Memory
from fedelta.params import ParamSpec, bytes_of, digest_of
from fedelta.privacy.guarantee import Guarantee, Work
from fedelta.privacy.local import SitePrivacy
from fedelta.privacy.randomness import KEY_BYTES, Secret, Seeded, new_key
from fedelta.privacy.state import PrivacyState, Release

logger = logging.getLogger("fedelta")

KEY = "privacy.key"


def site_privacy(config: Config, request: Prepare, settings: SiteSettings) -> SitePrivacy | None:
    """How what the site's clients send in a run is made private; None if the recipe protects nothing.

    Raises:
        InputError: the server's noise does not fit the recipe; or the site's key is missing or open to others.
    """
    privacy, noise = config.privacy, request.noise_multiplier
    if not privacy.is_on:
        return None
    if noise is None or privacy.noise_multiplier not in (None, noise):
        raise InputError(
            f"the recipe has `privacy.unit` = {privacy.unit!r} and `privacy.noise_multiplier` = "
            f"{privacy.noise_multiplier}, but the server names the noise multiplier {noise}.",
            hint="the server and the site need the same version of fedelta.",
        )
    if privacy.randomness == "seeded":
        logger.warning("`privacy.randomness` is 'seeded': whoever has the recipe can take the noise out again.")
        return SitePrivacy(privacy, noise, Seeded(config.seed))
    return SitePrivacy(privacy, noise, _secret(Path(settings.state), settings).below("run", request.run))


def refuse_statistics(config: Config, spec: ParamSpec) -> None:
    """Raises if a private run sends running statistics, which are values of the data without noise.

    Raises:
        InputError: names the first.
    """
    if config.privacy.is_on and spec.statistics:
        raise InputError(
            f"the recipe has `privacy.unit` = {config.privacy.unit!r}, but {len(spec.statistics)} running statistics "
            f"of batch norms would travel, first `{spec.statistics[0]}`.",
            hint="set `model.batch_norm` to 'local' or 'group'.",
        )


def account_of(settings: SiteSettings) -> Account:
    """The site's account."""
    limit = Limit(settings.privacy.max_delta, settings.privacy.max_epsilon, is_shared=settings.is_partition)
    return Account(Path(settings.state), limit)


@dataclass(frozen=True)
class Protection:
    """Lets clients train as far as the site allows it.

    Args:
        privacy: of the run.
        account: of the site.
        prepare: the site's part in the run.
        recipe: the recipe, as the site reads it.
    """

    privacy: SitePrivacy
    account: Account
    prepare: Prepare
    recipe: str

    @property
    def counts(self) -> bool:
        """Whether the site itself makes its clients' uploads private, so that there is something to count."""
        settings = self.privacy.settings
        is_by_site = settings.unit in ("example", "local") and settings.mechanism == "gaussian"
        return is_by_site and self.privacy.randomness.is_secure

    def admit(
        self, site: Site, request: Train, downloads: list[bytes], memories: Mapping[int, Memory]
    ) -> tuple[SitePrivacy, set[int]]:
        """The privacy of a round's work, and the clients that may train; what they release is counted already.

        Args:
            site: of the run.
            request: the message.
            downloads: its blobs.
            memories: client number to what it keeps, for the clients that could train.
        """
        able = [client for client in request.clients if client.id in memories]
        starts = {client.id: (downloads[client.download], memories[client.id]) for client in able}
        occasions = {client.id: self._occasion(site, request, client, *starts[client.id]) for client in able}
        privacy = replace(self.privacy, occasions=occasions)
        if not self.counts:
            return privacy, set(occasions)
        keys = {number: str(key) for number, key in self.prepare.clients}
        dues = {keys[number]: Due(self._releases(site, number), occasion) for number, occasion in occasions.items()}
        admitted = self.account.admit(request.run, dues)
        return privacy, {number for number in occasions if keys[number] in admitted}

    def _releases(self, site: Site, number: int) -> Mapping[Release, int]:
        """What the training of a client releases about it."""
        client, size = site.engine.client, len(site.partition[number])
        work = {number: Work(client.sampling_rate(size), client.num_steps(size))}
        guarantee = Guarantee(self.privacy.settings, self.privacy.noise_multiplier, work=work)
        return guarantee.after(PrivacyState(), 1, [number]).spent[str(number)]

    def _occasion(self, site: Site, request: Train, client: Trainee, download: bytes, memory: Memory) -> str:
        """A digest of all that the training of a client starts from; of its data, which rows they are."""
        known = [self.recipe, self.prepare.model_dump(mode="json"), request.round, request.num_clients]
        known += [client.model_dump(mode="json", exclude={"download", "upload", "remembered"})]
        known += [request.uploads[client.upload], digest_of(memory.flat())]
        digest = hashlib.sha256(json.dumps(known).encode())
        digest.update(bytes_of(site.partition[client.id]))
        digest.update(download)
        return digest.hexdigest()


def _secret(state: Path, settings: SiteSettings) -> Secret:
    """The streams of the site's key, which is made when it is needed first.

    Raises:
        InputError: others may read it, it is damaged, or what it has been used for is not known any more.
    """
    path, account = state / KEY, account_of(settings)
    if not path.exists():
        if account.path.exists():
            logger.warning("the site's key for noise is lost; a message that comes again is counted again.")
            account.forget_occasions()
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
        account.start()  # before the key: a key without an account has lost it
        write_secret(path, new_key())
    elif not account.path.exists() and settings.privacy.max_epsilon is not None:
        raise InputError(
            "the site's account of what it has released is lost, so that it can release nothing more.",
            hint=f"bring it back from a copy; if it may begin anew at 0, delete {KEY} in the state folder too.",
        )
    if not only_owner_may_read(path):
        raise InputError("others than its owner may read the site's key for noise.", hint=f"chmod 600 {KEY}")
    key = path.read_bytes()
    if len(key) != KEY_BYTES:
        raise InputError(
            f"the site's key for noise has {len(key)} bytes, expected {KEY_BYTES}.",
            hint=f"delete {KEY} in the state folder; a new one is made.",
        )
    return Secret(key)
