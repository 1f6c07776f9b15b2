"""The method: neural characteristic function matching, from pool to loop."""
