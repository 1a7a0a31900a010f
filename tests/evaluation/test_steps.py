"""What is kept of a run's log for its report."""

from __future__ import annotations

import pytest

from unmask.evaluation.steps import FITS, PARTS, steps_of
from unmask.store.metrics import MetricsLog


def test_steps_are_summed_up(tmp_path):
    log = MetricsLog(tmp_path)
    for step in range(1, 41):
        late = step > 20
        rows = [1, 3 if step % 2 else 0, 0]
        loss = [2.0 if late else 9.0, (1.0 if late else 9.0) if step % 2 else None, None]
        gradient = [3.0 if step % 4 == 0 else 4.0, 5.0 if step % 2 else None, None]
        by_rate = {"rows": rows, "loss": loss, "gradient": gradient}
        log.write("train", step, grad_norm=None if step == 40 else 1.0 * step, by_rate=by_rate)
        if step % 2 == 0:
            log.write("time", step, density=[step, 1.0])
    found = steps_of(tmp_path)
    assert found["by_rate"]["loss"] == [2.0, 1.0, None]  # the second half of the steps
    assert found["by_rate"]["gradient"][0] == pytest.approx(((15 * 16 + 5 * 9) / 20) ** 0.5)
    assert found["by_rate"]["gradient"][1:] == [pytest.approx(5.0), None]
    assert len(found["gradient_norm"]) == PARTS
    assert found["gradient_norm"][0] == {"step": 2.5, "quantiles": [pytest.approx(1.3), 2.5, pytest.approx(3.7)]}
    assert [fit["step"] for fit in found["fits"]][:: FITS - 1] == [2, 40]
    assert len(found["fits"]) == FITS


def test_what_was_not_logged_is_not_there(tmp_path):
    log = MetricsLog(tmp_path)
    log.write("evaluation", 0, loss=1.0)
    assert steps_of(tmp_path) == {}
    log.write("train", 1, grad_norm=1.0)
    assert steps_of(tmp_path) == {}
