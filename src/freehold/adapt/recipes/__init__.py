"""Recipes: a model built in stages from a file of TOML, each stage run when what it depends on has changed.

Path: cli/build.py -> read_recipe -> Builder.build -> StageVerb.run -> verdict
"""
