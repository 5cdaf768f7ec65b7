"""The process that extracts: pages on standard input, results on standard output, a limit on its memory.

A malformed page can make a C++ parser loop or eat all memory; here that costs one page. It ends when its input does, so
no process stays behind when the worker is killed.

    request: u32 length of settings, u32 length of page, settings (JSON: charset, extractor), page
    answer:  u32 length, JSON: text and rights, or {"error": ...}
"""

import json
import resource
import struct
import sys
from typing import BinaryIO

from puna.data.extract.html import extract

REQUEST = struct.Struct("<II")
ANSWER = struct.Struct("<I")


def serve(requests: BinaryIO, answers: BinaryIO) -> None:
    """Answer until the input ends."""
    while head := requests.read(REQUEST.size):
        n_settings, n_page = REQUEST.unpack(head)
        settings = json.loads(requests.read(n_settings))
        page = requests.read(n_page)
        try:
            result = extract(page, settings["charset"], settings["extractor"])
        except MemoryError:
            result = {"error": "out of memory"}
        except Exception as error:  # extractors raise anything; the page is the unit that fails
            result = {"error": f"{type(error).__name__}: {error}"}
        data = json.dumps(result, ensure_ascii=False).encode("utf-8", "replace")
        answers.write(ANSWER.pack(len(data)))
        answers.write(data)
        answers.flush()


if __name__ == "__main__":
    limit = int(sys.argv[1]) << 20
    if limit and hasattr(resource, "RLIMIT_AS"):
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    serve(sys.stdin.buffer, sys.stdout.buffer)
