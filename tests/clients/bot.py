"""A bot in appservice mode, made with mautrix-python: it answers "ping" with "pong", in rooms with encryption too, and "seen" with the
read receipts that it was told of. Keys and messages to its device come in transactions; its device has no session (MSC4190).

    bot.py HOMESERVER DOMAIN AS_TOKEN HS_TOKEN PORT
"""

import asyncio
import logging
import sys

from mautrix.appservice import AppService
from mautrix.appservice.state_store.memory import ASStateStore
from mautrix.client import Client
from mautrix.client.state_store import MemoryStateStore
from mautrix.crypto import MemoryCryptoStore, OlmMachine
from mautrix.errors import EncryptionError, SessionNotFound
from mautrix.types import EventType, Membership, MessageType, TextMessageEventContent


class State(ASStateStore, MemoryStateStore):
    """What the bot knows of rooms, in memory."""

    def __init__(self) -> None:
        ASStateStore.__init__(self)
        MemoryStateStore.__init__(self)

    async def find_shared_rooms(self, user_id: str) -> list:
        """Lists the encrypted rooms that somebody is in, for the encryption."""
        shared = []
        for room_id, members in self.members.items():
            member = members.get(user_id)
            if member and member.membership == Membership.JOIN and await self.is_encrypted(room_id):
                shared.append(room_id)
        return shared


async def main() -> None:
    server, domain, as_token, hs_token, port = sys.argv[1:6]
    state = State()
    az = AppService(
        server=server, domain=domain, as_token=as_token, hs_token=hs_token, bot_localpart="pybot", id="pybot",
        state_store=state, ephemeral_events=True, encryption_events=True, loop=asyncio.get_running_loop(),
    )
    read = 0
    await az.start("127.0.0.1", int(port))
    await az.intent.ensure_registered()
    await az.ping_self()

    client = Client(base_url=server, mxid=az.bot_mxid, state_store=state)
    client.api.token = as_token
    store = MemoryCryptoStore("pybot", "pickle")
    olm = OlmMachine(client, store, state)
    az.otk_handler = olm.handle_as_otk_counts
    az.device_list_handler = olm.handle_as_device_lists
    az.to_device_handler = olm.handle_as_to_device_event
    await client.create_device_msc4190(device_id="", initial_display_name="bot")
    await olm.load()
    await store.put_device_id(client.device_id)
    await olm.share_keys()

    async def say(room_id: str, text: str) -> None:
        content = TextMessageEventContent(msgtype=MessageType.NOTICE, body=text)
        if not await state.is_encrypted(room_id):
            await az.intent.send_message(room_id, content)
            return
        try:
            sealed = await olm.encrypt_megolm_event(room_id, EventType.ROOM_MESSAGE, content)
        except EncryptionError:
            members = await az.intent.get_room_members(room_id)
            await olm.share_group_session(room_id, members)
            sealed = await olm.encrypt_megolm_event(room_id, EventType.ROOM_MESSAGE, content)
        await az.intent.send_message_event(room_id, EventType.ROOM_ENCRYPTED, sealed)

    @az.matrix_event_handler
    async def heard(evt) -> None:
        nonlocal read
        if evt.type == EventType.RECEIPT:
            read += 1
            return
        if evt.type == EventType.ROOM_MEMBER:
            if evt.state_key == az.bot_mxid and evt.content.membership == Membership.INVITE:
                await az.intent.join_room(evt.room_id)
                await az.intent.get_state(evt.room_id)  # whether it is encrypted; the state store takes it up
            else:
                await olm.handle_member_event(evt)
            return
        if evt.type == EventType.ROOM_ENCRYPTED:
            try:
                evt = await olm.decrypt_megolm_event(evt)
            except SessionNotFound as e:
                await olm.wait_for_session(evt.room_id, e.session_id, timeout=10)
                evt = await olm.decrypt_megolm_event(evt)
        if evt.type != EventType.ROOM_MESSAGE or evt.sender == az.bot_mxid:
            return
        if evt.content.body == "ping":
            await say(evt.room_id, "pong")
        elif evt.content.body == "seen":
            await say(evt.room_id, f"{read} read receipts")

    print("ready", flush=True)
    await asyncio.Event().wait()


logging.basicConfig(level=logging.DEBUG)
asyncio.run(main())
