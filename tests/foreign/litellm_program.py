"""A program that calls LiteLLM, as a process of its own: the package keeps loops and connections that it never closes.

Arguments: the server's base URL, and the models' prefixes (`openai`, `hosted_vllm`), each its session's id too. Prints
what it was told for each prefix as one JSON object.
"""

import asyncio
import json
import sys
from collections.abc import Callable
from typing import Any

import litellm

MESSAGES = [{"role": "user", "content": "Where is Mary?"}]
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}


def told(base_url: str, prefix: str) -> dict[str, Any]:
    where = {"api_base": f"{base_url}/v1", "api_key": "none", "max_retries": 0}
    options: dict[str, Any] = {"model": f"{prefix}/atlas-tiny", "max_tokens": 6, "temperature": 0, **where}
    text_model = "text-completion-openai/atlas-tiny"
    drawn = {**options, "temperature": 1, "seed": 3, "top_p": 0.9, "user": "somebody", "stop": ["never said"]}

    def streamed() -> Any:
        usage = {"include_usage": True}
        chunks = list(litellm.completion(messages=MESSAGES, stream=True, stream_options=usage, **options))
        return litellm.stream_chunk_builder(chunks, messages=MESSAGES)

    def ask(fields: dict[str, Any], **more: Any) -> Any:
        return litellm.completion(**{"messages": MESSAGES, **fields, **more})

    return {
        "whole": answer_of(ask(options)),
        "streamed": answer_of(streamed()),
        "on a loop": answer_of(asyncio.run(litellm.acompletion(messages=MESSAGES, **options))),
        "streamed on a loop": asyncio.run(streamed_text(options)),
        "drawn": [answer_of(ask(drawn)) for _ in range(2)],
        "three choices": answer_of(ask(drawn, n=3)),
        "session by header": answer_of(ask(options, extra_headers={"X-Session-Id": prefix})),
        "session by field": answer_of(ask(options, extra_body={"session_id": prefix})),
        "text": text_of(litellm.text_completion(**{**options, "model": text_model, "prompt": "Mary went to the"})),
        "text streamed": "".join(
            text_of(chunk)
            for chunk in litellm.text_completion(
                **{**options, "model": text_model, "prompt": "Mary went to the"}, stream=True
            )
        ),
        "tools": error_of(lambda: ask(options, tools=[TOOL])),
        "another model": error_of(lambda: ask(options, model=f"{prefix}/another")),
        "embedding": error_of(lambda: litellm.embedding(model=f"{prefix}/atlas-tiny", input=["a"], **where)),
    }


def answer_of(answer: Any) -> dict[str, Any]:
    details = answer.usage.prompt_tokens_details
    return {
        "texts": [choice.message.content for choice in answer.choices],
        "finish_reason": answer.choices[0].finish_reason,
        "num_tokens": [answer.usage.prompt_tokens, answer.usage.completion_tokens],
        "num_cached_tokens": details.cached_tokens if details else None,
    }


def text_of(completion: Any) -> str:
    return completion.choices[0].text or ""


async def streamed_text(options: dict[str, Any]) -> str:
    stream = await litellm.acompletion(messages=MESSAGES, stream=True, **options)
    return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])


def error_of(call: Callable[[], Any]) -> list[str]:
    try:
        call()
    except Exception as error:
        # Boundary: which error it is, and what it says, is what the test wants to know.
        return [type(error).__name__, str(error)]
    return []


if __name__ == "__main__":
    litellm.suppress_debug_info = True
    base_url, *prefixes = sys.argv[1:]
    sys.stdout.write(json.dumps({prefix: told(base_url, prefix) for prefix in prefixes}))
