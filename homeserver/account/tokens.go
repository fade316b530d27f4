package account

import (
	"crypto/rand"
	"encoding/base64"
	"strings"

	"maunium.net/go/mautrix/id"
)

// Prefixes tell what a token is, to people who find one and to scanners for leaked secrets.
const (
	accessPrefix  = "mht_"
	refreshPrefix = "mhr_"
	loginPrefix   = "mhl_"
	tokenLength   = len(accessPrefix) + 43
)

// newToken makes a secret of 256 random bits.
func newToken(prefix string) string {
	var b [32]byte
	_, _ = rand.Read(b[:]) // never fails
	return prefix + base64.RawURLEncoding.EncodeToString(b[:])
}

// couldBe tells whether a string has the form of our tokens, so that others cost no look into the database.
func couldBe(token, prefix string) bool {
	return len(token) == tokenLength && strings.HasPrefix(token, prefix)
}

// randomLetters makes an identifier of n capital letters.
func randomLetters(n int) string {
	b := make([]byte, n)
	_, _ = rand.Read(b) // never fails
	for i, c := range b {
		b[i] = 'A' + c%26
	}
	return string(b)
}

func newDeviceID() id.DeviceID { return id.DeviceID(randomLetters(10)) }
