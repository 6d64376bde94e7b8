"""What a training run did, epoch by epoch."""

from __future__ import annotations

from pathlib import Path
from typing import Any, overload

from fcdense.errors import ArgumentError, unknown_name


class History:
    """Loss and metrics of every epoch.

    ``history["val_loss"]`` is a list with one number for each epoch that has it, ``history[-1]`` a dict with the
    numbers of the last epoch; `len` and iteration go by epochs.
    """

    def __init__(self) -> None:
        self._epochs: list[dict[str, float]] = []

    def append(self, logs: dict[str, float]) -> None:
        """Add an epoch."""
        self._epochs.append(dict(logs))

    def __len__(self) -> int:
        return len(self._epochs)

    @overload
    def __getitem__(self, key: str) -> list[float]: ...
    @overload
    def __getitem__(self, key: int) -> dict[str, float]: ...
    def __getitem__(self, key: str | int) -> list[float] | dict[str, float]:
        if isinstance(key, int):
            return dict(self._epochs[key])
        if key not in self.names:
            unknown_name("number of the history", key, self.names)
        return [logs[key] for logs in self._epochs if key in logs]

    def __contains__(self, name: object) -> bool:
        return name in self.names

    @property
    def names(self) -> list[str]:
        """What was recorded."""
        return list(dict.fromkeys(name for logs in self._epochs for name in logs))

    def __repr__(self) -> str:
        last = self._epochs[-1] if self._epochs else {}
        numbers = ", ".join(f"{name}={value:.4g}" for name, value in last.items())
        return f"History({len(self)} epoch{'' if len(self) == 1 else 's'}{': ' + numbers if numbers else ''})"

    def table(self) -> Any:
        """A rich table with a row for each epoch."""
        from rich.table import Table

        table = Table("epoch", *self.names)
        for number, logs in enumerate(self._epochs, 1):
            table.add_row(str(number), *(f"{logs[name]:.4f}" if name in logs else "" for name in self.names))
        return table

    def plot(self, path: str | Path) -> Path:
        """Write the curves as a picture (.png, .svg, .pdf): for each number, training and validation together.

        Raises
        ------
        ArgumentError
            matplotlib is not installed (extra `plot`), or nothing was recorded.
        """
        try:
            from matplotlib.figure import Figure
            from matplotlib.ticker import MaxNLocator
        except ImportError:
            raise ArgumentError("Plotting needs matplotlib: pip install 'fcdense[plot]'.") from None
        names = list(dict.fromkeys(name.removeprefix("val_") for name in self.names))
        if not names:
            raise ArgumentError("There is nothing to plot: no epoch was recorded.")
        figure = Figure(figsize=(4.5 * len(names), 3.5), layout="constrained")
        for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
            for key, label in ((name, "training"), (f"val_{name}", "validation")):
                points = [(epoch, logs[key]) for epoch, logs in enumerate(self._epochs, 1) if key in logs]
                if points:
                    axes.plot(*zip(*points, strict=True), marker="." if len(points) < 30 else None, label=label)
            axes.set(title=name, xlabel="epoch")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.grid(alpha=0.3)
            axes.legend()
        figure.savefig(path, dpi=150)
        return Path(path)
