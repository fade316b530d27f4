// OAuth 2.0 against the server at $HOMESERVER with clients that nobody here wrote: oauth4webapi, which is strict about the
// RFCs, and matrix-js-sdk as Element Web uses it. A person's browser is a few lines of fetch: cookies, redirects, forms.
// Exits with 0 only if every step held. Driven by TestOAuth.
if (!process.env.DEBUG) {
    for (const level of ["trace", "debug", "log", "info", "warn", "error"]) console[level] = () => {};
}
const oauth = await import("oauth4webapi");
const sdk = await import("matrix-js-sdk");
const { OAuth2 } = await import("matrix-js-sdk/lib/oauth/index.js");

const homeserver = process.env.HOMESERVER;
const user = "oauth" + Math.random().toString(36).slice(2, 8);
const password = "correct horse " + user;
const redirectUri = "https://chat.example/cb";
const insecure = { [oauth.allowInsecureRequests]: true };

const step = (text) => process.stdout.write(text + "\n");
function check(ok, text) {
    if (!ok) throw new Error(text);
}

class Browser {
    cookies = new Map();
    async go(url, form) {
        for (let hops = 0; hops < 12; hops++) {
            if (!url.startsWith(homeserver)) return { left: url };
            const response = await fetch(url, {
                method: form ? "POST" : "GET",
                body: form && new URLSearchParams(form),
                redirect: "manual",
                headers: { Cookie: [...this.cookies].map(([name, value]) => `${name}=${value}`).join("; ") },
            });
            for (const cookie of response.headers.getSetCookie()) {
                const [name, value] = cookie.split(";")[0].split("=");
                if (/max-age=0/i.test(cookie)) this.cookies.delete(name);
                else this.cookies.set(name, value);
            }
            if (response.status < 300 || response.status > 399) {
                this.url = url;
                this.page = await response.text();
                check(response.ok, `${url}: ${response.status} ${this.page.replace(/<style>[^]*<\/style>/, "")}`);
                return { page: this.page };
            }
            url = new URL(response.headers.get("location"), url).href;
            form = undefined;
        }
        throw new Error("redirects without end at " + url);
    }
    // submit fills in the first form whose address begins with action
    async submit(action, values) {
        const unescape = (s) => s.replaceAll("&amp;", "&").replaceAll("&#43;", "+").replaceAll("&#34;", '"');
        for (const [, at, body] of this.page.matchAll(/<form method="post" action="([^"]*)"[^>]*>([^]*?)<\/form>/g)) {
            if (!unescape(at).startsWith(action)) continue;
            const form = {};
            for (const [input] of body.matchAll(/<input[^>]*>/g)) {
                const name = /name="([^"]*)"/.exec(input)?.[1];
                if (name) form[name] = unescape(/value="([^"]*)"/.exec(input)?.[1] ?? "");
            }
            return this.go(new URL(unescape(at), this.url).href, { ...form, ...values });
        }
        throw new Error(`no form for ${action} on ${this.url}`);
    }
}

const browser = new Browser();

// --- oauth4webapi
const issuer = new URL(homeserver + "/");
const as = await oauth.processDiscoveryResponse(issuer, await oauth.discoveryRequest(issuer, { algorithm: "oauth2", ...insecure }));
check(as.authorization_response_iss_parameter_supported, "RFC 9207 is announced");
const metadata = {
    client_name: "Independent", client_uri: "https://chat.example/", redirect_uris: [redirectUri], token_endpoint_auth_method: "none",
    application_type: "web", grant_types: ["authorization_code", "refresh_token", "urn:ietf:params:oauth:grant-type:device_code"], response_types: ["code"],
};
const client = await oauth.processDynamicClientRegistrationResponse(await oauth.dynamicClientRegistrationRequest(as, metadata, insecure));
step("discovered and registered");

async function authorize(scope, extra = {}) {
    const verifier = oauth.generateRandomCodeVerifier();
    const state = oauth.generateRandomState();
    const url = new URL(as.authorization_endpoint);
    for (const [name, value] of Object.entries({
        client_id: client.client_id, redirect_uri: redirectUri, response_type: "code", scope, state,
        code_challenge: await oauth.calculatePKCECodeChallenge(verifier), code_challenge_method: "S256", ...extra,
    })) url.searchParams.set(name, value);
    return { url, verifier, state };
}
async function exchange({ verifier, state }, left) {
    const params = oauth.validateAuthResponse(as, client, new URL(left), state);
    const response = await oauth.authorizationCodeGrantRequest(as, client, oauth.None(), params, redirectUri, verifier, insecure);
    return oauth.processAuthorizationCodeResponse(as, client, response);
}
const device = (id) => `urn:matrix:client:api:* urn:matrix:client:device:${id}`;

let request = await authorize(device("INDEPENDENT1"), { prompt: "create" });
await browser.go(request.url.href);
await browser.submit("/register", { username: user, password, password2: password });
let { left } = await browser.submit("/consent", { answer: "allow" });
let tokens = await exchange(request, left);
check(tokens.scope === device("INDEPENDENT1") && tokens.expires_in > 0 && tokens.refresh_token, "the token response is whole");
step("registered an account, got tokens");

const whoami = async (token) => {
    const response = await fetch(homeserver + "/_matrix/client/v3/account/whoami", { headers: { Authorization: "Bearer " + token } });
    return { status: response.status, ...(await response.json()) };
};
check((await whoami(tokens.access_token)).device_id === "INDEPENDENT1", "whoami");

const refreshed = await oauth.processRefreshTokenResponse(as, client,
    await oauth.refreshTokenGrantRequest(as, client, oauth.None(), tokens.refresh_token, insecure));
check((await whoami(refreshed.access_token)).status === 200, "the refreshed token");
check((await whoami(tokens.access_token)).status === 401, "the old token ended");
await oauth.processRevocationResponse(await oauth.revocationRequest(as, client, oauth.None(), refreshed.access_token, insecure));
check((await whoami(refreshed.access_token)).status === 401, "the revoked token ended");
step("refreshed and revoked");

const nonce = oauth.generateRandomNonce();
request = await authorize("openid " + device("INDEPENDENT2"), { nonce });
await browser.go(request.url.href);
({ left } = await browser.submit("/consent", { answer: "allow" }));
const response = await oauth.authorizationCodeGrantRequest(as, client, oauth.None(), oauth.validateAuthResponse(as, client, new URL(left), request.state),
    redirectUri, request.verifier, insecure);
const openid = await oauth.processAuthorizationCodeResponse(as, { ...client, id_token_signed_response_alg: "ES256" }, response, { expectedNonce: nonce, requireIdToken: true });
check(oauth.getValidatedIdTokenClaims(openid).sub.startsWith("@" + user), "the ID token's subject");
await oauth.validateApplicationLevelSignature(as, response, insecure);
step("an ID token, its signature checked against the published keys");

// --- the device grant
const begun = await oauth.processDeviceAuthorizationResponse(as, client,
    await oauth.deviceAuthorizationRequest(as, client, oauth.None(), { scope: device("TELEVISION1") }, insecure));
await browser.go(begun.verification_uri_complete);
await browser.submit("/device", { answer: "allow" });
const television = await oauth.processDeviceCodeResponse(as, client,
    await oauth.deviceCodeGrantRequest(as, client, oauth.None(), begun.device_code, insecure));
check((await whoami(television.access_token)).device_id === "TELEVISION1", "the device grant");
step("the device grant");

// --- matrix-js-sdk, as Element Web
const anonymous = sdk.createClient({ baseUrl: homeserver });
const authMetadata = await anonymous.getAuthMetadata();
const clientId = await OAuth2.registerClient(authMetadata, {
    client_name: "Element", client_uri: "https://chat.example/", redirect_uris: [redirectUri], application_type: "web",
});
const element = new OAuth2(authMetadata, { clientId });
await browser.go(await element.generateAuthorizationCodeGrantUrl("st4te", redirectUri, "fragment"));
({ left } = await browser.submit("/consent", { answer: "allow" }));
const answer = new URLSearchParams(new URL(left).hash.slice(1));
check(answer.get("state") === "st4te", "the state came back in the fragment");
let session = await element.completeAuthorizationCodeGrant(answer.get("code"), redirectUri);
session = await element.performRefreshTokenGrant(session.refresh_token);
const me = await whoami(session.access_token);
check(me.device_id === element.context.deviceId, "matrix-js-sdk is signed in");

const signedIn = sdk.createClient({ baseUrl: homeserver, accessToken: session.access_token, userId: me.user_id, deviceId: me.device_id });
await signedIn.initRustCrypto({ useIndexedDB: false });
await signedIn.getCrypto().bootstrapCrossSigning({
    setupNewCrossSigning: true,
    authUploadDeviceSigningKeys: async (makeRequest) => { await makeRequest(null); },
});
// A second set of keys needs its owner's consent in the browser: m.oauth.
await signedIn.getCrypto().bootstrapCrossSigning({
    setupNewCrossSigning: true,
    authUploadDeviceSigningKeys: async (makeRequest) => {
        let challenge;
        try {
            await makeRequest(null);
        } catch (error) {
            challenge = error.data;
        }
        check(challenge?.flows?.some((flow) => flow.stages[0] === "m.oauth"), "m.oauth is offered: " + JSON.stringify(challenge));
        await browser.go(challenge.params["m.oauth"].url);
        await browser.submit("/account/approve", { answer: "allow" });
        await makeRequest({ session: challenge.session });
    },
});
step("cross-signing reset with m.oauth");
signedIn.stopClient();
await element.revokeToken(session.refresh_token, "refresh_token");
check((await whoami(session.access_token)).status === 401, "signed out");
step("matrix-js-sdk signed out");
process.exit(0);
