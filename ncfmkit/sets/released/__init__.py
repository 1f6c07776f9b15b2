"""Sets released by other projects, treated as untrusted input."""
