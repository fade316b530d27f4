"""A pushkin for Sygnal that needs no Apple, Google or browser: it notes what it would send, one JSON object a line.

In sygnal.yaml:

    apps:
      org.example.app:
        type: sygnal_recorder.RecorderPushkin
        file: /where/to/note

It rejects the pushkeys that begin with "gone" and fails for those that begin with "broken" as the networks of phones do.
"""

import json

from sygnal.exceptions import NotificationDispatchException
from sygnal.notifications import ConcurrencyLimitedPushkin


class RecorderPushkin(ConcurrencyLimitedPushkin):
    UNDERSTOOD_CONFIG_FIELDS = {"type", "file"} | ConcurrencyLimitedPushkin.UNDERSTOOD_CONFIG_FIELDS

    async def _dispatch_notification_unlimited(self, n, device, context):
        with open(self.get_config("file", str), "a", encoding="utf-8") as notes:
            json.dump(
                {
                    "app_id": device.app_id,
                    "pushkey": device.pushkey,
                    "data": device.data,
                    "sound": device.tweaks.sound,
                    "event_id": n.event_id,
                    "room_id": n.room_id,
                    "room_name": n.room_name,
                    "sender": n.sender,
                    "sender_display_name": n.sender_display_name,
                    "type": n.type,
                    "prio": n.prio,
                    "content": n.content,
                    "unread": n.counts.unread,
                },
                notes,
            )
            notes.write("\n")
        if device.pushkey.startswith("broken"):
            raise NotificationDispatchException("the network of phones does not answer")
        return [device.pushkey] if device.pushkey.startswith("gone") else []
