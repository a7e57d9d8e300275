"""First-fit allocation of contiguous extents: where in a device's KV buffers each request's tokens lie."""

from collections.abc import Iterator

from engine.errors import InputError


class Extents:
    """Extents of tokens by request, in a buffer of fixed size."""

    def __init__(self, size: int, unit: int = 1) -> None:
        """Start with all of `size` tokens free, rounded up to a multiple of `unit`, where extents begin."""
        self.size, self.unit = -(-size // unit) * unit, unit
        self._held: dict[int, tuple[int, int]] = {}

    def __contains__(self, request: int) -> bool:
        """Whether the request has an extent."""
        return request in self._held

    def __iter__(self) -> Iterator[int]:
        """Requests that have one."""
        return iter(list(self._held))

    @property
    def used(self) -> int:
        """Tokens in all extents."""
        return sum(length for _, length in self._held.values())

    def start(self, request: int) -> int:
        """First token of a request's extent."""
        return self._held[request][0]

    def release(self, request: int) -> None:
        """Give a request's extent back."""
        del self._held[request]

    def take(self, request: int, length: int) -> int | None:
        """Give `length` tokens to a request: their start, or None if no hole is large enough.

        Raises:
            InputError: all holes together are too small.
        """
        length = -(-length // self.unit) * self.unit
        if self.used + length > self.size:
            raise InputError(
                f"executor: expected at most {self.size} tokens of KV (whole requests, prompt and output), "
                f"got {self.used + length}: lower --engine.num-blocks or --engine.max-num-seqs"
            )
        end = 0
        for start, held in sorted(self._held.values()):
            if start - end >= length:
                break
            end = start + held
        if self.size - end < length:
            return None
        self._held[request] = (end, length)
        return end

    def compact(self) -> list[tuple[int, int, int]]:
        """Move all extents to the front; returns what to copy, in this order: (from, to, tokens)."""
        moves, end = [], 0
        for request, (start, length) in sorted(self._held.items(), key=lambda item: item[1]):
            if start != end:
                moves.append((start, end, length))
                self._held[request] = (end, length)
            end += length
        return moves
