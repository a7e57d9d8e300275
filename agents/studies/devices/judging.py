"""From the cells of a device matrix to how every policy stands at every point, and what it keeps over all of them."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from agents.evaluation.points import Point
from agents.evaluation.standing import stand
from agents.studies.devices.records import FULL, Balance, Cell, Place, Standing


def standings_of(cells: Sequence[Cell], rivals: Sequence[str], deadlines: Mapping[str, float]) -> Iterator[Standing]:
    """Every policy at every point, by device, share and policy.

    Args:
        cells: every run.
        rivals: the policies of whom the best counts.
        deadlines: TBT deadline of each tier, s.
    """
    points: dict[tuple[str, float], dict[str, list[Point]]] = {}
    for cell in cells:
        points.setdefault((cell.profile, cell.share), {}).setdefault(cell.policy, []).append(cell.point)
    for (profile, share), found in points.items():
        for policy in found:
            yield Standing(profile=profile, share=share, **stand(policy, rivals, found, deadlines))


def balance_of(standings: Sequence[Standing], policy: str, reference: str) -> Balance:
    """What a policy keeps, against the best rival and against the deadlines that the reference keeps."""
    own = [row for row in standings if row.policy == policy]
    outcomes = Counter(row.outcome for row in own)
    due = set(_kept(standings, reference))
    kept = set(_kept(own, policy))
    return Balance(
        policy=policy,
        points=len(own),
        full=sum(row.rival_attainment.mean >= FULL for row in own),
        wins=outcomes["wins"],
        loses=outcomes["loses"],
        behind=tuple(row.place for row in own if row.is_behind),
        deadlines=len(due),
        late=tuple(sorted(due - kept)),
    )


def _kept(standings: Sequence[Standing], policy: str) -> Iterator[Place]:
    """The places whose deadline a policy keeps."""
    for row in standings:
        if row.policy == policy:
            yield from (Place(row.profile, row.share, tier) for tier in row.p99_itl_ms if tier not in row.late)
