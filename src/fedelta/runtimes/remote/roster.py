"""Who takes part in a run: each site is asked what it has, and the clients of all sites get their numbers.

Sites that serve parts of a partitioned data set name their clients by the numbers of the parts, which stay; so a
deployment draws the same cohorts and batches as a simulation of the same configuration. Clients with names (those of a
column, or a site that is one client) are numbered in ascending order of all names, as `data.partition.Natural` does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

from fedelta.data.clients import Clients, Name
from fedelta.errors import ConfigError, listed
from fedelta.runtimes.remote.answers import sums_in
from fedelta.runtimes.remote.post import Miss, Post
from fedelta.runtimes.remote.profiles import Invitation, Profile, describe
from fedelta.runtimes.remote.settings import Deployment
from fedelta.runtimes.remote.waiting import Watch, silent, wait_for
from fedelta.tasks.base import Sums

_SILENT = "{} share no sums over their targets, from which settings of the task would follow"
_SET_BY_HAND = "set in section `[task]` of the recipe what it leaves to the data."


@dataclass(frozen=True)
class Roster:
    """The sites of a run and their clients.

    Args:
        profiles: site to what it said.
        numbers: site to the numbers of its clients, by key.
    """

    profiles: Mapping[str, Profile]
    numbers: Mapping[str, Mapping[Name, int]]

    @cached_property
    def clients(self) -> Clients:
        """All clients, with names if they have some."""
        keys = {number: key for numbers in self.numbers.values() for key, number in numbers.items()}
        named = any(profile.is_natural for profile in self.profiles.values())
        return Clients.of(keys, keys if named else None)

    @cached_property
    def num_examples(self) -> dict[int, int]:
        """Client number to its training examples, ascending."""
        sizes = {
            number: self.profiles[site].num_examples[key]
            for site, numbers in self.numbers.items()
            for key, number in numbers.items()
        }
        return dict(sorted(sizes.items()))

    @cached_property
    def site_of(self) -> dict[int, str]:
        """Client number to its site."""
        return {number: site for site, numbers in self.numbers.items() for number in numbers.values()}

    @cached_property
    def class_names(self) -> tuple[str, ...]:
        """The classes of all sites: as all sites name them if they agree, else the union, sorted."""
        lists = {profile.class_names for profile in self.profiles.values()}
        if len(lists) == 1:
            return next(iter(lists))
        union = {name for names in lists for name in names}
        # The order of a site that has all classes is that of its data set.
        whole_lists = sorted(names for names in lists if set(names) == union)
        return whole_lists[0] if len(whole_lists) == 1 else tuple(sorted(union))

    @property
    def statistics(self) -> Sums:
        """The sums over the targets of all clients (`Task.statistics`).

        Raises:
            ConfigError: some sites share theirs, and some do not.
        """
        silent_sites = [site for site, profile in self.profiles.items() if not profile.statistics.totals]
        if silent_sites and len(silent_sites) < len(self.profiles):
            raise ConfigError([_SILENT.format(listed(silent_sites))], origin="the sites", hint=_SET_BY_HAND)
        return sum((self.profiles[site].statistics for site in sorted(self.profiles)), Sums())

    def as_record(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            site: {
                "clients": [
                    [self.numbers[site][key], key, num_examples] for key, num_examples in profile.num_examples.items()
                ],
                "class_names": list(profile.class_names),
                "is_natural": profile.is_natural,
                "num_test_examples": profile.num_test_examples,
                **({"statistics": profile.statistics.totals} if profile.statistics.totals else {}),
                **({"num_skipped": profile.num_skipped} if profile.num_skipped else {}),
            }
            for site, profile in self.profiles.items()
        }

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Roster:
        """The inverse of `as_record`."""
        profiles = {
            site: Profile(
                tuple(values["class_names"]),
                {key: num_examples for _, key, num_examples in values["clients"]},
                values["is_natural"],
                values["num_test_examples"],
                sums_in(values.get("statistics", {}), "statistics"),
                values.get("num_skipped", 0),
            )
            for site, values in record.items()
        }
        return cls(
            profiles, {site: {key: number for number, key, _ in values["clients"]} for site, values in record.items()}
        )


def gather(post: Post, settings: Deployment, invitation: Invitation, watch: Watch = silent) -> Roster:
    """Waits for sites, asks what they have, and numbers their clients.

    All registered sites take part if they come in time, at least `min_sites` must.

    Args:
        post: exchanges messages.
        settings: how many sites, and how long to wait.
        invitation: what the sites are told.
        watch: called while the server waits.

    Raises:
        ConfigError: too few sites came; or a site does not fit the run, which is then not begun: names the site.
    """
    sites = wait_for(post, settings.start_seconds, settings.min_sites, watch, for_all=True)
    if len(sites) < settings.min_sites:
        raise _too_few(post, settings, sites)
    profiles: dict[str, Profile] = {}
    misses: dict[str, Miss] = {}
    for site, result in post.exchange({site: partial(describe, invitation) for site in sites}):
        if isinstance(result, Miss):
            misses[site] = result
        else:
            profiles[site] = result
            post.book.described(site)
    refuse_misfits({site: miss.reason for site, miss in misses.items() if miss.state == "refused"})
    if len(profiles) < settings.min_sites:
        problems = [f"site {site!r}: {miss.reason}" for site, miss in sorted(misses.items())]
        raise ConfigError(
            [f"{len(profiles)} sites can take part, `deployment.min_sites` is {settings.min_sites}", *problems],
            origin="the sites",
            hint="look into the log of each site.",
        )
    return numbered(dict(sorted(profiles.items())))


def numbered(profiles: Mapping[str, Profile]) -> Roster:
    """The roster of sites that have described themselves.

    Raises:
        ConfigError: two sites have the same client, or some have names and some have numbers for their clients.
    """
    natural = [site for site, profile in profiles.items() if profile.is_natural]
    if natural and len(natural) < len(profiles):
        other = next(site for site in profiles if site not in natural)
        problem = (
            f"site {natural[0]!r} has clients of its own, and site {other!r} serves parts of a partitioned data set "
            "(`clients` in its site.toml)"
        )
        raise ConfigError([problem], origin="the sites", hint="all sites must do the same.")
    _refuse_shared_clients(profiles)
    keys = [key for profile in profiles.values() for key in profile.num_examples]
    if not natural:
        return Roster(profiles, {site: {key: int(key) for key in p.num_examples} for site, p in profiles.items()})
    number_of = {key: number for number, key in enumerate(_ascending(keys))}
    return Roster(profiles, {site: {key: number_of[key] for key in p.num_examples} for site, p in profiles.items()})


def _ascending(keys: Sequence[Name]) -> list[Name]:
    """Whole numbers by value, texts alphabetically; where both occur, all as texts."""
    numbers = [key for key in keys if isinstance(key, int)]
    return [*sorted(numbers)] if len(numbers) == len(keys) else sorted(keys, key=str)


def _refuse_shared_clients(profiles: Mapping[str, Profile]) -> None:
    problems, site_of = [], dict[str, str]()
    for site, profile in profiles.items():
        for key in profile.num_examples:
            first = site_of.setdefault(str(key), site)
            if first != site:
                problems.append(f"sites {first!r} and {site!r} both have a client {key!r}")
    if problems:
        more = [f"and {len(problems) - 10} more"] if len(problems) > 10 else []
        is_natural = any(profile.is_natural for profile in profiles.values())
        hint = (
            "clients are told apart by their names: rename them in the data of one of the sites."
            if is_natural
            else "give each client to one site: `clients` in site.toml."
        )
        raise ConfigError(problems[:10] + more, origin="the sites", hint=hint)


def refuse_misfits(reasons: Mapping[str, str]) -> None:
    """Raises if there are reasons.

    Raises:
        ConfigError: names each site with its reason.
    """
    if reasons:
        problems = [f"site {site!r}: {reason}" for site, reason in sorted(reasons.items())]
        hint = (
            "correct the recipe; or what the site reads, and start it again; or go without it: take its key out of the "
            "server's folder `sites`."
        )
        raise ConfigError(problems, origin="the sites", hint=hint)


def _too_few(post: Post, settings: Deployment, present: Sequence[str]) -> ConfigError:
    names = post.book.names
    missing = sorted(set(names) - set(present))
    registered = f"{len(names)} are registered" + (f", missing: {', '.join(missing)}" if missing else "")
    problem = (
        f"{len(present)} sites were connected after {settings.start_seconds:g} s, `deployment.min_sites` is "
        f"{settings.min_sites}; {registered}"
    )
    return ConfigError(
        [problem],
        origin="the sites",
        hint="start the missing sites (`fedelta site run`), raise `deployment.start_seconds`, or lower "
        "`deployment.min_sites`.",
    )
