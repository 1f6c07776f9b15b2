"""Synthetic sets: file, manifest, package."""
