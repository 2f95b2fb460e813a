"""Tables that leave out their less important columns where the terminal is narrow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.table import Table


@dataclass(frozen=True)
class Column:
    """A column of a `FittedTable`.

    Attributes:
      name: its heading.
      priority: columns of the highest number are left out first; 0 is never left out.
      justify: "left" or "right".
    """

    name: str
    priority: int = 0
    justify: str = "right"


@dataclass
class FittedTable:
    """A table that says below it which columns it left out.

    Attributes:
      title: above the table.
      columns: all of them.
      rows: one text for each column.
    """

    title: str
    columns: Sequence[Column]
    rows: list[Sequence[str]] = field(default_factory=list)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        kept, dropped = list(range(len(self.columns))), []
        while True:
            table = self._table(kept)
            widest = Measurement.get(console, options.update(max_width=10_000), table).maximum
            candidates = [i for i in kept if self.columns[i].priority > 0]
            if widest <= options.max_width or not candidates:
                break
            least = max(candidates, key=lambda i: (self.columns[i].priority, i))
            kept.remove(least)
            dropped.append(self.columns[least].name)
        yield table
        if dropped:
            yield f"Columns left out to fit the terminal: {', '.join(dropped)}."

    def _table(self, kept: Sequence[int]) -> Table:
        table = Table(title=self.title, title_justify="left")
        for column in (self.columns[i] for i in kept):
            # Folded, not cut: the end of a name is often what tells two runs apart.
            table.add_column(column.name, justify=column.justify, overflow="fold", no_wrap=False)
        for row in self.rows:
            table.add_row(*(row[i] for i in kept))
        return table
