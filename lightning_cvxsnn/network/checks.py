"""What must hold of a network before a solve and after a write."""

from typing import Any

from torch import nn

from lightning_cvxsnn.network import capture, measure_activity
from lightning_cvxsnn.network.readout import Readout, forward_of
from lightning_cvxsnn.network.rows import TrainingRows
from lightning_cvxsnn.witnesses.kinds import CALIBRATION_ROWS


def check_finite(module: nn.Module) -> None:
    """Refuse a network whose training has diverged."""
    broken = [name for name, parameter in module.named_parameters() if not bool(parameter.isfinite().all())]
    if broken:
        raise ValueError(
            f"The parameters {broken} hold NaN or infinite values before the solve: training has diverged, nothing was "
            "written. Lower the learning rate, clip gradients, or train in a wider precision (float16 needs "
            "'16-mixed', not '16-true')."
        )


def describe_dead(module: nn.Module, readout: Readout, rows: TrainingRows) -> str:
    """What a person needs to know of a network whose readout receives one pattern only."""
    inputs = [batch.x for batch in rows.sample(CALIBRATION_ROWS)]
    dead = [
        f"'{a.name}' ({a.silent} of {a.units} units silent, {a.saturated} saturated)"
        for a in measure_activity(module, forward_of(module), inputs)
        if not a.alive
    ]
    return (
        f"The readout '{readout.name}' receives the same pattern on every training row, so there is nothing to learn "
        f"from. Layers that carry no information: {', '.join(dead) or 'none by themselves'}. Use witnesses='auto' or "
        "'calibrated' to bring them to life, or give the network weights or thresholds with which its neurons fire."
    )


def verify(module: nn.Module, readout: Readout, x: Any, tolerance: float) -> None:
    """The network's own forward must now answer what its dictionary and its stored readout say."""
    with readout.linearised():
        captured = capture(module, readout.module, readout.reduction, readout.forward_of(module), [x])
    coef, intercept = readout.read()
    expected = captured.dictionary.to_dense() @ coef + (0.0 if intercept is None else intercept)
    error = float((captured.outputs.double() - expected).abs().max() / expected.abs().max().clamp_min(1e-12))
    if not error <= tolerance:
        raise RuntimeError(
            f"After writing the readout '{readout.name}' the network's output differs from the dictionary's prediction "
            f"by {error:.1%} (tolerance {tolerance:.1%}), so nothing was written. Does the network change from one "
            "forward to the next? Expected the same output for the same input in eval mode."
        )
