"""How an integral along a straight path is approximated by evaluations at a few points of it."""

from typing import Annotated, Literal

from pydantic import Field

Quadrature = Literal["midpoint", "trapezoid", "left", "right"]
"""From 0 to 1 with n evaluations: at the middles, the left or the right ends of n equal intervals; or (trapezoid) at
the n ends of n − 1 intervals, the two outermost counting half."""

Steps = Annotated[int, Field(ge=1, le=1_000, description="Evaluations of the gradient along the path.")]


def nodes_of(quadrature: Quadrature, steps: int) -> tuple[tuple[float, float], ...]:
    """Points of [0, 1] and their weights, which add up to 1; a trapezoid needs two steps."""
    if quadrature == "trapezoid":
        last = steps - 1
        return tuple((step / last, (0.5 if step in (0, last) else 1.0) / last) for step in range(steps))
    offset = {"left": 0.0, "midpoint": 0.5, "right": 1.0}[quadrature]
    return tuple(((step + offset) / steps, 1.0 / steps) for step in range(steps))
