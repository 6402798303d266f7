"""The sections of the report's page, as HTML. Every value that comes from a run passes through `escape`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from html import escape
from statistics import median

import tomli_w

from fedelta.record.files import flatten
from fedelta.record.history import History
from fedelta.record.numbers import TIMES, UNKNOWN, bare, capitalised, count, duration, mebibytes, percent, shown, size
from fedelta.record.partition import Partition
from fedelta.report import plots
from fedelta.report.drawing import to_svg
from fedelta.report.elements import figure, legend, table
from fedelta.report.exits import read_exits
from fedelta.report.plots import (
    bytes_by_group,
    label_distribution,
    loss_by_round,
    measure_by_round,
    measure_by_traffic,
)

MAX_REJECTIONS = 100


def headline(run: History) -> str:
    """Name, what was done, and the key figures of one run."""
    measure = run.primary
    name = capitalised(f"{run.measured_on} {measure.label}")
    tiles = [
        (name, shown(run.final, measure), f"best {shown(run.best, measure)}"),
        *_exit_tiles(run),
        ("Tuned parameters", count(run.model.get("tuned_parameters")), _tuned_share(run)),
        ("Per client and round", size(per_client(run)), "down and up together"),
        ("Sent in total", size(run.ledger.total_bytes), _directions(run)),
        ("Saving", _saving(run), f"full fine-tuning: {size(run.full_model_bytes)}"),
        ("Time", duration(run.wall_seconds), f"peak memory {size(_peak_memory(run))}"),
    ]
    cells = "".join(
        f'<div><dt>{escape(name)}</dt><dd class="value">{escape(value)}</dd>'
        f'<dd class="detail">{escape(detail)}</dd></div>'
        for name, value, detail in tiles
    )
    title = f'<h1>{escape(run.name)}</h1>\n<p class="kicker">{_setting(run)}</p>'
    kind = "tiles" if len(tiles) == 6 else "tiles eight"
    return f'{title}\n{_state(run)}<dl class="{kind}">{cells}</dl>'


def misfits(runs: Sequence[History]) -> str:
    """What does not fit in the directories of the runs; nothing where all does."""
    rows = [[run.name, problem] for run in runs for problem in run.misfits]
    if not rows:
        return ""
    first = 0 if len(runs) > 1 else 1
    told = table(["Run", "What does not fit"][first:], [row[first:] for row in rows])
    text = "Some files are not as the run wrote them, and figures that come from them may be wrong."
    return f'<h2 class="unfinished">Files that do not fit</h2>\n<p class="unfinished">{escape(text)}</p>\n{told}'


def comparison(runs: Sequence[History]) -> str:
    """A table of several runs, and what their configurations do not share."""
    measure = runs[0].primary
    header = ["Run", "Rounds", capitalised(measure.label), "Best", "Tuned", "MiB per client and round"]
    header += ["MiB in total", "MiB if fully tuned", "Saving", "Time"]
    cheaper = any(map(_is_cheaper, runs))
    header += ["Relative cost"] if cheaper else []
    exits = any(run.by_exit for run in runs)
    header += ["Mean over exits"] if exits else []
    rows = [
        [
            run.name,
            f"{len(run.rounds)}" if run.finished else f"{len(run.rounds)} (unfinished)",
            shown(run.final, measure),
            shown(run.best, measure),
            count(run.model.get("tuned_parameters")),
            mebibytes(per_client(run)),
            mebibytes(run.ledger.total_bytes),
            mebibytes(run.full_model_bytes),
            _saving(run),
            duration(run.wall_seconds),
            *([percent(run.relative_cost)] if cheaper else []),
            *([shown(run.mean_over_exits, measure)] if exits else []),
        ]
        for run in runs
    ]
    parts = [f"<h1>{len(runs)} runs compared</h1>", table(header, rows, numbers_from=1)]
    differences = _differences(runs)
    if differences:
        parts += ["<h2>What differs</h2>", table(["Setting", *(run.name for run in runs)], differences)]
    return "\n".join(parts)


def curves(runs: Sequence[History]) -> str:
    """The primary measure against rounds and traffic, and losses."""
    if not any(run.rounds for run in runs):
        return "<h2>Results</h2>\n<p>No round is finished yet.</p>"
    names = legend([run.name for run in runs]) if len(runs) > 1 else ""
    known = any(run.full_round_bytes is not None for run in runs)
    note = "Dotted: where full fine-tuning in float32 would be after its first three rounds." if known else ""
    partial = any(run.has_partial_syncs for run in runs)
    synced = "Strong: rounds in which all groups were averaged; faint: all rounds." if partial else ""
    name, loss = (capitalised(each.label) for each in (runs[0].primary, runs[0].task.loss))
    by_round, by_traffic, losses = f"{name} against rounds", f"{name} against traffic", f"{loss} against rounds"
    figures = [
        figure(to_svg(measure_by_round(runs), "a", escape(by_round)), by_round, synced),
        figure(to_svg(measure_by_traffic(runs), "b", escape(f"{name} against MiB sent")), by_traffic, note),
        figure(to_svg(loss_by_round(runs), "c", escape(losses)), losses),
    ]
    if len(runs) == 1:
        figures.append(traffic(runs[0], "d", "Traffic by group and direction"))
    return f'<h2>Results</h2>\n{names}<div class="figures">{"".join(figures)}</div>'


def traffic(run: History, prefix: str, title: str) -> str:
    """Bytes by group and direction, and the cost of the backbone."""
    num_clients = len(run.ledger.client_ids)
    note = f"Once per client, beside this: the frozen backbone, {size(run.ledger.backbone_bytes)}"
    if num_clients:
        delivered = size(num_clients * run.ledger.backbone_bytes)
        took_part = "client" if num_clients == 1 else f"{count(num_clients)} clients"
        note += f"; {delivered} for the {took_part} that took part"
    return figure(to_svg(bytes_by_group(run), prefix, "MiB by group and direction"), title, f"{note}.")


def clients(partition: Partition, prefix: str, names: str = "") -> str:
    """Sizes and labels of the clients; `names` are the runs it belongs to, when there are several."""
    sizes = [sum(row) for row in partition.counts.values()]
    held = sorted(sum(each > 0 for each in row) for row in partition.counts.values())
    one, several = partition.kind
    holders = "1 client holds" if len(sizes) == 1 else f"{count(len(sizes))} clients hold"
    text = (
        f"{holders} {count(sum(sizes))} training examples of "
        f"{count(len(partition.class_names))} {several}: {count(min(sizes))} to {count(max(sizes))} examples and "
        f"{held[0]} to {held[-1]} {several} each (median {held[len(held) // 2]})."
    )
    svg = to_svg(label_distribution(partition), prefix, f"Examples and share of each {one} by client")
    title = f"Clients of {names}" if names else "Clients"
    return f'<h2>{escape(title)}</h2>\n<p>{escape(text)}</p>\n<figure><div class="wide">{svg}</div></figure>'


def participation(run: History, prefix: str, *, titled: bool) -> str:
    """What became of the clients that were asked, and how long rounds would have taken; nothing if all went well."""
    seconds = [each["simulated_seconds"] for each in run.rounds if each.get("simulated_seconds") is not None]
    lost = Counter(rejection["cause"] for record in run.rounds for rejection in record["rejections"])
    if not lost and not seconds:
        return ""
    asked = sum(len(record["cohort"]) for record in run.rounds)
    causes = ", ".join(f"{cause} {count(number)}" for cause, number in sorted(lost.items())) or "none lost"
    void = sum(record.get("num_examples") == 0 for record in run.rounds)
    text = f"Of {count(asked)} {'client' if asked == 1 else 'clients'} asked: {causes}."
    if void:
        text += f" {'1 round' if void == 1 else f'{count(void)} rounds'} did not count, for too few replies."
    if seconds:
        text += f" Simulated time: {duration(sum(seconds))} in all, {duration(median(seconds))} in the median round."
    title = f"Participation in {run.name}" if titled else "Participation"
    svg = to_svg(plots.participation(run), prefix, "What became of the clients asked, by round") if lost else ""
    return f'<h2>{escape(title)}</h2>\n<p>{escape(text)}</p>\n<figure><div class="wide">{svg}</div></figure>'


def rejections(runs: Sequence[History]) -> str:
    """Replies that did not enter the mean; nothing when there are none."""
    rows = [
        [run.name, str(record["round"]), run.client_label(each["client_id"]), str(each.get("reason"))]
        for run in runs
        for record in run.rounds
        for each in record["rejections"]
    ]
    if not rows:
        return ""
    more = f'<p class="note">and {count(len(rows) - MAX_REJECTIONS)} more.</p>' if len(rows) > MAX_REJECTIONS else ""
    header = ["Run", "Round", "Client", "Reason"]
    first = 0 if len(runs) > 1 else 1
    shown = table(header[first:], [row[first:] for row in rows[:MAX_REJECTIONS]])
    return f"<details><summary>Replies that did not enter the mean</summary>{shown}{more}</details>"


def details(run: History, *, titled: bool) -> str:
    """Configuration, environment and citations of one run, folded."""
    title = f"<h2>{escape(run.name)}</h2>" if titled else "<h2>Details</h2>"
    environment = [[name, value] for name, value in flatten(run.environment)]
    folded = [
        ("Configuration", f"<pre>{escape(tomli_w.dumps(run.config))}</pre>"),
        ("Environment", table(["What", "Value"], environment)),
        ("Citations", f"<pre>{escape(run.citations)}</pre>"),
    ]
    opened = "" if titled else " open"
    blocks = "".join(f"<details{opened}><summary>{name}</summary>{content}</details>" for name, content in folded)
    return f"{title}\n{blocks}"


def per_client(run: History) -> float | None:
    """Mean payload bytes of one client in one round, both directions; None before the first."""
    sent = run.ledger.transfers
    if not sent["down"] or not sent["up"]:
        return None
    return run.ledger.downlink_bytes / sent["down"] + run.ledger.uplink_bytes / sent["up"]


def _exit_tiles(run: History) -> list[tuple[str, str, str]]:
    """What the exits reach on average, and for their cost; nothing without exits."""
    exits = read_exits(run)
    if exits is None:
        return []
    number = count(len(exits.last))
    number += " exit" if number == "1" else " exits"
    measure = exits.measure
    ends = f"{bare(exits.last[0], measure)} to {shown(exits.last[-1], measure)}"
    note = "cost of exits not known" if exits.flops_area is None else f"mean {measure.label} over budgets"
    return [
        ("Mean over exits", shown(run.mean_over_exits, measure), f"{number}, {ends}"),
        ("Area over FLOPs", shown(exits.flops_area, measure), note),
    ]


def _setting(run: History) -> str:
    names = ("model.source", "tuning.name", "strategy.name", "data.source", "partition.name")
    words = [str(value) for name in names if (value := run.value(name)) is not None]
    return " · ".join(escape(word) for word in words)


def _state(run: History) -> str:
    planned = run.value("strategy.num_rounds")
    per_round = len(run.rounds[0]["cohort"]) if run.rounds else run.value("strategy.clients_per_round")
    num_clients = len(run.partition.counts) if run.partition else None
    of = f" of {count(num_clients)}" if num_clients else ""
    clients = "client" if (num_clients or per_round) == 1 else "clients"
    text = f"{per_round}{of} {clients} a round, begun {_date(run)}"
    if run.finished:
        return f'<p class="kicker">{len(run.rounds)} rounds, {escape(text)}</p>\n'
    done = f"Unfinished: {len(run.rounds)} of {planned} rounds. " if planned else "Unfinished. "
    return f'<p class="kicker"><span class="unfinished">{escape(done)}</span>{escape(text)}</p>\n'


def _date(run: History) -> str:
    """Day, hour and minute of ISO 8601, as `environment` writes it."""
    return str(run.environment.get("date", UNKNOWN))[:16].replace("T", " ")


def _tuned_share(run: History) -> str:
    tuned, total = run.model.get("tuned_parameters"), run.model.get("total_parameters")
    return f"{percent(tuned / total, 2)} of {count(total)}" if tuned is not None and total else UNKNOWN


def _directions(run: History) -> str:
    directions = f"{size(run.ledger.downlink_bytes)} down, {size(run.ledger.uplink_bytes)} up"
    return f"{directions}; relative cost {percent(run.relative_cost)}" if _is_cheaper(run) else directions


def _is_cheaper(run: History) -> bool:
    """Whether some groups travelled less often than every round."""
    return run.relative_cost is not None and run.relative_cost < 1


def _saving(run: History) -> str:
    full, sent = run.full_model_bytes, run.ledger.total_bytes
    if not full or not sent:
        return UNKNOWN
    ratio = full / sent
    return f"{ratio:,.0f} {TIMES}" if ratio >= 10 else f"{ratio:.1f} {TIMES}"


def _peak_memory(run: History) -> int | None:
    return max((timing.get("peak_memory_bytes") or 0 for timing in run.timings), default=None)


def _differences(runs: Sequence[History]) -> list[list[str]]:
    flat = [dict(flatten(run.config)) for run in runs]
    keys = dict.fromkeys(key for each in flat for key in each)
    rows = ([key, *(each.get(key, UNKNOWN) for each in flat)] for key in keys)
    return [row for row in rows if len(set(row[1:])) > 1]
