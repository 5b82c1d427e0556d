"""Ready-made questions in SQL: ``attnstore sql --list``.

Every answer is per run, since runs are different policies, and at the step that stands for the phase
(macro ``stands_for_phase``) unless it has a row for each step.
"""

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

    @property
    def needs(self) -> str:
        """What brings the rows that it is about; empty if every ingest does."""
        return self.question.partition("Needs ")[2].rstrip(".")


_RATED = """\
with regions as (
       select run, part, target, detail, camera, phase, layer, query_group,
              count(distinct episode) as episodes, avg(area) as area,
              avg(attention) / nullif(avg(area), 0) as lift, avg(si_mse) as effect
       from ledger
       where target in ('cell', 'object')
       group by all),
     rated as (
       select *, effect / nullif(area, 0)
                 / nullif(avg(effect / nullif(area, 0)) over alike, 0) as effect_lift
       from regions
       window alike as (partition by run, part, target, camera, phase, layer,
                                     query_group))
"""
"""Regions with attention and effect, both relative to area."""

_QUERIES = (
    NamedQuery(
        "most-active-heads",
        "Which head of each layer has the largest variance on each camera, over all episodes? "
        "Variance of the mean maps over the patches that show image; lab_head is the head of the "
        "largest variance over the whole grid, letterbox included.",
        """\
with heads as (
       select run, phase, query_group, camera, layer, head, count(*) as episodes,
              avg(variance_mean) as variance, avg(grid_variance_mean) as grid_variance,
              avg(entropy_mean) as entropy, avg(camera_mass_mean) as on_image
       from episode_stats
       where variant = 'base' and weighting = 'raw' and stands_for_phase(run, phase, step)
       group by all),
     active as (
       select run, phase, query_group, camera, layer, active_head(head, variance) as head,
              active_head(head, grid_variance) as lab_head
       from heads
       group by all)
select run, phase, query_group, camera, layer, head, variance, entropy, on_image, episodes,
       lab_head
from heads join active using (run, phase, query_group, camera, layer, head)
order by run, phase, query_group, camera, layer""",
    ),
    NamedQuery(
        "camera-by-layer",
        "Where does each layer look: which camera, and how much of it is padding?",
        """\
select run, phase, query_group, layer, camera,
       avg(camera_mass_mean) as on_image, avg(letterbox_mass_mean) as on_padding
from episode_stats
where variant = 'base' and weighting = 'raw' and stands_for_phase(run, phase, step)
group by all
order by run, phase, query_group, layer, camera""",
    ),
    NamedQuery(
        "sink-heads",
        "Which heads pour their attention into one key in nearly every keyframe? With weighting value: "
        "and something is carried from it.",
        """\
select run, weighting, phase, step, layer, head, span, text, camera, "row", col,
       count(*) as episodes, avg(mass) as mass
from sinks
where variant = 'base'
group by all
order by run, weighting, mass desc, phase, step, layer, head""",
    ),
    NamedQuery(
        "padding-mass",
        "How much attention does black padding draw, by camera and outcome?",
        """\
select run, phase, query_group, camera, outcome,
       avg(letterbox_mass_mean) as on_padding, max(letterbox_mass_max) as largest
from episode_stats join episodes using (run, episode)
where variant = 'base' and weighting = 'raw' and stands_for_phase(run, phase, step)
group by all
order by run, on_padding desc, phase, query_group, camera, outcome""",
    ),
    NamedQuery(
        "largest-drift",
        "In which episodes does the attention wander most from keyframe to keyframe?",
        """\
with drifts as (
       select run, name, outcome, phase, query_group, camera, avg(drift_mean) as drift
       from episode_stats join episodes using (run, episode)
       where variant = 'base' and weighting = 'raw' and stands_for_phase(run, phase, step)
             and drift_mean is not null
       group by all)
from drifts
qualify row_number() over (partition by run order by drift desc, name, phase, camera) <= 20
order by run, drift desc, name, phase, camera""",
    ),
    NamedQuery(
        "step-drift",
        "How much do the maps change between denoising steps, by layer?",
        """\
select run, phase, query_group, camera, step, layer, avg(step_drift_mean) as step_drift
from episode_stats
where variant = 'base' and weighting = 'raw' and step_drift_mean is not null
group by all
order by run, phase, query_group, camera, step, layer""",
    ),
    NamedQuery(
        "confident-heads",
        "Which heads put the most weight on a single key?",
        """\
with heads as (
       select run, phase, query_group, layer, head, avg(confidence_mean) as confidence
       from episode_stats
       where variant = 'base' and weighting = 'raw' and stands_for_phase(run, phase, step)
       group by all)
from heads
qualify row_number() over (partition by run order by confidence desc, phase, query_group, layer,
                                                     head) <= 20
order by run, confidence desc, phase, query_group, layer, head""",
    ),
    NamedQuery(
        "massive-activations",
        "Which tokens' hidden states are at least 10 times as long as their layer's median "
        "(massive activations, Sun et al. 2024)? On image tokens they mark visual sinks. "
        "Needs --token-stats.",
        """\
with ranked as (
       select *, norm / median(norm) over (
                partition by run, episode, variant, keyframe, phase, step, layer,
                             if(phase = 'vision', camera, null)) as times_median
       from token_stats
       where variant = 'base' and isfinite(norm))
select run, phase, camera, step, layer, kind, span, "index",
       count(distinct episode) as episodes, count(*) as keyframes,
       avg(norm) as norm, avg(times_median) as times_median
from ranked
where times_median >= 10
group by all
order by run, times_median desc, phase, camera, step, layer, "index\"""",
    ),
    NamedQuery(
        "token-evolution",
        "How do image, task and other tokens change from layer to layer? Needs --token-stats.",
        """\
select run, phase, layer, kind, role, camera, median(norm) as norm,
       avg(cosine_previous) as to_previous_layer, avg(cosine_embedding) as to_embedding
from token_stats
where variant = 'base' and stands_for_phase(run, phase, step)
group by all
order by run, phase, kind, role, camera, layer""",
    ),
    NamedQuery(
        "mask-fidelity",
        "Does the action depend more on what a layer looks at than on as much elsewhere? Needs "
        "`attnstore probe fidelity`.",
        """\
with each as (
       select part, phase, step, query_group, cameras, layer, run, episode, keyframe, target,
              avg(si_mse) as si_mse, avg(pixel_change) as pixel_change
       from interventions
       where probe = 'fidelity' and target in ('attention', 'control')
       group by all),
     paired as (
       select a.*, c.si_mse as control, c.pixel_change as control_change
       from (from each where target = 'attention') a
       join (from each where target = 'control') c
         on (a.part, a.layer, a.run, a.episode, a.keyframe)
          = (c.part, c.layer, c.run, c.episode, c.keyframe) and a.cameras = c.cameras),
     episodes_of as (
       select run, part, phase, step, query_group, cameras, layer, episode,
              avg(si_mse) as attention, avg(control) as control,
              avg(pixel_change) as attention_change, avg(control_change) as control_change
       from paired group by all)
select run, part, phase, step, query_group, cameras, layer, count(*) as episodes,
       avg(attention) as attention, avg(control) as control,
       avg(attention - control) as fidelity,
       avg(attention_change) as attention_change, avg(control_change) as control_change
from episodes_of
group by all
order by run, part, cameras, fidelity desc""",
    ),
    NamedQuery(
        "curve-areas",
        "How large is the area under deletion and insertion curves, and under those of random "
        "order? Needs `attnstore probe fidelity --curves`.",
        """\
with steps as (
       select *, fraction - lag(fraction) over place as width,
              (si_mse + lag(si_mse) over place) / 2 as height,
              (cosine + lag(cosine) over place) / 2 as cosine_height
       from intervention_curves
       window place as (partition by run, episode, part, keyframe, phase, step, layer, cameras,
                                     curve, target, repeat order by fraction)),
     areas as (
       select part, phase, layer, cameras, curve, target, run, episode, keyframe, repeat,
              sum(width * height) as si_mse, sum(width * cosine_height) as cosine
       from steps where width is not null group by all)
select run, part, phase, layer, cameras, curve, target, count(distinct episode) as episodes,
       avg(si_mse) as si_mse_area, avg(cosine) as cosine_area
from areas
group by all
order by run, part, cameras, curve, layer, target""",
    ),
    NamedQuery(
        "effect-by-region",
        "Which regions does the action depend on: cameras, objects, cells? Needs `attnstore probe "
        "regions`.",
        """\
select run, part, target, detail, cameras, count(distinct episode) as episodes,
       count(*) as keyframes, avg(area) as area, avg(pixel_change) as pixel_change,
       avg(si_mse) as si_mse, avg(mse) as mse, avg(scale) as scale, avg(cosine) as cosine
from interventions
where probe = 'regions' and target <> 'base'
group by all
order by run, part, si_mse desc nulls last, target, detail, cameras""",
    ),
    NamedQuery(
        "ledger",
        "What is looked at, and what matters: attention of every layer on every region, beside the "
        "effect of removing it. Needs `attnstore probe regions`.",
        """\
select run, part, target, detail, camera, phase, step, layer, query_group,
       count(distinct episode) as episodes, count(*) as keyframes,
       avg(area) as area, avg(attention) as attention,
       avg(attention) / nullif(avg(area), 0) as lift, avg(si_mse) as effect,
       avg(si_mse) / nullif(avg(area), 0) as effect_by_area
from ledger
where target in ('cell', 'object', 'rank')
group by all
order by run, part, effect desc nulls last, lift desc nulls last""",
    ),
    NamedQuery(
        "looked-at-but-unused",
        "Which regions get more attention than their area, while removing them changes the action "
        "less, for their area, than the mean region? Needs `attnstore probe regions`.",
        _RATED
        + """\
from rated
where lift > 1 and effect_lift < 1
order by run, part, lift desc""",
    ),
    NamedQuery(
        "used-but-not-looked-at",
        "Which regions get less attention than their area, while removing them changes the action "
        "more, for their area, than the mean region? Needs `attnstore probe regions`.",
        _RATED
        + """\
from rated
where lift < 1 and effect_lift > 1
order by run, part, effect_lift desc""",
    ),
    NamedQuery(
        "prompt-effects",
        "How much do action and maps change with the prompt, or with attention blocked? Needs "
        "`attnstore probe prompts` or `knockout`.",
        """\
with shifts as (
       select run, episode, part, keyframe, variant, phase, camera,
              avg(jensen_shannon) as jensen_shannon, avg(correlation) as correlation,
              avg(l2) as l2, avg(abs(mass_change)) as mass_change
       from map_shifts
       where stands_for_phase(run, phase, step)
       group by all)
select run, i.probe, i.part, i.detail, i.layer, s.phase, s.camera,
       count(distinct episode) as episodes, count(*) as keyframes,
       avg(i.si_mse) as si_mse, avg(i.scale) as scale, avg(i.cosine) as cosine,
       avg(s.jensen_shannon) as jensen_shannon, avg(s.correlation) as correlation,
       avg(s.l2) as l2, avg(s.mass_change) as mass_change
from interventions i join shifts s using (run, episode, part, keyframe, variant)
group by all
order by run, si_mse desc nulls last, i.part, i.detail, i.layer, s.phase, s.camera""",
    ),
    NamedQuery(
        "attention-effect",
        "In which layers does attention on a region go with the effect of removing it? Correlation "
        "over the regions of each kind. Needs `attnstore probe regions`.",
        """\
with regions as (
       select run, part, target, detail, camera, phase, layer, query_group,
              avg(attention) / nullif(avg(area), 0) as lift, avg(si_mse) as effect
       from ledger
       where target in ('cell', 'object', 'rank')
       group by all)
select run, part, target, camera, phase, layer, query_group, count(*) as regions,
       if(stddev_pop(lift) > 0 and stddev_pop(effect) > 0, corr(lift, effect), null) as correlation
from regions
group by all
order by run, part, correlation desc nulls last, target, camera, phase, layer""",
    ),
    NamedQuery(
        "failure-prediction",
        "Is a failure seen coming, better than by time, state and words, and how often is the alarm right? "
        "Needs `attnstore failure`.",
        """\
select run, part, split, features, model, weighting, auroc, low, high, shuffled, p, gain, gain_low,
       gain_high, alpha, false_alarms, a.successes, detected, a.failures, "at", before_end, a.unit
from failure_results r join failure_alarms a
     using (run, episode, part, split, features, model, weighting)
where moment is null
order by run, part, split, features, model""",
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
