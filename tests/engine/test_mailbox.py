"""What was put is what is got, once, in its order."""

import asyncio
from contextlib import suppress

from engine.mailbox import Mailbox


def test_what_was_put_is_got_in_order_whether_the_reader_waited_or_not() -> None:
    async def test() -> None:
        box: Mailbox[int] = Mailbox()
        box.put(1)
        box.put(2)
        assert [await box.get(), await box.get()] == [1, 2]
        reader = asyncio.create_task(box.get())
        await asyncio.sleep(0)
        box.put(3)
        box.put(4)
        assert [await reader, await box.get()] == [3, 4]

    asyncio.run(test())


def test_a_reader_that_is_cancelled_takes_nothing_with_it() -> None:
    async def test() -> None:
        box: Mailbox[int] = Mailbox()
        for cancels_first in (True, False):
            reader = asyncio.create_task(box.get())
            await asyncio.sleep(0)
            if cancels_first:
                reader.cancel()
                box.put(7)
            else:
                box.put(7)
                reader.cancel()
            with suppress(asyncio.CancelledError):
                await reader
            assert await asyncio.wait_for(box.get(), 1) == 7

    asyncio.run(test())
