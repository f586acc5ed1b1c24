"""Test code that talks to a model without one: FakeModel answers from a script and records what was asked."""

from freehold import ChatModel, FakeModel, Message


def summary(model: ChatModel, text: str) -> str:
    """Return the model's summary of `text`: the code under test."""
    chunks = model.stream([Message("system", "Summarise in one line."), Message("user", text)], max_tokens=40)
    return "".join(chunk.text for chunk in chunks)


model = FakeModel(["A short line."])
assert summary(model, "A long text ...") == "A short line."
assert model.calls[0].messages[1].content == "A long text ..."
assert model.calls[0].max_tokens == 40
