"""Ready-made questions in SQL: ``attnstore sql --list``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from attnstore.store.errors import NotFoundError


@dataclass(frozen=True, slots=True)
class NamedQuery:
    """A question and the SQL that answers it."""

    name: str
    question: str
    sql: str


_QUERIES = (
    NamedQuery(
        "most-active-heads",
        "Which heads have the largest variance on each camera, over all episodes?",
        """\
with last as (select phase, max(step) as step from episode_stats group by phase),
     heads as (
       select phase, camera, layer, head, avg(variance_mean) as variance,
              avg(entropy_mean) as entropy, avg(camera_mass_mean) as on_image
       from episode_stats join last using (phase)
       where episode_stats.step is not distinct from last.step
       group by phase, camera, layer, head)
select * from heads
qualify row_number() over (partition by phase, camera order by variance desc) <= 5
order by phase, camera, variance desc""",
    ),
    NamedQuery(
        "camera-by-layer",
        "Where does each layer look: which camera, and how much of it is padding?",
        """\
select phase, layer, camera,
       avg(camera_mass_mean) as on_image, avg(letterbox_mass_mean) as on_padding
from episode_stats
group by all
order by phase, layer, camera""",
    ),
    NamedQuery(
        "sink-heads",
        "Which heads pour their attention into one key in nearly every keyframe?",
        """\
select phase, step, layer, head, span, text, camera, "row", col,
       count(*) as episodes, avg(mass) as mass
from sinks
group by all
order by mass desc""",
    ),
    NamedQuery(
        "padding-mass",
        "How much attention does black padding draw, by camera and outcome?",
        """\
select phase, camera, outcome,
       avg(letterbox_mass_mean) as on_padding, max(letterbox_mass_max) as largest
from episode_stats join episodes using (run, episode)
group by all
order by on_padding desc""",
    ),
    NamedQuery(
        "largest-drift",
        "In which episodes does the attention wander most from keyframe to keyframe?",
        """\
select name, outcome, phase, camera, avg(drift_mean) as drift
from episode_stats join episodes using (run, episode)
where drift_mean is not null
group by all
order by drift desc
limit 20""",
    ),
    NamedQuery(
        "step-drift",
        "How much do the maps change between denoising steps, by layer?",
        """\
select camera, step, layer, avg(step_drift_mean) as step_drift
from episode_stats
where step_drift_mean is not null
group by all
order by camera, step, layer""",
    ),
    NamedQuery(
        "confident-heads",
        "Which heads put the most weight on a single key?",
        """\
select phase, layer, head, avg(confidence_mean) as confidence
from episode_stats
group by all
order by confidence desc
limit 20""",
    ),
)

NAMED: Mapping[str, NamedQuery] = MappingProxyType({q.name: q for q in _QUERIES})


def named_query(name: str) -> NamedQuery:
    """Find a ready-made query.

    Raises
    ------
    NotFoundError
        If there is none of that name; the message lists them.
    """
    try:
        return NAMED[name]
    except KeyError:
        raise NotFoundError(f"no query {name!r}; there are: {', '.join(NAMED)}") from None
