import ssl
from typing import Literal, final

from typing_extensions import disjoint_base

@disjoint_base
class Engine:
    ssl_object: ssl.SSLObject

@final
class OpenSSLEngine(Engine):
    name: str
    def __init__(self, ssl_object: ssl.SSLObject) -> None: ...

@final
class MemoryBIOEngine(Engine):
    name: str
    def __init__(
        self, ssl_object: ssl.SSLObject, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO
    ) -> None: ...

@final
class Block: ...

def explain_choice() -> tuple[Literal["openssl", "memorybio"], str]: ...
def configured_choice() -> Literal["auto", "openssl", "memorybio"]: ...
