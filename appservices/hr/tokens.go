package hr

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"net/http"
	"net/netip"
	"slices"
	"strings"

	"github.com/moothall/moothall/compliance/audit"
	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/store"
	"github.com/moothall/moothall/homeserver/web"
)

// hashedToken is a token of the configuration.
type hashedToken struct {
	name      string
	hash      [sha256.Size]byte
	addresses []netip.Prefix
}

// hashToken hashes a token. Those that we make have 256 random bits, so that one round is enough; those of the
// configuration are demanded to be long.
func hashToken(s string) [sha256.Size]byte { return sha256.Sum256([]byte(s)) }

const tokenPrefix = "mhhr_"

// CreateToken makes a token for an HR system. It is shown this once.
func CreateToken(ctx context.Context, s *store.Store, name string, now int64) (tokenID, secret string, err error) {
	if name == "" || len(name) > 100 {
		return "", "", mxerr.InvalidParam("a token needs a name of at most 100 characters")
	}
	var b [32 + 8]byte
	_, _ = rand.Read(b[:]) // never fails
	secret = tokenPrefix + base64.RawURLEncoding.EncodeToString(b[:32])
	tokenID = hex.EncodeToString(b[32:])
	hash := hashToken(secret)
	err = s.Write(ctx, func(tx *store.Tx) error {
		if err := tx.InsertHRToken(store.HRToken{ID: tokenID, Name: name, Hash: hash[:], Created: now}); err != nil {
			return err
		}
		return audit.Append(ctx, tx, audit.Entry{Action: "hr.token.created", Target: tokenID, Details: map[string]any{"name": name}})
	})
	return tokenID, secret, err
}

// RevokeToken ends a token; false means that there is none of this id.
func RevokeToken(ctx context.Context, s *store.Store, tokenID string) (bool, error) {
	found := false
	err := s.Write(ctx, func(tx *store.Tx) error {
		var err error
		if found, err = tx.DeleteHRToken(tokenID); err != nil || !found {
			return err
		}
		return audit.Append(ctx, tx, audit.Entry{Action: "hr.token.revoked", Target: tokenID})
	})
	return found, err
}

// authenticate finds out which HR system makes a request, and gives the context in which it acts. Wrong tokens are
// limited by address and audited.
func (h *HR) authenticate(r *http.Request) (context.Context, error) {
	ctx, ip := r.Context(), web.ClientIP(r)
	scheme, secret, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	secret = strings.TrimSpace(secret)
	if !strings.EqualFold(scheme, "Bearer") || secret == "" {
		return nil, &scimError{status: http.StatusUnauthorized, detail: "this request needs a bearer token"}
	}
	name, err := h.tokenName(ctx, secret, ip)
	if err != nil {
		return nil, err
	}
	if name == "" {
		if after := h.limits.Allow(web.RateLogin, ip.String()); after > 0 {
			return nil, mxerr.LimitExceeded(after)
		}
		e := audit.Entry{Action: "hr.refused", Target: r.URL.Path, Reason: "wrong token"}
		e.Kind = audit.KindSCIM
		if err := h.d.Audit.Refusal(ctx, e); err != nil {
			return nil, err
		}
		return nil, &scimError{status: http.StatusUnauthorized, detail: "the bearer token is wrong"}
	}
	if after := h.limits.Allow(web.RateSend, name); after > 0 {
		return nil, mxerr.LimitExceeded(after)
	}
	return audit.WithSource(ctx, audit.Source{Kind: audit.KindSCIM, Session: name}), nil
}

// tokenName finds the token, "" for none that may be used from the address.
func (h *HR) tokenName(ctx context.Context, secret string, ip netip.Addr) (string, error) {
	hash := hashToken(secret)
	found := ""
	for _, t := range h.tokens {
		if subtle.ConstantTimeCompare(t.hash[:], hash[:]) == 1 &&
			(len(t.addresses) == 0 || slices.ContainsFunc(t.addresses, func(p netip.Prefix) bool { return p.Contains(ip) })) {
			found = t.name
		}
	}
	if found != "" || !strings.HasPrefix(secret, tokenPrefix) {
		return found, nil
	}
	var list []store.HRToken
	err := h.d.Store.ReadOne(ctx, func(tx *store.Tx) error {
		var err error
		list, err = tx.HRTokens()
		return err
	})
	if err != nil {
		return "", err
	}
	var used store.HRToken
	for _, t := range list {
		if subtle.ConstantTimeCompare(t.Hash, hash[:]) == 1 {
			used, found = t, t.Name
		}
	}
	if now := h.now(); found != "" && now-used.Used > usedEvery {
		err = h.d.Store.Write(ctx, func(tx *store.Tx) error { return tx.UsedHRToken(used.ID, now) })
	}
	return found, err
}

const usedEvery = 10 * 60 * 1000 // ms between notes that a token is in use
