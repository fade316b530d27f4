// What the programs that drive matrix-js-sdk have in common. It is imported before the SDK, which talks a lot on the console
// that it takes hold of when it is loaded: silent unless DEBUG is set.
if (!process.env.DEBUG) {
    for (const level of ["trace", "debug", "log", "info", "warn", "error"]) console[level] = () => {};
}

export const homeserver = process.env.HOMESERVER;
export const tag = Math.random().toString(36).slice(2, 8);
export const password = "correct horse " + tag;

const started = Date.now();
export const step = (text) => process.stdout.write(`${((Date.now() - started) / 1000).toFixed(1).padStart(6)} s  ${text}\n`);

export function check(ok, text) {
    if (!ok) throw new Error(text);
}

// until polls a condition; what it wants is said when the time is up
export async function until(text, condition, seconds = 30) {
    const end = Date.now() + seconds * 1000;
    for (;;) {
        const got = await condition();
        if (got) return got;
        if (Date.now() > end) throw new Error(`after ${seconds} s still not: ${text}`);
        await new Promise((done) => setTimeout(done, 50));
    }
}

export async function register(name) {
    const post = async (body) => {
        const response = await fetch(`${homeserver}/_matrix/client/v3/register`, {
            method: "POST",
            headers: { "Content-Type": "application/json" },
            body: JSON.stringify(body),
        });
        return [response.status, await response.json()];
    };
    const [status, flows] = await post({});
    check(status === 401 && flows.flows.length > 0, `an empty registration answers ${status} ${JSON.stringify(flows)}`);
    const [made, login] = await post({
        username: `${name}-${tag}`,
        password,
        initial_device_display_name: `${name}'s first device`,
        auth: { type: "m.login.dummy", session: flows.session },
    });
    check(made === 200, `registration answers ${made} ${JSON.stringify(login)}`);
    return login;
}
