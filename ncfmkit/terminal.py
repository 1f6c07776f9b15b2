"""What a terminal survives."""


def printable(text: str) -> str:
    """`text` with what is not printable escaped: control sequences, broken encodings."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
