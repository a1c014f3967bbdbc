"""What the framings mean, in plain Python: the whole input at once, no state, no care for speed.

The C machines are compared with this, piece by piece fed.
"""

import re

TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
REQUEST_LINE = re.compile(rb"(?s)(" + TOKEN + rb") ([\x21-\x7e]+) HTTP/([0-9])\.([0-9])")
FIELD = re.compile(rb"(?s)(" + TOKEN + rb"):[ \t]*([\t\x20-\x7e\x80-\xff]*?)[ \t]*")
NUMBER_MAX = 2**63 - 1


class Refused(Exception):
    """The bytes are against the rule."""


def cut(framing, data):
    """Cut `data` into frames.

    Return them, what is left over of an open frame, and whether what follows was refused.
    """
    step = STEPS[type(framing).__name__]
    frames = []
    while True:
        try:
            found = step(framing, data)
        except Refused:
            return frames, b"", True
        if found is None:
            return frames, data, False
        frame, size = found
        frames.append(frame)
        data = data[size:]


def end(framing, rest):
    """What the peer's end makes of the rest: frames, and whether it is refused."""
    match type(framing).__name__:
        case "Lines":
            return ([rest] if rest else []), len(rest) > framing.max_bytes
        case "HttpHead":
            return [], rest not in (b"", b"\r\n")
    return [], bool(rest)


def line(framing, data):
    """The first line and how many bytes it takes, or None where it is open."""
    text, found, _ = data.partition(b"\n")
    content = text.removesuffix(b"\r")
    if len(content) > framing.max_bytes:
        raise Refused
    if found:
        return (text + found if framing.keep_ends else content), len(text) + 1
    return None


def delimited(framing, data):
    """The first message and how many bytes it takes, or None."""
    text, found, _ = data.partition(framing.delimiter)
    certain = len(text) if found else len(text) - len(framing.delimiter) + 1
    if certain > framing.max_bytes:
        raise Refused
    return (text, len(text) + len(found)) if found else None


def fixed(framing, data):
    """The first message and how many bytes it takes, or None."""
    return (data[: framing.size], framing.size) if len(data) >= framing.size else None


def length_prefixed(framing, data):
    """The first message and how many bytes it takes, or None."""
    prefix = data[: framing.prefix_bytes]
    if len(prefix) < framing.prefix_bytes:
        return None
    size = int.from_bytes(prefix, framing.byteorder)
    if size > framing.max_bytes:
        raise Refused
    end = framing.prefix_bytes + size
    return (data[framing.prefix_bytes : end], end) if len(data) >= end else None


def http_head(framing, data):
    """The first request's head with its body and how many bytes it takes, or None."""
    lines = []
    begin = head_begin = 0
    while True:
        rest = data[begin:]
        text = re.match(rb"(?s)[^\r\n]*", rest)[0]
        if len(text) > framing.max_line_bytes or begin + len(text) > framing.max_bytes:
            raise Refused
        if not rest.startswith(b"\r\n", len(text)):
            if rest[len(text) :] in (b"", b"\r"):
                return None
            raise Refused
        begin += len(text) + 2
        if not text and not lines:
            if head_begin:
                raise Refused
            head_begin = 2
            continue
        if not text:
            break
        lines.append(text)
        if len(lines) == 1:
            check_request_line(text)
        elif len(lines) > 1 + framing.max_headers or not FIELD.fullmatch(text):
            raise Refused
        else:
            check_fields(lines)
    body = body_bytes(lines)
    if body > framing.max_body_bytes:
        raise Refused
    end = begin + body
    return (data[head_begin:end], end) if len(data) >= end else None


def check_request_line(text):
    found = REQUEST_LINE.fullmatch(text)
    if found is None or found[3] != b"1" or found[4] not in (b"0", b"1"):
        raise Refused


def values_of(lines, wanted):
    fields = [FIELD.fullmatch(text) for text in lines[1:]]
    return [field[2] for field in fields if field[1].lower() == wanted]


def check_fields(lines):
    """What can be said before the head is whole."""
    lengths = values_of(lines, b"content-length")
    codings = values_of(lines, b"transfer-encoding")
    if len(lengths) > 1 or len(codings) > 1 or len(values_of(lines, b"host")) > 1:
        raise Refused
    if lengths and (not re.fullmatch(rb"[0-9]+", lengths[0]) or int(lengths[0]) > NUMBER_MAX):
        raise Refused
    if codings and codings[0].lower() != b"chunked":
        raise Refused


def body_bytes(lines):
    if lines[0].endswith(b"1") and not values_of(lines, b"host"):
        raise Refused
    if values_of(lines, b"transfer-encoding"):
        raise Refused  # with a length, in HTTP/1.0, or because there is no framing for it
    return int((values_of(lines, b"content-length") or [b"0"])[0])


STEPS = {
    "Lines": line,
    "Delimiter": delimited,
    "Fixed": fixed,
    "LengthPrefixed": length_prefixed,
    "HttpHead": http_head,
}
