// A small chat client on matrix-js-sdk, for the browser test: sign in, rooms, encrypted messages, replies. Everything is
// kept in memory. The homeserver comes from ?homeserver=.
import * as sdk from "matrix-js-sdk";

const homeserver = new URL(location).searchParams.get("homeserver");
const $ = (id) => document.getElementById(id);

let client; // after sign-in
let open; // id of the room that is shown
let replyTo; // event that the next message answers
let due = false; // a render is due

// element makes a node; strings become text, never markup
function element(tag, attributes, ...children) {
    const node = document.createElement(tag);
    for (const [key, value] of Object.entries(attributes)) {
        if (key.startsWith("on")) node[key] = value;
        else if (value !== undefined) node.setAttribute(key, value);
    }
    node.append(...children.filter((child) => child !== undefined && child !== null));
    return node;
}

const colours = ["#0b7a5f", "#3b6fb6", "#8a4fb0", "#b2572e", "#2d8296", "#a83f6b", "#6b7a1f"];
function avatar(name) {
    let sum = 0;
    for (const c of name) sum = (sum * 33 + c.codePointAt(0)) >>> 0;
    const letter = [...name.replace(/^[@#!]/, "")][0]?.toUpperCase() ?? "?";
    return element("span", { class: "avatar", style: `background:${colours[sum % colours.length]}` }, letter);
}

async function signIn(user, password) {
    const login = await sdk.createClient({ baseUrl: homeserver }).loginRequest({
        type: "m.login.password",
        identifier: { type: "m.id.user", user },
        password,
        initial_device_display_name: "Browser",
    });
    client = sdk.createClient({
        baseUrl: homeserver,
        userId: login.user_id,
        deviceId: login.device_id,
        accessToken: login.access_token,
        timelineSupport: true,
    });
    await client.initRustCrypto({ useIndexedDB: false });
    for (const event of [
        sdk.ClientEvent.Sync, sdk.ClientEvent.Room, sdk.RoomEvent.Timeline, sdk.RoomEvent.Name, sdk.RoomEvent.MyMembership,
        sdk.RoomEvent.Receipt, sdk.RoomEvent.LocalEchoUpdated, sdk.RoomEvent.UnreadNotifications,
        sdk.RoomMemberEvent.Typing, sdk.RoomStateEvent.Events, sdk.MatrixEventEvent.Decrypted, sdk.UserEvent.DisplayName,
    ]) {
        client.on(event, changed);
    }
    await client.startClient({ initialSyncLimit: 30, lazyLoadMembers: true });
    $("sign-in").hidden = true;
    $("chat").hidden = false;
}

// changed draws everything anew, at most once a frame
function changed() {
    if (due) return;
    due = true;
    setTimeout(() => {
        due = false;
        render();
    }, 16);
}

function render() {
    const rooms = client.getVisibleRooms()
        .filter((room) => ["join", "invite"].includes(room.getMyMembership()))
        .sort((a, b) => b.getLastActiveTimestamp() - a.getLastActiveTimestamp());
    const me = client.getUser(client.getUserId())?.displayName || client.getUserIdLocalpart();
    $("me").replaceChildren(avatar(me), element("div", {}, element("b", {}, me), element("small", {}, client.getUserId())));
    $("rooms").replaceChildren(...rooms.map(roomRow));
    const room = client.getRoom(open);
    if (room) renderRoom(room);
}

function roomRow(room) {
    const last = messages(room).at(-1);
    const unread = room.getUnreadNotificationCount("total");
    const preview = room.getMyMembership() === "invite" ? "Invitation" : last && `${sender(last)}: ${body(last)}`;
    return element(
        "li",
        { class: room.roomId === open ? "room open" : "room", "data-name": room.name, onclick: () => show(room) },
        avatar(room.name),
        element("div", {}, element("b", {}, room.name), element("small", {}, preview ?? "")),
        unread > 0 ? element("span", { class: "badge" }, String(unread)) : "",
    );
}

function show(room) {
    open = room.roomId;
    replyTo = undefined;
    markRead(room);
    changed();
}

function markRead(room) {
    const last = messages(room).at(-1);
    if (room.getMyMembership() === "join" && last && !last.status && document.hasFocus()) {
        if (!room.hasUserReadEvent(client.getUserId(), last.getId())) client.sendReadReceipt(last).catch(console.warn);
    }
}

const messages = (room) => room.getLiveTimeline().getEvents().filter((event) => event.getType() === "m.room.message" || event.isDecryptionFailure());
const sender = (event) => event.sender?.name || event.getSender();
const body = (event) => (event.isDecryptionFailure() ? "Waiting for the key of this message" : event.getContent().body ?? "");

function renderRoom(room) {
    const invited = room.getMyMembership() === "invite";
    $("invitation").hidden = !invited;
    $("composer").hidden = invited;
    if (invited) {
        const inviter = room.getMember(client.getUserId())?.events.member?.getSender();
        $("invitation").firstElementChild.textContent = `${room.getMember(inviter)?.name || inviter} invites you to ${room.name}.`;
    }
    const topic = room.currentState.getStateEvents("m.room.topic", "")?.getContent().topic;
    const members = `${room.getJoinedMemberCount()} members`;
    const lock = room.hasEncryptionStateEvent() && element("span", { class: "lock" }, padlock(), "End-to-end encrypted");
    $("title").replaceChildren(
        avatar(room.name),
        element("div", {}, element("h2", {}, room.name), element("small", {}, topic ? `${topic} · ${members}` : members)),
        lock || "",
    );
    let before;
    $("timeline").replaceChildren(...messages(room).map((event) => {
        const first = before?.getSender() !== event.getSender() || Boolean(event.replyEventId);
        before = event;
        return messageRow(room, event, first);
    }));
    $("timeline").scrollTop = $("timeline").scrollHeight;
    const typing = room.getMembersWithMembership("join").filter((m) => m.typing && m.userId !== client.getUserId());
    $("typing").textContent = typing.length ? `${typing.map((m) => m.name).join(", ")} is typing…` : "";
    $("replying").hidden = !replyTo;
    if (replyTo) $("replying").textContent = `Replying to ${sender(replyTo)}: ${body(replyTo)}`;
    markRead(room);
}

function padlock() {
    const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    svg.setAttribute("viewBox", "0 0 24 24");
    svg.setAttribute("width", "15");
    const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
    path.setAttribute("fill", "currentColor");
    path.setAttribute("d", "M7 10V7a5 5 0 0 1 10 0v3h1.5v11h-13V10zm2 0h6V7a3 3 0 0 0-6 0z");
    svg.append(path);
    return svg;
}

function messageRow(room, event, first) {
    const mine = event.getSender() === client.getUserId();
    const time = element("time", {}, new Date(event.getTs()).toTimeString().slice(0, 5));
    const answered = event.replyEventId && room.findEventById(event.replyEventId);
    const reactions = room.relations.getChildEventsForEvent(event.getId(), "m.annotation", "m.reaction")?.getSortedAnnotationsByKey() ?? [];
    return element(
        "li",
        { class: `message${first ? " first" : ""}${mine ? " mine" : ""}`, "data-body": body(event), "data-id": event.status ? undefined : event.getId() },
        first ? avatar(sender(event)) : element("span", {}),
        first ? element("div", { class: "who" }, sender(event), time) : "",
        element(
            "div",
            { class: "text" },
            element(
                "div",
                { class: "bubble" },
                answered ? element("blockquote", {}, element("b", {}, sender(answered)), body(answered)) : "",
                body(event),
            ),
            reactions.length
                ? element("div", { class: "reactions" }, ...reactions.map(([key, events]) => element("span", {}, `${key} ${events.size}`)))
                : "",
        ),
        element("button", {
            class: "reply",
            onclick: () => {
                replyTo = event;
                changed();
                $("text").focus();
            },
        }, "Reply"),
    );
}

$("server").textContent = homeserver;
$("sign-in").querySelector("form").onsubmit = async (submit) => {
    submit.preventDefault();
    $("problem").textContent = "";
    try {
        await signIn($("user").value, $("password").value);
    } catch (error) {
        $("problem").textContent = error.data?.error ?? error.message;
    }
};

$("new-room").querySelector("form").onsubmit = async (submit) => {
    submit.preventDefault();
    const invite = $("room-invite").value.split(/[\s,]+/).filter(Boolean);
    const { room_id: made } = await client.createRoom({
        name: $("room-name").value,
        topic: $("room-topic").value || undefined,
        preset: "private_chat",
        invite,
        initial_state: [{ type: "m.room.encryption", state_key: "", content: { algorithm: "m.megolm.v1.aes-sha2" } }],
    });
    open = made;
    submit.target.reset();
    $("new-room").open = false;
    changed();
};

$("accept").onclick = async () => {
    await client.joinRoom(open);
    changed();
};

$("text").oninput = () => client.sendTyping(open, true, 10_000).catch(console.warn);
$("composer").onsubmit = async (submit) => {
    submit.preventDefault();
    const text = $("text").value;
    if (!text.trim() || !open) return;
    const content = { msgtype: "m.text", body: text };
    if (replyTo) content["m.relates_to"] = { "m.in_reply_to": { event_id: replyTo.getId() } };
    $("text").value = "";
    replyTo = undefined;
    await client.sendMessage(open, content);
    await client.sendTyping(open, false, 0);
};
