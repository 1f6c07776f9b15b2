"""Sets that other projects released, read with guards."""
