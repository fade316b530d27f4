package hooks

import (
	"crypto/hmac"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/tidwall/gjson"

	"github.com/moothall/moothall/homeserver/store"
	"github.com/moothall/moothall/homeserver/web"
)

const (
	signedFor      = 5 * time.Minute // Standard Webhooks: how far a signature's time may lie from ours
	robotSignedFor = time.Hour       // what 钉钉 and 飞书 say of theirs
)

// shown is the secrets that a request shows: which robots put where is kept, so that what posts to them only changes its URL.
func shown(r *http.Request) []string {
	var out []string
	add := func(s string) {
		if s != "" {
			out = append(out, s)
		}
	}
	if scheme, token, ok := strings.Cut(r.Header.Get("Authorization"), " "); ok {
		switch {
		case strings.EqualFold(scheme, "Bearer"):
			add(strings.TrimSpace(token))
		case strings.EqualFold(scheme, "Basic"): // contact points that know nothing else; the name does not matter
			_, password, _ := r.BasicAuth()
			add(password)
		}
	}
	add(r.Header.Get("X-Gitlab-Token"))
	add(web.PathParam(r, "secret"))
	add(web.QueryString(r, "key"))          // 企业微信
	add(web.QueryString(r, "access_token")) // 钉钉
	return out
}

// showsToken tells whether a request shows the secret of a hook, or that of a test that runs now.
func showsToken(r *http.Request, hk *store.Hook, now int64) bool {
	ok := false
	for _, s := range shown(r) {
		sum := hash(s)
		if hk.Auth == AuthToken && subtle.ConstantTimeCompare(sum, hk.SecretHash) == 1 {
			ok = true
		}
		if now < hk.TestUntil && subtle.ConstantTimeCompare(sum, hk.TestHash) == 1 {
			ok = true
		}
	}
	return ok
}

// mac is the HMAC-SHA256 of some pieces.
func mac(key []byte, pieces ...string) []byte {
	m := hmac.New(sha256.New, key)
	for _, p := range pieces {
		_, _ = m.Write([]byte(p)) // never fails
	}
	return m.Sum(nil)
}

// signingKey is the key that a secret stands for. Spec: Standard Webhooks, "Symmetric" secrets.
func signingKey(secret string) []byte {
	if b, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(secret, "whsec_")); err == nil && strings.HasPrefix(secret, "whsec_") {
		return b
	}
	return []byte(secret)
}

// signed tells whether a request is signed with the secret of a hook, in any of the ways that are known, and not too long ago.
func signed(r *http.Request, body []byte, secret string, now time.Time) bool {
	near := func(s string, unit, limit time.Duration) bool {
		n, err := strconv.ParseInt(s, 10, 64)
		if err != nil || n < 0 || n > 1<<42 {
			return false
		}
		at := time.Unix(n, 0)
		if unit == time.Millisecond {
			at = time.UnixMilli(n)
		}
		return now.Sub(at).Abs() <= limit
	}
	equal := func(want []byte, got string, decode func(string) ([]byte, error)) bool {
		b, err := decode(got)
		return err == nil && subtle.ConstantTimeCompare(want, b) == 1
	}
	std := base64.StdEncoding.DecodeString
	if sigs := r.Header.Get("Webhook-Signature"); sigs != "" {
		msg, ts := r.Header.Get("Webhook-Id"), r.Header.Get("Webhook-Timestamp")
		if msg == "" || !near(ts, time.Second, signedFor) {
			return false
		}
		want := mac(signingKey(secret), msg, ".", ts, ".", string(body))
		for s := range strings.FieldsSeq(sigs) {
			if v, sig, ok := strings.Cut(s, ","); ok && v == "v1" && equal(want, sig, std) {
				return true
			}
		}
		return false
	}
	if sig, ok := strings.CutPrefix(r.Header.Get("X-Hub-Signature-256"), "sha256="); ok {
		return equal(mac([]byte(secret), string(body)), sig, hex.DecodeString)
	}
	if sig := web.QueryString(r, "sign"); sig != "" { // 钉钉
		ts := web.QueryString(r, "timestamp")
		return near(ts, time.Millisecond, robotSignedFor) && equal(mac([]byte(secret), ts, "\n", secret), sig, std)
	}
	if sig := gjson.GetBytes(body, "sign"); sig.Type == gjson.String { // 飞书: the key holds everything, the message is empty
		ts := gjson.GetBytes(body, "timestamp").String()
		return near(ts, time.Second, robotSignedFor) && equal(mac([]byte(ts+"\n"+secret)), sig.Str, std)
	}
	return false
}

// mayCome tells whether a hook may be used from an address.
func mayCome(addresses []string, ip netip.Addr) bool {
	list, err := prefixes(addresses)
	if err != nil {
		return false // checked when it was stored
	}
	return len(list) == 0 || slices.ContainsFunc(list, func(p netip.Prefix) bool { return p.Contains(ip.Unmap()) })
}
