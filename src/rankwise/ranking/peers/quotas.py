"""Who sends more than his share is cut, and nobody else: a bucket of tokens for each of so many names."""

from __future__ import annotations

import ipaddress
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable


class Quota:
    """Tokens by name, that refill with time.

    Parameters
    ----------
    rate : float
        Tokens a second.
    burst : float
        Tokens of a name that was quiet.
    names : int
        Names that are remembered; beyond it the one that was quiet longest is forgotten.
    clock : callable
        Seconds; `time.monotonic` by default, which no change of the date moves.

    Examples
    --------
    >>> from rankwise.ranking.peers.quotas import Quota
    >>> quota = Quota(rate=1, burst=2, clock=lambda: 0.0)
    >>> [quota.allows("eve") for _ in range(3)], quota.allows("bob")
    ([True, True, False], True)
    """

    def __init__(
        self, *, rate: float, burst: float, names: int = 10_000, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.rate, self.burst, self.names, self.clock = rate, burst, names, clock
        self._left: OrderedDict[Hashable, tuple[float, float]] = OrderedDict()

    def allows(self, name: Hashable, cost: float = 1) -> bool:
        """Whether the name has so many tokens left; if so, they are taken."""
        now = self.clock()
        left, then = self._left.pop(name, (self.burst, now))
        left = min(self.burst, left + self.rate * max(now - then, 0))
        allowed = left >= cost
        self._left[name] = (left - cost if allowed else left, now)
        if len(self._left) > self.names:
            self._left.popitem(last=False)
        return allowed


def address_of(host: str, port: int) -> tuple[str, int]:
    """An IPv4 address and a port from 1 to 65535; anything else is an error."""
    if not 0 < port < 65536:
        raise ValueError(f"port {port}; 1 to 65535 is wanted")
    return str(ipaddress.IPv4Address(host)), port
