"""Numbers of things, as a sentence has them."""


def counted(count: int, noun: str) -> str:
    """`1 epoch`, `20 epochs`, `1,000 images`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
