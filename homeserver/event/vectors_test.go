package event

import (
	"crypto/ed25519"
	"encoding/base64"
	"testing"

	"github.com/moothall/moothall/homeserver/mxerr"
)

// testKey is the key of the specification's test vectors.
func testKey(t testing.TB) SigningKey {
	t.Helper()
	seed, err := DecodeBase64("YJDBA9Xnr2sVqXD9Vj7XVUnmFZcZrlw8Md7kMW+3XA1")
	if err != nil {
		t.Fatal(err)
	}
	return SigningKey{KeyID: "ed25519:1", Private: ed25519.NewKeyFromSeed(seed)}
}

func (k SigningKey) public() ed25519.PublicKey { return k.Private.Public().(ed25519.PublicKey) }

// Spec: appendices, "JSON Signing".
func TestSignJSONVectors(t *testing.T) {
	for _, tc := range []struct{ in, sig, want string }{
		{`{}`, "K8280/U9SSy9IVtjBuVeLr+HpOB4BQFWbg+UZaADMtTdGYI7Geitb76LTrr5QV/7Xg4ahLwYGYZzuHGZKM5ZAQ", `{"signatures":{"domain":{"ed25519:1":"SIG"}}}`},
		{`{"two": "Two", "one": 1}`, "KqmLSbO39/Bzb0QIYE82zqLwsA+PDzYIpIRA2sRQ4sL53+sN6/fpNSoqE7BP7vBZhG6kYdD13EIMJpvhJI+6Bw", `{"one":1,"signatures":{"domain":{"ed25519:1":"SIG"}},"two":"Two"}`},
	} {
		got, err := SignJSON([]byte(tc.in), "domain", testKey(t))
		if err != nil {
			t.Fatal(err)
		}
		want := replaceOnce(tc.want, "SIG", tc.sig)
		if string(got) != want {
			t.Errorf("SignJSON(%s)\n got %s\nwant %s", tc.in, got, want)
		}
		if err := VerifyJSON(got, "domain", "ed25519:1", testKey(t).public()); err != nil {
			t.Errorf("VerifyJSON: %v", err)
		}
	}
}

func replaceOnce(s, old, new string) string {
	for i := 0; i+len(old) <= len(s); i++ {
		if s[i:i+len(old)] == old {
			return s[:i] + new + s[i+len(old):]
		}
	}
	return s
}

// Spec: appendices, "Event Signing".
func TestEventSigningVectors(t *testing.T) {
	v, _ := LookupVersion("1")
	for _, tc := range []struct{ in, hash, sig string }{
		{
			`{"room_id":"!x:domain","sender":"@a:domain","origin":"domain","origin_server_ts":1000000,"signatures":{},"hashes":{},"type":"X","content":{},"prev_events":[],"auth_events":[],"depth":3,"unsigned":{"age_ts":1000000}}`,
			"5jM4wQpv6lnBo7CLIghJuHdW+s2CMBJPUOGOC89ncos",
			"KxwGjPSDEtvnFgU00fwFz+l6d2pJM6XBIaMEn81SXPTRl16AqLAYqfIReFGZlHi5KLjAWbOoMszkwsQma+lYAg",
		}, {
			`{"content":{"body":"Here is the message content"},"event_id":"$0:domain","origin":"domain","origin_server_ts":1000000,"type":"m.room.message","room_id":"!r:domain","sender":"@u:domain","signatures":{},"unsigned":{"age_ts":1000000}}`,
			"onLKD1bGljeBWQhWZ1kaP9SorVmRQNdN5aM2JYU2n/g",
			"Wm+VzmOUOz08Ds+0NTWb1d4CZrVsJSikkeRxh6aCcUwu6pNC78FunoD7KNWzqFn241eYHYMGCA5McEiVPdhzBA",
		},
	} {
		js, err := CanonicalJSON([]byte(tc.in))
		if err != nil {
			t.Fatal(err)
		}
		hash := contentHash(js)
		encoded := base64.RawStdEncoding.EncodeToString(hash[:])
		if encoded != tc.hash {
			t.Errorf("content hash %s, want %s", encoded, tc.hash)
		}
		js = appendWithout(nil, js, "hashes", "unsigned")
		js = append(js[:len(js)-1], `,"hashes":{"sha256":"`+encoded+`"}}`...)
		red, err := v.Redact(js)
		if err != nil {
			t.Fatal(err)
		}
		signed, err := SignJSON(red, "domain", testKey(t))
		if err != nil {
			t.Fatal(err)
		}
		if got := getString(getAny(get(signed, "signatures"), "domain"), "ed25519:1"); got != tc.sig {
			t.Errorf("signature %s, want %s", got, tc.sig)
		}
	}
}

// Spec: appendices, "Canonical JSON", examples.
func TestCanonicalJSON(t *testing.T) {
	for _, tc := range []struct{ in, want string }{
		{`{}`, `{}`},
		{`{ "one": 1, "two": "Two" }`, `{"one":1,"two":"Two"}`},
		{`{"b": "2", "a": "1"}`, `{"a":"1","b":"2"}`},
		{`{"auth": {"success": true, "mxid": "@john.doe:example.com", "profile": {"display_name": "John Doe", "three_pids": [{"medium": "email", "address": "john.doe@example.org"}, {"medium": "msisdn", "address": "123456789"}]}}}`,
			`{"auth":{"mxid":"@john.doe:example.com","profile":{"display_name":"John Doe","three_pids":[{"address":"john.doe@example.org","medium":"email"},{"address":"123456789","medium":"msisdn"}]},"success":true}}`},
		{`{"a": "日本語"}`, `{"a":"日本語"}`},
		{`{"本": 2, "日": 1}`, `{"日":1,"本":2}`},
		{`{"a": "\u65E5"}`, `{"a":"日"}`},
		{`{"a": null}`, `{"a":null}`},
		{`{"a": -0, "b": 9007199254740991}`, `{"a":0,"b":9007199254740991}`},
		{`"\u0000\u0008\u0009\u000a\u000b\u000c\u000d\u001f\u007f\/\"\\"`, "\"\\u0000\\b\\t\\n\\u000b\\f\\r\\u001f\x7f/\\\"\\\\\""},
		{`"\ud83d\ude00"`, `"😀"`},
		{"{\"\\n\":1,\" \":2,\"\\u0000\":0}", "{\"\\u0000\":0,\"\\n\":1,\" \":2}"},
		{"{\"\U0001F600\":1,\"\uFFFD\":2}", "{\"\uFFFD\":2,\"\U0001F600\":1}"}, // by code point, not by UTF-16 unit
		{`{"b":{"d":1,"c":{"z":1,"y":[{"b":1,"a":2}]}},"a":[]}`, `{"a":[],"b":{"c":{"y":[{"a":2,"b":1}],"z":1},"d":1}}`},
	} {
		got, err := CanonicalJSON([]byte(tc.in))
		if err != nil || string(got) != tc.want {
			t.Errorf("CanonicalJSON(%s) = %s, %v; want %s", tc.in, got, err, tc.want)
		}
	}
	for _, tc := range []struct{ in, code string }{
		{``, "M_NOT_JSON"}, {` `, "M_NOT_JSON"}, {`{`, "M_NOT_JSON"}, {`[1,]`, "M_NOT_JSON"}, {`{"a":1,}`, "M_NOT_JSON"}, {`01`, "M_NOT_JSON"},
		{`-`, "M_NOT_JSON"}, {`1.`, "M_NOT_JSON"}, {`1e`, "M_NOT_JSON"}, {`"a`, "M_NOT_JSON"}, {`"\x"`, "M_NOT_JSON"}, {`"\u12"`, "M_NOT_JSON"},
		{"\"\n\"", "M_NOT_JSON"}, {"\"\xff\"", "M_NOT_JSON"}, {"\"\xed\xa0\x80\"", "M_NOT_JSON"}, {`{} {}`, "M_NOT_JSON"}, {`tru`, "M_NOT_JSON"},
		{"\xef\xbb\xbf{}", "M_NOT_JSON"}, {`{1:2}`, "M_NOT_JSON"}, {`NaN`, "M_NOT_JSON"}, {`"\`, "M_NOT_JSON"}, {"\x00", "M_NOT_JSON"}, {"\"\x00\"", "M_NOT_JSON"},
		{`{"a":1,"a":1}`, "M_BAD_JSON"}, {`{"a":1,"b":2,"a":1}`, "M_BAD_JSON"}, {`{"a":1,"\u0061":1}`, "M_BAD_JSON"},
		{`1.0`, "M_BAD_JSON"}, {`1e3`, "M_BAD_JSON"}, {`9007199254740992`, "M_BAD_JSON"}, {`-9007199254740992`, "M_BAD_JSON"},
		{`123456789012345678901234567890`, "M_BAD_JSON"}, {`"\ud800"`, "M_BAD_JSON"}, {`"\udc00\ud800"`, "M_BAD_JSON"}, {`"\ud800\u0061"`, "M_BAD_JSON"},
	} {
		got, err := CanonicalJSON([]byte(tc.in))
		if !mxerr.Is(err, tc.code) {
			t.Errorf("CanonicalJSON(%s) = %s, %v; want %s", tc.in, got, err, tc.code)
		}
	}
}

// The signature covers neither unsigned nor other signatures, and both stay.
func TestSignJSONKeepsTheRest(t *testing.T) {
	key := testKey(t)
	signed, err := SignJSON([]byte(`{"two":"Two","unsigned":{"age":1},"signatures":{"other":{"ed25519:x":"abc"},"domain":{"ed25519:0":"def"}},"one":1}`), "domain", key)
	if err != nil {
		t.Fatal(err)
	}
	const sig = "KqmLSbO39/Bzb0QIYE82zqLwsA+PDzYIpIRA2sRQ4sL53+sN6/fpNSoqE7BP7vBZhG6kYdD13EIMJpvhJI+6Bw"
	if want := `{"one":1,"signatures":{"domain":{"ed25519:0":"def","ed25519:1":"` + sig + `"},"other":{"ed25519:x":"abc"}},"two":"Two","unsigned":{"age":1}}`; string(signed) != want {
		t.Errorf("got  %s\nwant %s", signed, want)
	}
	if err := VerifyJSON(signed, "domain", key.KeyID, key.public()); err != nil {
		t.Error(err)
	}
	for name, obj := range map[string]string{
		"tampered":     replaceOnce(string(signed), `"one":1`, `"one":2`),
		"unsigned":     `{"one":1,"two":"Two"}`,
		"not base64":   `{"one":1,"two":"Two","signatures":{"domain":{"ed25519:1":"!"}}}`,
		"not a string": `{"one":1,"two":"Two","signatures":{"domain":{"ed25519:1":1}}}`,
		"not objects":  `{"one":1,"two":"Two","signatures":{"domain":[]}}`,
	} {
		if err := VerifyJSON([]byte(obj), "domain", key.KeyID, key.public()); !mxerr.Is(err, "M_FORBIDDEN") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := VerifyJSON(signed, "domain", key.KeyID, key.public()[:31]); !mxerr.Is(err, "M_FORBIDDEN") {
		t.Errorf("short key: %v", err)
	}
	for _, obj := range []string{`{"signatures":[]}`, `{"signatures":{"domain":1}}`, `[]`} {
		if _, err := SignJSON([]byte(obj), "domain", key); !mxerr.Is(err, "M_BAD_JSON") {
			t.Errorf("SignJSON(%s): %v", obj, err)
		}
	}
	if _, err := SignJSON([]byte(`{}`), "domain", SigningKey{KeyID: "rsa:1"}); err == nil {
		t.Error("a key of another kind was taken")
	}
}
