"""A provider that stands in for all six: it keeps every byte, bills exactly, and plays faults. Tests only.

Written from the providers' public documentation, and shares no code with our wires.
"""

from tests.providers.standin.billing import Bill, Rates, Tariff
from tests.providers.standin.script import Answer, Call, Fault, LoggedToken, Tokens
from tests.providers.standin.server import Received, StandIn

__all__ = [
    "Answer",
    "Bill",
    "Call",
    "Fault",
    "LoggedToken",
    "Rates",
    "Received",
    "StandIn",
    "Tariff",
    "Tokens",
]
