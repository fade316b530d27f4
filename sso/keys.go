package sso

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"fmt"
	"math/big"
	"net/http"
	"time"

	"github.com/go-json-experiment/json"
	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/store"
	"github.com/moothall/moothall/homeserver/web"
)

func (s *SSO) keyRoutes() []web.Route {
	return []web.Route{{Pattern: "GET " + pathOAuth + "/keys", Rate: web.RateRead, Handler: s.keys}}
}

const idTokenLifetime = time.Hour

// signingKeys reads the keys, the youngest first, and makes a new one where that is too old. Of several nodes that rotate at
// once one wins. A key is published for as long as what it signed is good.
func (s *SSO) signingKeys(ctx context.Context) ([]store.OAuthKey, error) {
	now, life := s.now(), s.Config.KeyLifetime.Milliseconds()
	var keys []store.OAuthKey
	read := func() error {
		return s.Store.Read(ctx, func(tx *store.Tx) (err error) {
			keys, err = tx.OAuthKeys()
			return err
		})
	}
	if err := read(); err != nil || len(keys) > 0 && keys[0].Created+life > now {
		return keys, err
	}
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		return nil, err
	}
	k := store.OAuthKey{ID: newSecret()[:16], Private: der, Created: now}
	err = s.Store.Write(ctx, func(tx *store.Tx) error {
		_, err := tx.RotateOAuthKeys(k, now-life, now-life-2*idTokenLifetime.Milliseconds())
		return err
	})
	if err != nil {
		return nil, err
	}
	return keys, read()
}

func privateKey(k store.OAuthKey) (*ecdsa.PrivateKey, error) {
	parsed, err := x509.ParsePKCS8PrivateKey(k.Private)
	if err != nil {
		return nil, fmt.Errorf("the key %s: %w", k.ID, err)
	}
	private, ok := parsed.(*ecdsa.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("the key %s is of another kind", k.ID)
	}
	return private, nil
}

func base64url(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }

// keys handles GET /oauth2/keys. RFC 7517.
func (s *SSO) keys(w http.ResponseWriter, r *http.Request) error {
	all, err := s.signingKeys(r.Context())
	if err != nil {
		return err
	}
	out := []map[string]string{}
	for i, k := range all {
		if i > 0 && k.Created+s.Config.KeyLifetime.Milliseconds()+2*idTokenLifetime.Milliseconds() < s.now() {
			continue // what it signed has expired
		}
		private, err := privateKey(k)
		if err != nil {
			return err
		}
		point, err := private.PublicKey.Bytes() // 4, X, Y
		if err != nil {
			return err
		}
		out = append(out, map[string]string{
			"kty": "EC", "crv": "P-256", "use": "sig", "alg": "ES256", "kid": k.ID, "x": base64url(point[1:33]), "y": base64url(point[33:]),
		})
	}
	w.Header().Set("Cache-Control", "public, max-age=300")
	return web.WriteJSON(w, map[string]any{"keys": out})
}

// idToken tells a client that asks for one who has signed in. OpenID Connect Core 1.0, section 2.
func (s *SSO) idToken(r *http.Request, c *client, user id.UserID, data codeData) (string, error) {
	keys, err := s.signingKeys(r.Context())
	if err != nil {
		return "", err
	}
	private, err := privateKey(keys[0])
	if err != nil {
		return "", err
	}
	now := s.Clock()
	claims := map[string]any{
		"iss": s.issuer(), "sub": string(user), "aud": c.ID, "iat": now.Unix(), "exp": now.Add(idTokenLifetime).Unix(),
		"auth_time": data.AuthTime.Unix(), "preferred_username": user.Localpart(),
	}
	if data.Nonce != "" {
		claims["nonce"] = data.Nonce
	}
	if len(data.AMR) > 0 {
		claims["amr"] = data.AMR
	}
	header, err := json.Marshal(map[string]string{"alg": "ES256", "kid": keys[0].ID, "typ": "JWT"}, json.Deterministic(true))
	if err != nil {
		return "", err
	}
	body, err := json.Marshal(claims, json.Deterministic(true))
	if err != nil {
		return "", err
	}
	signed := base64url(header) + "." + base64url(body)
	sum := sha256.Sum256([]byte(signed))
	x, y, err := ecdsa.Sign(rand.Reader, private, sum[:])
	if err != nil {
		return "", err
	}
	return signed + "." + base64url(append(fixed(x), fixed(y)...)), nil
}

// fixed is a number as 32 bytes. RFC 7518, section 3.4.
func fixed(n *big.Int) []byte { return n.FillBytes(make([]byte, 32)) }
