"""The tenant with the least service goes next; one that was away has saved nothing up."""

from __future__ import annotations

from freehold.run.engine.schedule.shares import Shares


def test_newcomer_starts_beside_the_poorest_of_the_busy():
    shares = Shares()
    shares.enter("a")
    shares.enter("b")
    shares.charge("a", 5.0)
    shares.charge("b", 3.0)
    shares.enter("c")
    assert shares.used("c") == 3.0


def test_tenant_who_comes_back_keeps_what_it_had_and_gains_nothing_by_its_absence():
    shares = Shares()
    shares.enter("a")
    shares.enter("b")
    shares.charge("a", 9.0)
    shares.leave("a")
    shares.charge("b", 2.0)
    shares.enter("a")
    assert shares.used("a") == 9.0
    shares.leave("a")
    shares.charge("b", 20.0)
    shares.enter("a")
    assert shares.used("a") == 22.0


def test_tenants_who_are_gone_and_level_are_forgotten():
    shares = Shares()
    for i in range(1000):
        shares.enter(str(i))
        shares.charge(str(i), 0.1)
        shares.leave(str(i))
    assert len(shares._used) <= 1
