"""A program keeps the memory that it frees, unless its user says otherwise. Pages are counted, nothing is timed."""

import os
import platform
import subprocess
import sys

import pytest

from hf_explain.io import memory


pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's memory")

# How many pages the system hands out while 48 MB, more than glibc keeps by itself, come and go
CODE = """
import resource, runpy
keep_memory = runpy.run_path({path!r})["keep_memory"]  # alone: importing the package takes seconds
{call}
def pages():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def use():
    bytearray(48 * 2**20)[::4096] = b"1" * (48 * 2**8)
use()
before = pages()
for _ in range(40):
    use()
print(pages() - before)
"""


def pages(call, **environment):
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    words = [sys.executable, "-c", CODE.format(call=call, path=memory.__file__)]
    found = subprocess.run(words, env={**kept, **environment}, capture_output=True, text=True, check=True)
    return int(found.stdout)


def test_freed_memory_is_used_again():
    # beside what glibc does by itself, as pages may be of 4 kB or of 2 MB
    assert 10 * pages("keep_memory()") < pages("")


def test_the_environment_has_the_last_word():
    asked = {"MALLOC_TRIM_THRESHOLD_": "131072", "MALLOC_MMAP_THRESHOLD_": "131072"}
    assert pages("keep_memory()", **asked) > 10 * pages("keep_memory()")


def test_commands_keep_it(monkeypatch):
    from hf_explain import cli

    called = []
    monkeypatch.setattr(cli, "keep_memory", lambda: called.append(True))
    assert cli.main(["methods"]) == 0
    assert called
