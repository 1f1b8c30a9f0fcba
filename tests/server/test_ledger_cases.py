"""SESSIONS.md 1.3: the ways in which programs keep a conversation, each with the stock library over HTTP.

What a session has read is compared by its digest with that of one that was told only what is new, turn by turn.
"""

from collections.abc import Callable, Iterator
from typing import Any

import httpx
import openai
import pytest

from tests.server.harness import ThreadedServer, sdk, session_of, user

Messages = list[dict[str, Any]]
GREEDY: dict[str, Any] = {"temperature": 0}
QUESTIONS = ("Where is Mary?", "And the code?", "Thanks.")
BOOK = "Mary went to the garden. The code of the north gate is 4 7 1.\n" * 5


class Talk:
    """One session by way of the library; `say` returns the answer's message as the library gives it back."""

    def __init__(self, library: Any, http: httpx.Client, session_id: str) -> None:
        self._library = library
        self._http = http
        self.session_id = session_id

    def ingest(self, text: str) -> None:
        self._http.post(f"/v1/sessions/{self.session_id}/ingest", json={"text": text}).raise_for_status()

    def say(self, messages: Messages, headers: dict[str, str] | None = None, **fields: Any) -> dict[str, Any]:
        body: dict[str, Any] = {"session_id": self.session_id}
        body |= {name: fields.pop(name) for name in ("history", "on_divergence", "ignore_eos") if name in fields}
        answer = self._library.chat.completions.create(
            model="atlas-tiny",
            messages=messages,
            extra_body=body,
            extra_headers=headers,
            max_tokens=5,
            **{**GREEDY, **fields},
        )
        message: dict[str, Any] = answer.choices[0].message.model_dump()
        return message

    def resend_all(
        self, questions: tuple[str, ...], system: Messages | None = None, num_kept: int | None = None
    ) -> None:
        """The usual loop: a list that grows by a question and an answer, of which the last `num_kept` are sent."""
        history: Messages = []
        for question in questions:
            history.append(user(question))
            kept = history if num_kept is None else history[-num_kept:]
            history.append(self.say([*(system or []), *kept]))

    def tell_new(self, questions: tuple[str, ...]) -> None:
        for question in questions:
            self.say([user(question)])

    @property
    def read(self) -> tuple[str, int, int]:
        """What the session has read, exactly; how much; and in how many commits."""
        session = session_of(self._http, self.session_id)
        return session["tokens_digest"], session["position"], session["version"]


Open = Callable[[], Talk]


@pytest.fixture
def talk(server: ThreadedServer, client: httpx.Client, session_id: str) -> Iterator[Open]:
    """Each call opens another session."""
    names = (f"{session_id}-{number}" for number in range(10))
    with sdk(server.base_url) as library:
        yield lambda: Talk(library, client, next(names))


def test_after_a_document_a_loop_that_resends_its_history_is_heard_from_where_it_goes_on(talk: Open) -> None:
    resending, telling = talk(), talk()
    for each in (resending, telling):
        each.ingest(BOOK)
    resending.resend_all(QUESTIONS)
    telling.tell_new(QUESTIONS)
    assert resending.read == telling.read


@pytest.mark.parametrize("num_kept", [1, 3, 4])
def test_a_client_that_trims_its_oldest_messages_is_heard_the_same(talk: Open, num_kept: int) -> None:
    """Of four messages the first is an answer: a window cut anywhere."""
    trimming, telling = talk(), talk()
    questions = (*QUESTIONS, "Hello?", "Bye.")
    trimming.resend_all(questions, num_kept=num_kept)
    telling.tell_new(questions)
    assert trimming.read == telling.read


def test_a_system_message_on_every_call_is_read_once_and_another_one_when_it_comes(talk: Open) -> None:
    system = [{"role": "system", "content": "Answer in one word."}]
    every, once = talk(), talk()
    every.resend_all(QUESTIONS, system=system)
    once.say([*system, user(QUESTIONS[0])])
    once.tell_new(QUESTIONS[1:])
    assert every.read == once.read
    for each in (every, once):
        each.say([{"role": "system", "content": "Answer in two words."}, user("Who?")])
    assert every.read == once.read
    _, before, _ = every.read
    once.say([user("Who?")])
    every.say([{"role": "system", "content": "Answer in one word."}, user("Who?")])
    assert every.read[1] > once.read[1] > before


def test_two_turns_that_both_say_hi_are_two_turns(talk: Open) -> None:
    resending, telling = talk(), talk()
    resending.resend_all(("Hi", "Hi", "Hi"))
    telling.tell_new(("Hi", "Hi", "Hi"))
    assert resending.read == telling.read
    assert telling.read[2] == 3


def test_a_retried_turn_with_a_key_is_answered_again_and_read_once(talk: Open) -> None:
    retrying = talk()
    key = {"Idempotency-Key": "turn-1"}
    first = retrying.say([user("Hi")], key)
    before = retrying.read
    assert retrying.say([user("Hi")], key) == first
    assert retrying.read == before
    # Of a turn that is not the last one any more.
    retrying.say([user("More")])
    before = retrying.read
    assert retrying.say([user("Hi")], key) == first
    assert retrying.read == before
    with pytest.raises(openai.ConflictError, match="Idempotency-Key"):
        retrying.say([user("Ho")], key)


class LosesReplies(httpx.HTTPTransport):
    """A network on which the first reply to each request is lost, after the server has sent all of it."""

    def __init__(self) -> None:
        super().__init__()
        self.num_lost = 0

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        response = super().handle_request(request)
        if request.headers.get("x-stainless-retry-count") == "0":
            response.read()
            self.num_lost += 1
            raise httpx.ReadError("lost")
        return response


def test_a_turn_that_the_library_retries_without_a_key_is_read_once(
    server: ThreadedServer, client: httpx.Client, talk: Open
) -> None:
    network = LosesReplies()
    telling = talk()
    with httpx.Client(transport=network) as lossy, sdk(server.base_url, http_client=lossy, max_retries=2) as library:
        losing = Talk(library, client, f"{telling.session_id}-losing")
        losing.resend_all(QUESTIONS)
    telling.tell_new(QUESTIONS)
    assert network.num_lost == len(QUESTIONS)
    assert losing.read == telling.read


def test_the_same_words_said_again_without_a_key_are_another_turn(talk: Open) -> None:
    repeating = talk()
    for version in (1, 2):
        repeating.say([user("Hi")])
        assert repeating.read[2] == version


def test_a_regenerated_answer_is_given_to_a_session_that_never_heard_the_first(talk: Open) -> None:
    regenerating, once = talk(), talk()
    history = [user("one")]
    history.append(regenerating.say(history))
    question = [*history, user("two")]
    regenerating.say(question)
    with pytest.raises(openai.ConflictError, match=r"messages\[2\]"):
        regenerating.say(question, seed=7, temperature=1)
    again = regenerating.say(question, seed=7, temperature=1, on_divergence="rewind")
    once.tell_new(("one",))
    assert once.say([user("two")], seed=7, temperature=1) == again
    assert regenerating.read[:2] == once.read[:2]
    assert (regenerating.read[2], once.read[2]) == (3, 2)


@pytest.mark.parametrize("content", ["", None])
def test_an_empty_answer_is_resent_like_any_other(talk: Open, content: str | None) -> None:
    resending, telling = talk(), talk()
    first = telling.say([user("Hi")], ignore_eos=True)["content"]
    telling, stop = talk(), first[:1]
    for each in (resending, telling):
        assert each.say([user("Hi")], ignore_eos=True, stop=stop)["content"] == ""
    resending.say([user("Hi"), {"role": "assistant", "content": content}, user("Hello?")])
    telling.say([user("Hello?")])
    assert resending.read == telling.read


def test_a_history_that_the_session_never_had_is_refused_unless_all_of_it_is_meant(talk: Open) -> None:
    departing = talk()
    departing.say([user("one")])
    before = departing.read
    strange = [user("one"), {"role": "assistant", "content": "I never said this."}, user("two")]
    with pytest.raises(openai.ConflictError) as refused:
        departing.say(strange)
    assert refused.value.code == "session_diverged"
    assert "messages[1]" in refused.value.message
    assert departing.read == before
    departing.say(strange, history="new")
    assert departing.read[2] == 2
