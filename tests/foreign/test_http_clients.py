"""Clients that are no library of ours or of OpenAI's: curl and aiohttp, with what they send by themselves."""

import asyncio
import gzip
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.server.harness import ThreadedServer, session_of, user

CHAT = {"messages": [user("Where is Mary?")], "max_tokens": 4, "temperature": 0}


def curl(*arguments: str) -> str:
    program = shutil.which("curl")
    if program is None:
        pytest.skip("curl is not installed")
    done = subprocess.run([program, "--silent", "--max-time", "60", *arguments], capture_output=True, check=True)
    return done.stdout.decode()


def test_curl_waits_to_be_told_to_send_a_large_body_and_is(server: ThreadedServer, client: Any, tmp_path: Path) -> None:
    """The README's own lines, with a document that curl announces by `Expect: 100-continue`."""
    book = tmp_path / "book.txt"
    book.write_text("Mary went to the garden. " * 100)
    url = f"{server.base_url}/v1/sessions/curl/ingest"
    plain = ("--header", "Content-Type: text/plain", "--header", "Expect: 100-continue", "--expect100-timeout", "50")
    told = json.loads(curl(*plain, "--data-binary", f"@{book}", url))
    assert told["bytes"] == book.stat().st_size
    # Without a length, in chunks, from a pipe.
    told = json.loads(curl(*plain, "--request", "POST", "--upload-file", str(book), "--no-buffer", url))
    assert told["bytes"] == book.stat().st_size
    chat = curl("--json", json.dumps(CHAT), "--header", "X-Session-Id: curl", f"{server.base_url}/v1/chat/completions")
    assert json.loads(chat)["session"]["version"] == session_of(client, "curl")["version"]


def test_curl_reads_a_stream_as_it_comes_and_form_data_is_refused_in_words(server: ThreadedServer) -> None:
    url = f"{server.base_url}/v1/chat/completions"
    stream = curl("--no-buffer", "--json", json.dumps({**CHAT, "stream": True}), url)
    assert stream.endswith("data: [DONE]\n\n")
    # What `--data` sends by itself.
    refused = json.loads(curl("--data", json.dumps(CHAT), url))
    assert refused["error"]["code"] == "unsupported_media_type"
    assert "application/json" in refused["error"]["message"]


@pytest.mark.parametrize("how", [("--compressed",), ("--http1.0",), ("--tcp-nodelay", "--no-keepalive")])
def test_curls_other_ways_get_the_same_answer(server: ThreadedServer, how: tuple[str, ...]) -> None:
    url = f"{server.base_url}/v1/chat/completions"
    plain, other = (json.loads(curl(*more, "--json", json.dumps(CHAT), url)) for more in ((), how))
    assert other["choices"] == plain["choices"]


def test_a_wish_for_http_2_is_ignored_and_with_a_body_refused_in_words(server: ThreadedServer) -> None:
    """The parser cannot read such a body, so that it would be an empty one."""
    assert json.loads(curl("--http2", f"{server.base_url}/v1/models"))["data"][0]["id"] == "atlas-tiny"
    refused = json.loads(curl("--http2", "--json", json.dumps(CHAT), f"{server.base_url}/v1/chat/completions"))
    assert "Upgrade" in refused["error"]["message"]


def test_aiohttp_sends_chunks_and_a_compressed_body_is_refused_in_words(server: ThreadedServer) -> None:
    url = f"{server.base_url}/v1/chat/completions"
    json_type = {"Content-Type": "application/json"}
    raw = json.dumps(CHAT).encode()

    async def pieces() -> Any:
        for start in range(0, len(raw), 7):
            yield raw[start : start + 7]

    async def ask() -> None:
        async with aiohttp.ClientSession() as session:
            async with session.post(url, json=CHAT) as whole:
                said = (await whole.json())["choices"]
            async with session.post(url, data=pieces(), headers=json_type, expect100=True) as in_chunks:
                assert (await in_chunks.json())["choices"] == said
            gzipped = {**json_type, "Content-Encoding": "gzip"}
            async with session.post(url, data=gzip.compress(raw), headers=gzipped) as refused:
                assert refused.status == 415
                assert (await refused.json())["error"]["message"] == "compressed bodies are not supported"
            lines = []
            async with session.post(url, json={**CHAT, "stream": True}) as stream:
                async for line in stream.content:
                    lines.append(line)
            assert lines[-2:] == [b"data: [DONE]\n", b"\n"]

    asyncio.run(ask())
