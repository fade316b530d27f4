// matrix-js-sdk with sliding sync and Rust crypto against the server at $HOMESERVER: invitations, an encrypted room, typing,
// receipts, unread counts, a window that moves, and a connection that the server no longer knows. Exits with 0 only if
// every step held. Driven by TestJavaScriptSDKSlidingSync.
import { check, homeserver, register, step, until } from "./common.mjs";

const sdk = await import("matrix-js-sdk");
const { SlidingSync, SlidingSyncEvent } = await import("matrix-js-sdk/lib/sliding-sync.js");

const clients = [];

// start makes a client that knows rooms by sliding sync, the newest of them as many as the window holds
async function start(login, windowSize) {
    const client = sdk.createClient({
        baseUrl: homeserver,
        userId: login.user_id,
        deviceId: login.device_id,
        accessToken: login.access_token,
        timelineSupport: true,
    });
    clients.push(client);
    await client.initRustCrypto({ useIndexedDB: false });
    const state = [
        ["m.room.create", ""], ["m.room.name", ""], ["m.room.encryption", ""], ["m.room.power_levels", ""],
        ["m.room.join_rules", ""], ["m.room.member", "$ME"], ["m.room.member", "$LAZY"],
    ];
    const lists = new Map([["all", { ranges: [[0, windowSize - 1]], timeline_limit: 10, required_state: state }]]);
    const sliding = new SlidingSync(homeserver, lists, { timeline_limit: 50, required_state: [["*", "*"]] }, client, 5000);
    sliding.seen = [];
    sliding.on(SlidingSyncEvent.Lifecycle, (what, response, error) => {
        if (response) sliding.seen.push(response);
        if (error) sliding.failed = error;
    });
    await client.startClient({ slidingSync: sliding });
    await until("first sync", () => sliding.seen.length > 0);
    return [client, sliding];
}

const message = (client, roomId, body) =>
    client.getRoom(roomId)?.getLiveTimeline().getEvents().find((event) => event.getContent().body === body);

async function main() {
    const versions = await (await fetch(`${homeserver}/_matrix/client/versions`)).json();
    check(versions.unstable_features["org.matrix.simplified_msc3575"] === true, "GET /versions does not tell of sliding sync");

    const [alice, aliceSync] = await start(await register("alice"), 20);
    const [bob, bobSync] = await start(await register("bob"), 2);
    step("two clients run");

    const { room_id: roomId } = await alice.createRoom({
        name: "Sliding",
        invite: [bob.getUserId()],
        initial_state: [{ type: "m.room.encryption", state_key: "", content: { algorithm: "m.megolm.v1.aes-sha2" } }],
    });
    await until("the invitation", () => bob.getRoom(roomId)?.getMyMembership() === "invite");
    check(bob.getRoom(roomId).name === "Sliding", `the invitation is to ${bob.getRoom(roomId).name}`);
    await bob.joinRoom(roomId);
    await until("joined", () => bob.getRoom(roomId)?.getMyMembership() === "join");
    await until("alice sees bob", () => alice.getRoom(roomId)?.getMember(bob.getUserId())?.membership === "join");
    step("an invitation was accepted");

    await alice.sendTextMessage(roomId, "hello by sliding sync");
    const got = await until("the message", () => message(bob, roomId, "hello by sliding sync"));
    check(got.isEncrypted() && !got.isDecryptionFailure(), "the message was not encrypted, or cannot be read");
    await bob.sendTextMessage(roomId, "hello back");
    await until("the answer", () => message(alice, roomId, "hello back"));
    step("encrypted messages passed in both directions");

    await bob.sendTyping(roomId, true, 10_000);
    await until("bob types", () => alice.getRoom(roomId)?.getMember(bob.getUserId())?.typing);
    await bob.sendReadReceipt(got);
    await until("bob has read", () => alice.getRoom(roomId)?.hasUserReadEvent(bob.getUserId(), got.getId()));
    step("typing and receipts arrived");

    // more rooms than bob's window holds: each comes into it when something happens there
    const rooms = [];
    for (let n = 0; n < 4; n++) {
        const made = await alice.createRoom({ name: `Room ${n}`, preset: "public_chat" });
        rooms.push(made.room_id);
        await bob.joinRoom(made.room_id);
    }
    for (const [n, id] of rooms.entries()) {
        await alice.sendTextMessage(id, `in room ${n}`);
        await until(`the message in room ${n}`, () => message(bob, id, `in room ${n}`));
    }
    check(bobSync.getListData("all").joinedCount === 5, `bob's list counts ${bobSync.getListData("all").joinedCount} rooms`);
    await alice.sendTextMessage(roomId, "in the first room again");
    await until("a room that comes back into the window", () => message(bob, roomId, "in the first room again"));
    step("a window of two over five rooms");

    // a subscription brings older events than the list did
    for (let n = 0; n < 25; n++) await alice.sendTextMessage(rooms[0], `history ${n}`);
    await until("the last of them", () => message(bob, rooms[0], "history 24"));
    bobSync.modifyRoomSubscriptions(new Set([rooms[1]]));
    await until("the subscribed room", () =>
        bobSync.seen.some((r) => r.rooms?.[rooms[1]]?.unstable_expanded_timeline || r.rooms?.[rooms[1]]?.required_state?.length > 6));
    step("a room was subscribed to");

    // the server forgets a connection when the client begins another one of the same name: the SDK begins again
    const seen = bobSync.seen.length;
    await bob.http.authedRequest("POST", "/sync", {}, { lists: {} }, { prefix: "/_matrix/client/unstable/org.matrix.simplified_msc3575" });
    await alice.sendTextMessage(rooms[2], "after the connection was lost");
    await until("M_UNKNOWN_POS", () => bobSync.failed?.errcode === "M_UNKNOWN_POS");
    await until("what came meanwhile", () => message(bob, rooms[2], "after the connection was lost"));
    check(bobSync.seen.length > seen, "no response after the connection was lost");
    step("a lost connection began again");

    check(!aliceSync.failed, `alice's connection failed: ${aliceSync.failed}`);
}

try {
    await main();
    step("all held");
} catch (error) {
    process.stdout.write(`FAILED: ${error.stack}\n`);
    process.exitCode = 1;
}
for (const client of clients) client.stopClient();
setTimeout(() => process.exit(), 200);
