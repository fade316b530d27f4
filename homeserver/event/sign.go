package event

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"slices"
	"strings"

	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/mxerr"
)

// SigningKey is a server's key to sign with.
type SigningKey struct {
	KeyID   string // "ed25519:" and a name
	Private ed25519.PrivateKey
}

func (k SigningKey) check() error {
	if !strings.HasPrefix(k.KeyID, "ed25519:") || len(k.Private) != ed25519.PrivateKeySize {
		return fmt.Errorf("signing key %q is not an ed25519 key", k.KeyID)
	}
	return nil
}

// DecodeBase64 reads unpadded base64 as Matrix uses it, tolerating padding and the URL-safe alphabet. Source: appendices, "Unpadded Base64".
func DecodeBase64(s string) ([]byte, error) {
	s = strings.TrimRight(s, "=")
	if strings.ContainsAny(s, "-_") {
		return base64.RawURLEncoding.DecodeString(s)
	}
	return base64.RawStdEncoding.DecodeString(s)
}

// SignJSON adds a signature of an object to its signatures and returns it as canonical JSON; unsigned and other signatures stay.
// Source: appendices, "Signing JSON".
func SignJSON(obj []byte, signer string, key SigningKey) ([]byte, error) {
	if err := key.check(); err != nil {
		return nil, err
	}
	js, err := canonicalObject(obj, true, "what is to be signed")
	if err != nil {
		return nil, err
	}
	sig := ed25519.Sign(key.Private, appendWithout(make([]byte, 0, len(js)), js, "signatures", "unsigned"))
	return withSignature(js, signer, key.KeyID, sig)
}

// VerifyJSON checks the signature that signer made with the key keyID. A missing or wrong one is M_FORBIDDEN.
// Source: appendices, "Checking for a Signature".
func VerifyJSON(obj []byte, signer, keyID string, pub ed25519.PublicKey) error {
	js, err := canonicalObject(obj, true, "what is signed")
	if err != nil {
		return err
	}
	return verify(appendWithout(make([]byte, 0, len(js)), js, "signatures", "unsigned"), get(js, "signatures"), signer, keyID, pub)
}

// verify checks one signature of a signatures object over signed bytes.
func verify(signed, signatures []byte, signer, keyID string, pub ed25519.PublicKey) error {
	if len(pub) != ed25519.PublicKeySize {
		return mxerr.Forbidden(fmt.Sprintf("the key %s of %s is no ed25519 key", keyID, signer))
	}
	text, ok := str(getAny(getAny(signatures, signer), keyID))
	if !ok {
		return mxerr.Forbidden(fmt.Sprintf("there is no signature by %s with the key %s", signer, keyID))
	}
	sig, err := DecodeBase64(text)
	if err != nil || !ed25519.Verify(pub, signed, sig) {
		return mxerr.Forbidden(fmt.Sprintf("the signature by %s with the key %s is wrong", signer, keyID))
	}
	return nil
}

// getAny is get for keys that may need escapes.
func getAny(obj []byte, key string) []byte {
	want := AppendCanonicalString(nil, key)
	return get(obj, string(want[1:len(want)-1]))
}

// appendWithout appends a canonical object without some of its members.
func appendWithout(dst, obj []byte, keys ...string) []byte {
	dst = append(dst, '{')
	for key, value := range members(obj) {
		if slices.Contains(keys, string(key)) {
			continue
		}
		dst = append(dst, '"')
		dst = append(dst, key...)
		dst = append(dst, '"', ':')
		dst = append(dst, value...)
		dst = append(dst, ',')
	}
	return closeObject(dst)
}

// withSignature adds a signature to a canonical object.
func withSignature(obj []byte, signer, keyID string, sig []byte) ([]byte, error) {
	// Put the new parts in front and the old ones that remain behind them, and let the canonicaliser sort.
	old := get(obj, "signatures")
	if old != nil && !isObject(old) {
		return nil, mxerr.BadJSON("signatures must be an object")
	}
	theirs := getAny(old, signer)
	if theirs != nil && !isObject(theirs) {
		return nil, mxerr.BadJSON("the signatures of " + signer + " must be an object")
	}
	buf := append(make([]byte, 0, len(obj)+len(signer)+len(keyID)+128), `{"signatures":{`...)
	buf = AppendCanonicalString(buf, signer)
	buf = append(buf, ':', '{')
	buf = AppendCanonicalString(buf, keyID)
	buf = append(buf, ':', '"')
	buf = base64.RawStdEncoding.AppendEncode(buf, sig)
	buf = append(buf, '"', '}')
	buf = appendOthers(buf[:len(buf)-1], theirs, keyID)
	buf = appendOthers(buf, old, signer)
	buf = appendOthers(buf, obj, "signatures")
	return appendCanonical(make([]byte, 0, len(buf)), buf, false)
}

// appendOthers appends the members of a canonical object but one, each with a comma before it, and closes the object.
func appendOthers(dst, obj []byte, except string) []byte {
	quoted := AppendCanonicalString(nil, except)
	for key, value := range members(obj) {
		if bytes.Equal(key, quoted[1:len(quoted)-1]) {
			continue
		}
		dst = append(dst, ',', '"')
		dst = append(dst, key...)
		dst = append(dst, '"', ':')
		dst = append(dst, value...)
	}
	return append(dst, '}')
}

// Sign returns the event with one more signature. An invited or resident server signs an event that another has made.
func (e *Event) Sign(serverName string, key SigningKey) (*Event, error) {
	if err := key.check(); err != nil {
		return nil, err
	}
	sig := ed25519.Sign(key.Private, e.version.appendRedacted(nil, e.json, "signatures"))
	js, err := withSignature(e.json, serverName, key.KeyID, sig)
	if err != nil {
		return nil, err
	}
	return e.version.fromCanonical(js, e.id)
}

// WithSignature returns the event with a signature that somebody else has made, as unpadded base64. It is not checked.
func (e *Event) WithSignature(server, keyID, signature string) (*Event, error) {
	sig, err := DecodeBase64(signature)
	if err != nil {
		return nil, mxerr.Forbidden("the signature by " + server + " is no base64")
	}
	js, err := withSignature(e.json, server, keyID, sig)
	if err != nil {
		return nil, err
	}
	if len(js) > maxEventSize {
		return nil, errTooLarge(len(js))
	}
	return e.version.fromCanonical(js, e.id)
}

// VerifySignature checks the signature that a server made with the key keyID. A missing or wrong one is M_FORBIDDEN.
// Spec: server-server API, "Validating hashes and signatures on received events".
func (e *Event) VerifySignature(serverName, keyID string, pub ed25519.PublicKey) error {
	return verify(e.version.appendRedacted(nil, e.json, "signatures"), get(e.json, "signatures"), serverName, keyID, pub)
}

// SignatureKeys lists the ids of the keys with which a server has signed the event.
func (e *Event) SignatureKeys(serverName string) []string {
	var keys []string
	for key := range members(getAny(get(e.json, "signatures"), serverName)) {
		keys = append(keys, unescape(key))
	}
	return keys
}

// RequiredSigners lists the servers whose valid signatures the event needs.
// Spec: server-server API, "Validating hashes and signatures on received events"; room version 8 auth rule 4.2.
func (e *Event) RequiredSigners() []string {
	var servers []string
	add := func(server string) {
		if server != "" && !slices.Contains(servers, server) {
			servers = append(servers, server)
		}
	}
	// The sender of an invitation by third party is not the one who sends the event: any server may.
	if e.membership != invite || get(e.content, "third_party_invite") == nil {
		add(domainOf(string(e.sender)))
	}
	if e.version.EventIDInPDU {
		add(domainOf(string(e.id)))
	}
	if e.version.Restricted && e.evType == typeMember {
		add(domainOf(getString(e.content, "join_authorised_via_users_server")))
	}
	return servers
}

// ReferenceHash is the SHA-256 hash that names the event in room versions 3 and later.
// Spec: server-server API, "Calculating the reference hash for an event".
func (e *Event) ReferenceHash() [sha256.Size]byte {
	return sha256.Sum256(e.version.appendRedacted(make([]byte, 0, len(e.json)), e.json, "signatures"))
}

// idFromHash writes a reference hash as the version's event id.
func (v *Version) idFromHash(hash [sha256.Size]byte) id.EventID {
	var buf [1 + hashLength]byte
	buf[0] = '$'
	if v.eventID == idHashStd {
		base64.RawStdEncoding.Encode(buf[1:], hash[:])
	} else {
		base64.RawURLEncoding.Encode(buf[1:], hash[:])
	}
	return id.EventID(buf[:])
}

// contentHash is the hash of a whole canonical event. Spec: server-server API, "Calculating the content hash for an event".
func contentHash(pdu []byte) [sha256.Size]byte {
	return sha256.Sum256(appendWithout(make([]byte, 0, len(pdu)), pdu, "unsigned", "signatures", "hashes"))
}
