"""An agent that ends: a model that plans, acts by tools and observes, until it is done or its budget is.

Knows calls, journals and budgets; knows no terminal and no protocol.
Path: AgentLoop.run -> AgentContext.messages -> AgentPermits.verdict -> OwnTools.plan -> AgentJournal.add
"""
