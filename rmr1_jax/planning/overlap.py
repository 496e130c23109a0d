"""Instructions in the order of the compiled program, and transfers from HBM beside them."""

from dataclasses import dataclass, field


@dataclass
class Schedule:
    """What one nest of loops executes, in seconds.

    Instructions follow each other. A transfer goes on from its start to its end, in the order of
    starts, in whatever time the instructions between leave the memory; at its end the program waits
    for what is left of it. Transfers beside an inner loop get nothing of its time.
    """

    seconds: float = 0.0
    _under_way: dict[str, float] = field(default_factory=dict)

    def run(self, seconds: float, memory: float = 0.0) -> None:
        """One instruction, that needs the memory for a part of its time."""
        self.seconds += seconds
        self._transfer(seconds - memory)

    def start(self, name: str, seconds: float) -> None:
        """A transfer that takes the memory so long."""
        if seconds > 0:
            self._under_way[name] = seconds

    def end(self, name: str) -> None:
        """Wait for a transfer, and so for all that started before it."""
        while name in self._under_way:
            first = next(iter(self._under_way))
            self.seconds += self._under_way.pop(first)

    def whole(self) -> float:
        """Until all that has started has ended."""
        return self.seconds + sum(self._under_way.values())

    def _transfer(self, seconds: float) -> None:
        while seconds > 0 and self._under_way:
            first = next(iter(self._under_way))
            left = self._under_way[first] - seconds
            if left > 0:
                self._under_way[first] = left
                return
            seconds = -left
            del self._under_way[first]
