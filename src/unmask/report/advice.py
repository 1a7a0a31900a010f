"""What `unmask advise` tells: the verdict, the table behind it and what helps to understand it, from its records."""

from __future__ import annotations

import math
from collections.abc import Mapping

from unmask.evaluation.advice import Advice, Gap, Probe
from unmask.evaluation.curve import share_within
from unmask.evaluation.decomposition import Decomposition
from unmask.evaluation.speedup import ONE_SEED
from unmask.report.grid import Grid

Variances = Mapping[str, Mapping[str, Decomposition]]


def advice_lines(probe: Probe, variances: Variances | None = None) -> list[str]:
    """The verdict, how sure it is, and what was measured besides, in sentences.

    Args:
        probe: what was found.
        variances: of loss and gradient by arm, where they were measured.
    """
    advice = probe.advice
    every = "both" if advice.seeds == 2 else f"all {advice.seeds}"
    how = (
        "One seed does not tell how training varies, so that no arm is told from another."
        if advice.seeds == 1
        else f"{'Sure for the length of the probe' if advice.sure else 'Not sure'}: an arm is told from the first "
        f"where the interval of the difference, over {advice.pairs} held-out rows and {advice.seeds} seeds, is clear "
        f"of zero, and in {every} seeds its loss is higher."
    )
    return [
        advice.verdict,
        how,
        f"The probe saw {probe.steps} of {probe.horizon} steps ({probe.steps / probe.horizon:.0%}). An arm that is "
        "ahead early need not be so at the end, and what is compared is the likelihood, not a task: unmask compare "
        "with five seeds judges.",
        *_noise(variances or {}),
        *_near(probe),
    ]


def advice_grid(probe: Probe) -> Grid:
    """Every arm's loss, how far it is behind the first, and what a step costs."""
    advice = probe.advice
    rows = [[advice.first, f"{advice.mean:.3f}", "", "", _cost(probe, advice.first)]]
    rows += [
        [gap.arm, f"{advice.mean + gap.behind.value:.3f}", _behind(gap), _told(advice, gap), _cost(probe, gap.arm)]
        for gap in advice.gaps
    ]
    return Grid(
        f"Held-out loss after {probe.steps} steps, nats per token",
        ["arm", "loss", "behind the first", "verdict", "seconds a step"],
        rows,
        "Intervals are of 95% for all differences together. Costs are of the short runs, several at a time.",
    )


def _noise(variances: Variances) -> list[str]:
    """Where the gradient's noise comes from, under the first arm that was measured, and what the others leave."""
    if not variances:
        return []
    (first, parts), *others = ((arm, found["gradient"]) for arm, found in variances.items())
    shares = " ".join(
        f"{100 * max(0.0, getattr(parts, part).value) / parts.parts:.0f}% from {words},"
        for part, words in (("masks", "masks (A)"), ("rates", "mask rates (B)"), ("rows", "rows (C)"))
    )
    left = (f"{arm} leaves {100 * found.parts / parts.parts:.0f}% of it" for arm, found in others)
    told = f"The gradient's noise under {first} comes {shares} at equal forwards; {', '.join(left)}"
    return [f"{told.rstrip('; ')}. How rates and masks are drawn changes A and B alone."]


def _near(probe: Probe) -> list[str]:
    """How much of what context tells of a token is near it; nothing where it takes the whole row."""
    by_radius = [curve for curve in probe.locality if curve.against == "visible within"]
    shares = [share_within(curve) for curve in by_radius]
    near = next(((label, share) for label, share in (shares[0] if shares else ()) if share >= 0.8), None)
    if near is None or near[0] == "all" or math.isclose(near[1], 1, rel_tol=1e-6):  # a radius of the whole row
        return []
    where = f"within {near[0]} position{'s' * (near[0] != '1')}"
    return [f"Of what context tells of a masked token, {min(1.0, near[1]):.0%} lies {where}."]


def _behind(gap: Gap) -> str:
    found = gap.behind
    return f"{found.value:+.3f} ({found.low:+.3f} to {found.high:+.3f})"


def _told(advice: Advice, gap: Gap) -> str:
    return ONE_SEED if advice.seeds == 1 else "worse" if gap.told else "not distinguishable"


def _cost(probe: Probe, arm: str) -> str:
    return f"{probe.seconds[arm]:.3g}" if arm in probe.seconds else ""
