"""What all requests of a server with a gateway share: it outlives a reload of the file.

Knows no request and no route.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from freehold.route.providers.signatures import Signatures
from freehold.route.router.answers import AnswerCache, KeptTexts
from freehold.route.router.breaker import Breakers, TargetLoad
from freehold.route.router.calls import TargetCalls
from freehold.route.router.contract import BarCheck, Books
from freehold.route.router.gateway import GatewayModel
from freehold.route.router.shadow import Background, Shadows
from freehold.route.router.tokens import TokenRatio


@dataclass
class GatewayParts:
    """Calls, books and bars, and what is learned of targets."""

    calls: TargetCalls
    books: Books
    bars: BarCheck | None = None
    texts: KeptTexts | None = None
    load: TargetLoad = field(default_factory=TargetLoad)
    breakers: Breakers = field(default_factory=Breakers)
    ratios: dict[str, TokenRatio] = field(default_factory=dict)
    cache: AnswerCache = field(default_factory=AnswerCache)
    background: Background = field(default_factory=Background)
    signatures: Signatures = field(default_factory=Signatures)

    def __post_init__(self) -> None:
        self.shadows = Shadows(self.calls, self.books, self.background)

    def ratio(self, target: GatewayModel) -> TokenRatio:
        """Return what is known of a target's tokens."""
        return self.ratios.setdefault(target.name, TokenRatio())
