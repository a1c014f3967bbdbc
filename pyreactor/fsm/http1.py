"""The head of an HTTP/1 request, by a state machine that is fed with bytes as they come.

    machine = HeadMachine()
    machine.feed(b"GET / HTTP/1.1\\r\\nHo")    # LINE_OPEN
    machine.feed(b"st: example\\r\\n\\r\\n")     # LINE_OK
    machine.head                             # <RequestHead GET / HTTP/1.1>

Inside are two machines: find_line() cuts lines, the other takes a line at a time, first the request
line, then fields.  However the bytes are cut, the answer is the same, and each is looked at once.

It is strict, so that no two programs can read one stream as two different sequences of requests.
Refused are, among other things: a line end other than CR LF, folded fields, white space before the
colon, control characters, a Content-Length that is given twice or is no plain number, every
Transfer-Encoding but "chunked", that together with Content-Length or in HTTP/1.0, and HTTP/1.1
without exactly one Host.  One empty line before the request is skipped.  It does not read bodies:
`content_length` and `chunked` say what follows.

For a whole HTTP server use an HTTP library; this is for services that need a request's head alone,
through pyreactor.framing.HttpHead.
"""

from pyreactor._http1 import (
    BadRequest,
    HeadMachine,
    LineStatus,
    RequestHead,
    find_line,
    parse,
)

LINE_OPEN = LineStatus.LINE_OPEN
LINE_OK = LineStatus.LINE_OK
LINE_BAD = LineStatus.LINE_BAD

__all__ = [
    "LINE_BAD",
    "LINE_OK",
    "LINE_OPEN",
    "BadRequest",
    "HeadMachine",
    "LineStatus",
    "RequestHead",
    "find_line",
    "parse",
]
