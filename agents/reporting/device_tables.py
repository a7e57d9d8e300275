"""The device matrix as tables, for the terminal and as one HTML file."""

import math
from collections.abc import Iterator, Sequence

from rich.text import Text

from agents.evaluation.standing import BEHIND, OUTCOMES
from agents.reporting.grid import OUTCOME_STYLES, Cell, Grid, Head, Part, figure, markdown_table
from agents.reporting.page import page
from agents.studies.devices.records import FULL, Balance, Device, DeviceMatrix, Place, Standing
from engine.device.latency import CHANGES
from engine.spec import Spec


def _percent(value: float | None, form: str = "+.1f") -> str:
    return "-" if value is None else figure(100.0 * value, form)


def _difference(row: Standing) -> str:
    """The difference to the best rival in percent of its goodput, with the interval."""
    if row.relative is None:
        return figure(row.difference.mean, "+.3f")
    gap = row.difference
    share = row.relative / gap.mean if gap.mean else 0.0
    text = _percent(row.relative)
    return f"{text} [{_percent(share * gap.low)}, {_percent(share * gap.high)}]" if gap.low < gap.high else text


def _late(row: Standing) -> str:
    return f"late: {', '.join(row.late)}" if row.late else ""


def _title(device: Device) -> str:
    if not device.capacity.mean:
        return f"{device.profile}: no policy meets the sound criterion at any load"
    low, high = min(device.by_seed), max(device.by_seed)
    over = f" ({low:.3g} to {high:.3g} by seed)" if low < high else ""
    best = ", ".join(dict.fromkeys(device.best))
    return (
        f"{device.profile}: capacity {device.capacity.mean:.3g} requests/s{over}, bound {device.bound:.3g}; "
        f"best: {best}; {device.num_blocks} KV blocks"
    )


def matrix_grid(result: DeviceMatrix) -> Grid:
    """Where each policy wins, ties and loses, and whose deadline it breaks: a part for each device."""
    parts = [Part(_rows(result.on(device.profile)), _title(device)) for device in result.devices]
    heads = (Head("load", "name"), Head("req/s", "number", 1), *(Head(policy) for policy in result.policies))
    caption = (
        f"Goodput (requests/s that met every deadline) against the best of {', '.join(result.rivals)} other than the "
        "policy, %, with 95 % intervals over the seeds: green wins, red loses. Load: share of the device's capacity. "
        "late: tiers whose p99 TBT, mean over the seeds, is over their deadline"
    )
    return Grid(heads, parts, caption)


def _by_share(rows: Sequence[Standing]) -> dict[float, list[Standing]]:
    found: dict[float, list[Standing]] = {}
    for row in rows:
        found.setdefault(row.share, []).append(row)
    return found


def _rows(standings: Sequence[Standing]) -> list[tuple[Cell, ...]]:
    return [
        (f"{share:g}", f"{rows[0].rate:.3g}", *(Text(_cell(row), OUTCOME_STYLES[row.outcome]) for row in rows))
        for share, rows in _by_share(standings).items()
    ]


def _cell(row: Standing) -> str:
    return f"{_difference(row)} ({_late(row)})" if row.late else _difference(row)


def numbers_grid(result: DeviceMatrix) -> Grid:
    """The numbers behind the matrix: a part for each device, a row for each load and policy."""
    heads = (
        *(Head("load", "name"), Head("policy", "name"), Head("SLO met, %"), Head("goodput, req/s")),
        *(Head("best rival", "name", 1), Head("difference, %"), Head("TTFT median, s"), Head("TTFT p99, s")),
        *(Head(f"TBT p99 {tier}, s ({deadline:g})") for tier, deadline in result.tiers.items()),
        Head("sound", "number", 1),
    )
    return Grid(heads, [_numbers(result, device) for device in result.devices])


def _numbers(result: DeviceMatrix, device: Device) -> Part:
    standings = result.on(device.profile)
    each = len(result.policies)
    ends = frozenset(range(each - 1, len(standings), each))
    return Part([_line(row, result.seeds) for row in standings], _title(device), ends)


def _line(row: Standing, seeds: int) -> tuple[Cell, ...]:
    gaps = [
        Text(figure(gap.mean / 1000.0, ".3f"), "red" if tier in row.late else "")
        for tier, gap in row.p99_itl_ms.items()
    ]
    waits = (figure(value.mean / 1000.0, ".3f") for value in (row.median_ttft_ms, row.p99_ttft_ms))
    met, goodput = _percent(row.slo_attainment.mean, ".1f"), figure(row.slo_goodput.mean, ".3f")
    names = (f"{row.share:g}", row.policy, met, goodput, row.rival)
    return (*names, Text(_difference(row), OUTCOME_STYLES[row.outcome]), *waits, *gaps, f"{row.sound}/{seeds}")


def balance_grid(result: DeviceMatrix) -> Grid:
    """How often each policy wins, ties and loses, and what it does not keep."""
    heads = (Head("policy", "name"), *map(Head, OUTCOMES), Head(f"over {BEHIND:.0%} behind"), Head("late"))
    rows = [
        (one.policy, *map(str, (one.wins, one.ties, one.loses, len(one.behind), len(one.late))))
        for one in result.balances
    ]
    points, due = result.balances[0].points, result.balances[0].deadlines
    caption = f"Of {points} devices and loads; late: of {due} of them and tiers where {result.reference} is in time"
    return Grid(heads, [Part(rows, "Over all devices and loads")], caption)


def balance_lines(result: DeviceMatrix) -> Iterator[str]:
    """What is asked of the policies, a line for each: deadlines, goodput, and how changes of a device move it."""
    for balance in result.balances:
        if balance.policy != result.reference and balance.deadlines:
            yield _deadlines(balance, result.reference)
    for balance in result.balances:
        if balance.policy not in result.rivals:
            yield _goodput(balance, result)
    yield from _changes(result)


def _deadlines(balance: Balance, reference: str) -> str:
    kept = balance.deadlines - len(balance.late)
    return (
        f"Deadlines: {balance.policy} keeps p99 TBT within the tier's at {kept} of the {balance.deadlines} points and "
        f"tiers where {reference} does{_misses(balance.late)}."
    )


def _goodput(balance: Balance, result: DeviceMatrix) -> str:
    kept = balance.points - len(balance.behind)
    return (
        f"Goodput: {balance.policy} is not more than {BEHIND:.0%} below the best of {', '.join(result.rivals)} at "
        f"{kept} of {balance.points} points{_misses(balance.behind)}; higher for sure at {balance.wins}, lower for "
        f"sure at {balance.loses}; at {balance.full} that best meets {FULL:.1%} of all deadlines or more."
    )


def _misses(places: Sequence[Place]) -> str:
    """The places that miss something, device by device."""
    if not places:
        return ""
    found: dict[str, list[str]] = {}
    for place in places:
        found.setdefault(place.profile, []).append(f"{place.share:g}{f' {place.tier}' if place.tier else ''}")
    return " (misses " + "; ".join(f"{profile} at {', '.join(loads)}" for profile, loads in found.items()) + ")"


def _changes(result: DeviceMatrix) -> Iterator[str]:
    """How often each policy that is no rival wins and loses on each variant of one device."""
    variants: dict[str, list[str]] = {}
    for device in result.devices:
        variants.setdefault(Spec.of_place(device.profile, tuple(CHANGES)).name, []).append(device.profile)
    for name, profiles in variants.items():
        for policy in (policy for policy in result.policies if policy not in result.rivals):
            if len(profiles) > 1:
                yield f"Sensitivity: {policy} on {name}, {'; '.join(_tally(result, one, policy) for one in profiles)}."


def _tally(result: DeviceMatrix, profile: str, policy: str) -> str:
    change = Spec.of_place(profile, tuple(CHANGES)).rest or "as it is"
    rows = [row for row in result.on(profile) if row.policy == policy]
    gains = [row.relative for row in rows if row.relative is not None]
    mean = sum(gains) / len(gains) if gains else math.nan
    wins, loses = (sum(row.outcome == word for row in rows) for word in ("wins", "loses"))
    return f"{change}: {_percent(mean)} %, wins {wins} and loses {loses} of {len(rows)}"


def markdown_text(result: DeviceMatrix) -> str:
    """Two tables for a page: the differences of each policy on each device, %, load by load, and what each keeps."""
    loads = ", ".join(f"{share:g}" for share in _shares(result))
    note = f"At {loads} of the capacity; * the 95 % interval excludes zero; ! p99 TBT of a tier over its deadline."
    balance = balance_grid(result)
    (part,) = balance.parts
    kept = markdown_table([head.title for head in balance.heads], part.rows)
    rows = [_device_row(result, device) for device in result.devices]
    return (
        "\n\n".join([markdown_table(["device", "capacity", *result.policies], rows), note, kept, balance.caption])
        + "\n"
    )


def _shares(result: DeviceMatrix) -> list[float]:
    return list(dict.fromkeys(row.share for row in result.standings))


def _device_row(result: DeviceMatrix, device: Device) -> list[str]:
    """A device and its capacity, then each policy: nothing where the device carries nothing."""
    rows = {(row.policy, row.share): row for row in result.on(device.profile)}
    places = [[rows.get((policy, share)) for share in _shares(result)] for policy in result.policies]
    cells = (" / ".join(_short(row) for row in found if row) for found in places)
    return [f"`{device.profile}`", figure(device.capacity.mean, ".3g"), *cells]


def _short(row: Standing) -> str:
    return f"{_percent(row.relative)}{'' if row.outcome == 'ties' else '*'}{'!' if row.late else ''}"


def html_text(result: DeviceMatrix) -> str:
    """The matrix as one HTML file without outside references.

    Raises:
        InputError: what draws reports is not installed.
    """
    notes = dict.fromkeys(note for device in result.devices for note in device.notes)
    return page(
        "devices.html",
        result=result,
        balance=balance_grid(result),
        lines=list(balance_lines(result)),
        matrix=matrix_grid(result),
        numbers=numbers_grid(result),
        notes=list(notes),
    )
