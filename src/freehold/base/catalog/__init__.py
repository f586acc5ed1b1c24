"""Facts on models and the short names that fetch them, each with its source.

Dated, sourced facts in `data/`, read on the first question; a fact that changes is appended with a new
date, never overwritten. Knows no network and no disk but its own data and the user's catalogue.toml.
Path: store.parse_ref -> catalog.find -> Entry -> the store's sources;
      catalog.models -> Model and catalog.licences -> Licence -> advisor.
"""

from freehold.base.catalog.entries import (
    Entry,
    File,
    default_model,
    default_speech_model,
    entries,
    find,
    suggestions,
)
from freehold.base.catalog.hardware import Device, Money, Rig, devices
from freehold.base.catalog.licence import Licence, licence, licences
from freehold.base.catalog.model import Model, Repo, Score
from freehold.base.catalog.models import (
    CatalogueCounts,
    counts,
    facts,
    model,
    models,
    of_repository,
    stamp,
    user_file,
)
from freehold.base.catalog.questions import rig

__all__ = [
    "CatalogueCounts",
    "Device",
    "Entry",
    "File",
    "Licence",
    "Model",
    "Money",
    "Repo",
    "Rig",
    "Score",
    "counts",
    "default_model",
    "default_speech_model",
    "devices",
    "entries",
    "facts",
    "find",
    "licence",
    "licences",
    "model",
    "models",
    "of_repository",
    "rig",
    "stamp",
    "suggestions",
    "user_file",
]
