"""The files that a synthetic set travels in. `ncfmkit.load` reads any of them."""
