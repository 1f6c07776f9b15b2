"""Recipes: one TOML file per published or measured setting. `ncfmkit recipes` lists them."""
