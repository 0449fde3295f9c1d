"""Texts in LiveCodeBench's packed form: base64 of zlib of a pickled string. Nothing is unpickled: a pickle can run anything."""

import base64
import binascii
import struct
import zlib

MOST_BYTES = 512 << 20
"""Of an unpacked text."""
PROTO, FRAME, MEMOIZE, BINPUT, LONG_BINPUT, STOP = 0x80, 0x95, 0x94, ord("q"), ord("r"), ord(".")
TEXTS = {0x8C: "<B", ord("X"): "<I", 0x8D: "<Q"}
"""Opcodes of a string -> form of the length that follows."""
SKIPPED = {PROTO: 1, FRAME: 8, MEMOIZE: 0, BINPUT: 1, LONG_BINPUT: 4}
"""Opcodes that may stand around it -> bytes of their argument."""


def unpack(packed: str) -> str:
    """The text in a packed one.

    Raises:
        ValueError: it is no base64, no zlib stream, too long, or a pickle of anything but one string.
    """
    try:
        data = base64.b64decode(packed, validate=True)
        stream = zlib.decompressobj()
        pickled = stream.decompress(data, MOST_BYTES)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"no base64 ({error})") from None
    except zlib.error as error:
        raise ValueError(f"no zlib stream ({error})") from None
    if stream.unconsumed_tail:
        raise ValueError(f"more than {MOST_BYTES} bytes when unpacked")
    if not stream.eof or stream.unused_data:
        raise ValueError("a zlib stream that is cut, or that something follows")
    return pickled_text(pickled)


def pickled_text(data: bytes) -> str:
    """The string in a pickle that holds one string and nothing else (protocols 1 to 5).

    Raises:
        ValueError: any other opcode, a length beyond the end, no UTF-8.
    """
    place, text = 0, None
    while place < len(data):
        code = data[place]
        place += 1
        if code == STOP and text is not None and place == len(data):
            return text
        if code in SKIPPED:
            place += SKIPPED[code]
        elif code in TEXTS and text is None:
            width = struct.calcsize(TEXTS[code])
            if place + width > len(data):
                break
            (length,) = struct.unpack_from(TEXTS[code], data, place)
            place += width + length
            if place > len(data):
                break
            text = data[place - length : place].decode("utf-8", "surrogatepass")
        else:
            raise ValueError(f"a pickle of something else than one string (opcode 0x{code:02x} at byte {place - 1})")
    raise ValueError("a pickle that is cut")
