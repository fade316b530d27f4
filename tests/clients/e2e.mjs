// matrix-js-sdk with Rust crypto against the server at $HOMESERVER, as two people at work use it: an encrypted room,
// cross-signing and key backup, a new device that reads what was written before it, files. Exits with 0 only if every
// step held. Driven by TestJavaScriptSDK.
import { webcrypto as crypto } from "node:crypto";
import { check, homeserver, password, register, step, until } from "./common.mjs";

const sdk = await import("matrix-js-sdk");
const { decodeRecoveryKey } = await import("matrix-js-sdk/lib/crypto-api/index.js");

const clients = [];

// start makes a client from a login and waits for its first sync
async function start(login, callbacks = {}) {
    const client = sdk.createClient({
        baseUrl: homeserver,
        userId: login.user_id,
        deviceId: login.device_id,
        accessToken: login.access_token,
        cryptoCallbacks: callbacks,
        timelineSupport: true,
    });
    clients.push(client);
    await client.initRustCrypto({ useIndexedDB: false });
    await client.startClient({ initialSyncLimit: 20, lazyLoadMembers: true });
    await until("first sync", () => client.getSyncState() === "PREPARED" || client.getSyncState() === "SYNCING");
    return client;
}

const find = (client, roomId, matches) =>
    client.getRoom(roomId)?.getLiveTimeline().getEvents().find((event) => matches(event));
const message = (client, roomId, body) => find(client, roomId, (event) => event.getContent().body === body);

// secretStorage keeps the recovery key as a person would on paper
function secretStorage() {
    const kept = {};
    return {
        kept,
        getSecretStorageKey: async ({ keys }) => {
            const id = Object.keys(keys).find((keyId) => kept.privateKey);
            return id && kept.privateKey ? [id, kept.privateKey] : null;
        },
        cacheSecretStorageKey: (_id, _info, key) => {
            kept.privateKey = key;
        },
    };
}

// interactive authorises what the server wants to see a password for
const interactive = (client) => async (makeRequest) => {
    try {
        return await makeRequest(null);
    } catch (error) {
        if (error.httpStatus !== 401 || !error.data?.flows) throw error;
        return makeRequest({
            type: "m.login.password",
            identifier: { type: "m.id.user", user: client.getUserId() },
            password,
            session: error.data.session,
        });
    }
};

async function download(client, mxc, expected) {
    const url = client.mxcUrlToHttp(mxc, undefined, undefined, undefined, false, true, true);
    const without = await fetch(url);
    check(without.status === 401, `a download without a token answers ${without.status}`);
    await without.arrayBuffer();
    const response = await fetch(url, { headers: { Authorization: `Bearer ${client.getAccessToken()}` } });
    check(response.status === 200, `the download answers ${response.status}`);
    const bytes = Buffer.from(await response.arrayBuffer());
    check(bytes.equals(Buffer.from(expected)), "the download differs from what was uploaded");
    return response;
}

const base64 = (bytes) => Buffer.from(bytes).toString("base64").replace(/=+$/, "");
const counter = (iv) => ({ name: "AES-CTR", counter: iv, length: 64 });

// encryptFile follows the specification's "Sending encrypted attachments"
async function encryptFile(plain) {
    const key = await crypto.subtle.generateKey({ name: "AES-CTR", length: 256 }, true, ["encrypt", "decrypt"]);
    const iv = new Uint8Array(16);
    crypto.getRandomValues(iv.subarray(0, 8));
    const cipher = await crypto.subtle.encrypt(counter(iv), key, plain);
    return {
        cipher: Buffer.from(cipher),
        info: {
            v: "v2",
            key: await crypto.subtle.exportKey("jwk", key),
            iv: base64(iv),
            hashes: { sha256: base64(await crypto.subtle.digest("SHA-256", cipher)) },
        },
    };
}

async function decryptFile(info, cipher) {
    check(base64(await crypto.subtle.digest("SHA-256", cipher)) === info.hashes.sha256, "the file's hash is wrong");
    const key = await crypto.subtle.importKey("jwk", info.key, { name: "AES-CTR" }, false, ["decrypt"]);
    return Buffer.from(await crypto.subtle.decrypt(counter(Buffer.from(info.iv, "base64")), key, cipher));
}

async function run() {
    const aliceLogin = await register("alice");
    const bobLogin = await register("bob");
    const paper = secretStorage();
    const alice = await start(aliceLogin, paper);
    const bob = await start(bobLogin);
    step("two users registered and in sync");

    await alice.getCrypto().bootstrapCrossSigning({ authUploadDeviceSigningKeys: interactive(alice) });
    await alice.getCrypto().bootstrapSecretStorage({
        setupNewSecretStorage: true,
        setupNewKeyBackup: true,
        createSecretStorageKey: async () => {
            const key = await alice.getCrypto().createRecoveryKeyFromPassphrase();
            paper.kept.recovery = key.encodedPrivateKey;
            return key;
        },
    });
    check(await alice.getCrypto().isCrossSigningReady(), "cross-signing is not ready");
    check(await alice.getCrypto().isSecretStorageReady(), "secret storage is not ready");
    check((await alice.getCrypto().checkKeyBackupAndEnable())?.trustInfo.trusted, "the key backup is not trusted");
    step("cross-signing, secret storage and key backup set up");

    const { room_id: roomId } = await alice.createRoom({
        name: "研发 Research",
        preset: "private_chat",
        invite: [bob.getUserId()],
        initial_state: [
            { type: "m.room.encryption", state_key: "", content: { algorithm: "m.megolm.v1.aes-sha2" } },
        ],
    });
    await until("bob sees the invitation", () => bob.getRoom(roomId)?.getMyMembership() === "invite");
    await bob.joinRoom(roomId);
    await until("alice sees that bob has joined", () => alice.getRoom(roomId)?.getMember(bob.getUserId())?.membership === "join");
    await until("bob has the room", () => bob.getRoom(roomId)?.getMyMembership() === "join");
    check(bob.getRoom(roomId).name === "研发 Research", `bob sees the room as ${bob.getRoom(roomId).name}`);
    check(await bob.getCrypto().isEncryptionEnabledInRoom(roomId), "bob does not see the room as encrypted");
    step("encrypted room made, invited, joined");

    const first = "季度报告已经准备好了 – the quarterly report is ready";
    await alice.sendTextMessage(roomId, first);
    const received = await until("bob reads the message", () => message(bob, roomId, first));
    check(received.isEncrypted(), "the message came unencrypted");
    check(received.getWireContent().ciphertext && !received.getWireContent().body, "the message travelled in the clear");
    const answer = "谢谢, thank you";
    await bob.sendTextMessage(roomId, answer);
    const seen = await until("alice reads the answer", () => message(alice, roomId, answer));
    step("messages decrypted on both sides");

    await alice.sendReadReceipt(seen);
    await until("bob sees alice's receipt", () => bob.getRoom(roomId).hasUserReadEvent(alice.getUserId(), seen.getId()));
    const { event_id: reaction } = await bob.sendEvent(roomId, "m.reaction", {
        "m.relates_to": { rel_type: "m.annotation", event_id: received.getId(), key: "👍" },
    });
    await until("alice sees the reaction", () => find(alice, roomId, (event) => event.getId() === reaction));
    step("receipt and reaction seen");

    await files(alice, bob, roomId);
    await newDevice(alice, roomId, paper, first, answer);

    await bob.logout(true);
    const after = await fetch(`${homeserver}/_matrix/client/v3/account/whoami`, {
        headers: { Authorization: `Bearer ${bobLogin.access_token}` },
    });
    check(after.status === 401, `a token answers ${after.status} after logout`);
    step("logged out");
}

async function files(alice, bob, roomId) {
    const { room_id: plainRoom } = await alice.createRoom({ preset: "public_chat", name: "Lobby" });
    await bob.joinRoom(plainRoom);
    const text = Buffer.from("Dienstplan, 值班表, rota\n".repeat(1000));
    const plain = await alice.uploadContent(text, { name: "值班表.txt", type: "text/plain" });
    await alice.sendMessage(plainRoom, { msgtype: "m.file", body: "值班表.txt", url: plain.content_uri, info: { size: text.length } });
    const plainEvent = await until("bob sees the file", () => message(bob, plainRoom, "值班表.txt"));
    const response = await download(bob, plainEvent.getContent().url, text);
    const disposition = response.headers.get("Content-Disposition") ?? "";
    check(disposition.includes(encodeURIComponent("值班表.txt")), `the file's name is lost: ${disposition}`);
    step("plain file sent and read");

    const { cipher, info } = await encryptFile(text);
    const upload = await alice.uploadContent(cipher, { includeFilename: false, type: "application/octet-stream" });
    await alice.sendMessage(roomId, { msgtype: "m.file", body: "secret.txt", file: { ...info, url: upload.content_uri } });
    const event = await until("bob sees the encrypted file", () => message(bob, roomId, "secret.txt"));
    check(event.isEncrypted(), "the file's key came unencrypted");
    const { file } = event.getContent();
    await download(bob, file.url, cipher);
    check((await decryptFile(file, cipher)).equals(text), "the file decrypts to something else");
    step("encrypted file sent and read");
}

// newDevice signs alice in anew, with nothing but her password and her recovery key
async function newDevice(alice, roomId, paper, ...bodies) {
    await until("the room keys are in the backup", async () => {
        const { count } = await alice.http.authedRequest("GET", "/room_keys/version", undefined, undefined, { prefix: "/_matrix/client/v3" });
        return count >= 2;
    });
    await alice.stopClient(); // so that the keys can come from nowhere else
    const login = await sdk.createClient({ baseUrl: homeserver }).loginRequest({
        type: "m.login.password",
        identifier: { type: "m.id.user", user: alice.getUserIdLocalpart() },
        password,
        initial_device_display_name: "alice's second device",
    });
    check(login.device_id !== alice.getDeviceId(), "the new login has the old device");
    const remembered = secretStorage();
    const device = await start(login, remembered);
    const old = await until("the room is on the new device", () => find(device, roomId, (event) => event.isDecryptionFailure()));
    check(old, "the new device could read without a key");

    remembered.kept.privateKey = decodeRecoveryKey(paper.kept.recovery);
    const known = await device.getCrypto().userHasCrossSigningKeys(device.getUserId(), true);
    check(known, "the new device cannot see its owner's cross-signing keys");
    await device.getCrypto().bootstrapCrossSigning({ authUploadDeviceSigningKeys: interactive(device) });
    await device.getCrypto().loadSessionBackupPrivateKeyFromSecretStorage();
    const restored = await device.getCrypto().restoreKeyBackup();
    check(restored.imported >= 2, `the backup gave ${restored.imported} keys of ${restored.total}`);
    for (const body of bodies) {
        await until(`the new device reads «${body}»`, () => message(device, roomId, body));
    }
    await until("the new device is signed by its owner", async () => {
        const status = await device.getCrypto().getDeviceVerificationStatus(device.getUserId(), device.getDeviceId());
        return status?.crossSigningVerified;
    });
    step("key backup restored on a new device, which reads the old messages");

    const devices = (await device.getDevices()).devices.map((d) => d.device_id);
    check(devices.includes(alice.getDeviceId()) && devices.length === 2, `alice has devices ${devices}`);
}

let code = 0;
try {
    await run();
} catch (error) {
    process.stdout.write(`FAILED: ${error.stack}\n`);
    code = 1;
}
for (const client of clients) client.stopClient();
process.exit(code);
