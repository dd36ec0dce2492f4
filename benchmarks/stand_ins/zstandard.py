"""What embedkit needs of zstandard where no file is compressed: for machines where only torch is installed."""


class ZstdError(Exception):
    """Never raised here."""


class ZstdDecompressor:
    def __init__(self) -> None:
        raise NotImplementedError("files in .zst need zstandard")
