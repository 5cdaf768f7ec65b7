"""Numbers of options: a range that lets neither NaN nor infinity through."""

import math
from typing import Any

import click


class FiniteRange(click.FloatRange):
    """A `FloatRange` of numbers that are finite."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Read and check one value."""
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is no finite number", param, ctx)
        return number
