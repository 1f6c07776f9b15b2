"""A set as other people's tools read it."""
