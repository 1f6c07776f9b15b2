"""Layouts of a set for other tools."""
