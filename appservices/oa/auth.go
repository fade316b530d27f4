package oa

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/moothall/moothall/compliance/audit"
	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/web"
)

// hashSecret hashes a token: those of the configuration are demanded to be long, so one round is enough.
func hashSecret(s string) []byte {
	h := sha256.Sum256([]byte(s))
	return h[:]
}

// signatureAge is how old a signed request may be, and how far its clock may be ahead.
const signatureAge = 5 * time.Minute

// authenticate finds out which OA system makes a request; body is what it sent. Wrong ones are limited by address and audited.
func (o *OA) authenticate(r *http.Request, body []byte) (context.Context, *system, error) {
	scheme, secret, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	secret = strings.TrimSpace(secret)
	if !strings.EqualFold(scheme, "Bearer") || secret == "" {
		return nil, nil, mxerr.MissingToken()
	}
	ip := web.ClientIP(r)
	hash := hashSecret(secret)
	var found *system
	for _, s := range o.systems {
		if subtle.ConstantTimeCompare(s.token, hash) == 1 {
			found = s
		}
	}
	reason := ""
	switch {
	case found == nil:
		reason = "wrong token"
	case len(found.Addresses) > 0 && !slices.ContainsFunc(found.Addresses, func(p netip.Prefix) bool { return p.Contains(ip) }):
		reason = "the token was used from an address that it is not for"
	case found.Signature != "":
		reason = o.checkSignature(found, r, body)
	}
	if reason != "" {
		if after := o.limits.Allow(web.RateLogin, "token "+ip.String()); after > 0 {
			return nil, nil, mxerr.LimitExceeded(after)
		}
		e := audit.Entry{Action: "oa.refused", Target: r.URL.Path, Reason: reason}
		e.Kind = audit.KindAppService
		if err := o.d.Audit.Refusal(r.Context(), e); err != nil {
			return nil, nil, err
		}
		if found == nil {
			return nil, nil, mxerr.UnknownToken("the bearer token is wrong", false)
		}
		return nil, nil, mxerr.Forbidden(reason)
	}
	if after := o.limits.Allow(web.RateSend, "system "+found.ID); after > 0 {
		return nil, nil, mxerr.LimitExceeded(after)
	}
	return audit.WithSource(r.Context(), audit.Source{Kind: audit.KindAppService, Session: "oa:" + found.ID}), found, nil
}

// sign is the signature of Standard Webhooks, version 1: HMAC-SHA-256 of id, time and body.
func sign(secret, msgID, seconds string, body []byte) string {
	mac := hmac.New(sha256.New, signingKey(secret))
	fmt.Fprintf(mac, "%s.%s.", msgID, seconds)
	mac.Write(body)
	return "v1," + base64.StdEncoding.EncodeToString(mac.Sum(nil))
}

// signingKey reads a secret in the form of Standard Webhooks (whsec_ and base64) or takes its bytes.
func signingKey(secret string) []byte {
	if rest, ok := strings.CutPrefix(secret, "whsec_"); ok {
		if b, err := base64.StdEncoding.DecodeString(rest); err == nil {
			return b
		}
	}
	return []byte(secret)
}

// checkSignature tells what is wrong with the signature of a request, "" for nothing.
func (o *OA) checkSignature(s *system, r *http.Request, body []byte) string {
	msgID, seconds := r.Header.Get("Webhook-Id"), r.Header.Get("Webhook-Timestamp")
	at, err := strconv.ParseInt(seconds, 10, 64)
	if err != nil || msgID == "" {
		return "the request is not signed: webhook-id, webhook-timestamp and webhook-signature are needed"
	}
	if age := o.d.Clock().Sub(time.Unix(at, 0)); age > signatureAge || age < -signatureAge {
		return "the request's webhook-timestamp is too far from now"
	}
	want := []byte(sign(s.Signature, msgID, seconds, body))
	for given := range strings.FieldsSeq(r.Header.Get("Webhook-Signature")) {
		if subtle.ConstantTimeCompare([]byte(given), want) == 1 {
			return ""
		}
	}
	return "the request's webhook-signature is wrong"
}
