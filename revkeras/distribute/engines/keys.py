"""The numbers by which workers know a collective."""

import zlib


class CollectiveKeys:
    """Numbers that depend on what a collective is, and on nothing that a worker did before.

    Example:

    >>> from revkeras.distribute.engines.keys import CollectiveKeys
    >>> first, second = CollectiveKeys(), CollectiveKeys()
    >>> _ = second.number("all_gather", "float32", (3,))
    >>> collective = "reduce_sum", "float32", (8,)
    >>> first.number(*collective) == second.number(*collective)
    True
    """

    def __init__(self) -> None:
        self._signatures: dict[int, tuple] = {}  # by their numbers

    def number(self, verb: str, dtype: str, shape: tuple) -> int:
        """The number of a collective, of 31 bits.

        Args:
            verb: String, what it does.
            dtype: String, the name of the dtype that is sent.
            shape: Tuple, the shape that is sent; `None` for a size that is not known.

        Raises:
            RuntimeError: if another collective of this process has the same number.
        """
        signature = verb, dtype, shape
        number = zlib.crc32(repr(signature).encode()) >> 1
        other = self._signatures.setdefault(number, signature)
        if other != signature:
            raise RuntimeError(
                f"Two collectives have the same key {number}: {_told(other)} and "
                f"{_told(signature)}. Workers match collectives by this key alone, a hash of the "
                "verb, dtype and shape, so one of them would meet the other. Change the shape of "
                "one: pad the tensor, or pass another `bucket_bytes` to `ZeroStrategy`."
            )
        return number


def _told(signature: tuple) -> str:
    verb, dtype, shape = signature
    return f"{verb} of {dtype}{list(shape)}"
