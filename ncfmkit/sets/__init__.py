"""A synthetic set once it exists: file, manifest, package."""
