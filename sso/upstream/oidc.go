package upstream

import (
	"context"
	"crypto/subtle"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"golang.org/x/oauth2"
)

// oidcProvider speaks OpenID Connect: the authorization code flow with PKCE (RFC 9700, section 2.1.1).
type oidcProvider struct {
	cfg    Config
	client *http.Client
	back   string // redirect URI
	now    func() time.Time
	log    *slog.Logger
	doc    *lazy[*discovered]
}

// discovered is what is known of a provider's endpoints.
type discovered struct {
	provider   *oidc.Provider
	endSession string
	// tellsIssuer: every answer names its issuer (RFC 9207, section 3).
	tellsIssuer bool
}

const discoveryLife = time.Hour

func newOIDC(cfg Config, client *http.Client, back string, now func() time.Time, log *slog.Logger) *oidcProvider {
	o := &oidcProvider{cfg: cfg, client: client, back: back, now: now, log: log}
	o.doc = &lazy[*discovered]{fetch: o.discover, clock: now, timeout: cfg.Timeout, life: discoveryLife}
	return o
}

func (o *oidcProvider) discover(ctx context.Context) (*discovered, error) {
	ctx = oidc.ClientContext(ctx, o.client)
	d := &discovered{endSession: o.cfg.EndSessionURL}
	if o.cfg.AuthorizeURL != "" && o.cfg.TokenURL != "" && o.cfg.KeysURL != "" {
		c := oidc.ProviderConfig{
			IssuerURL: o.cfg.Issuer, AuthURL: o.cfg.AuthorizeURL, TokenURL: o.cfg.TokenURL, UserInfoURL: o.cfg.UserInfoURL, JWKSURL: o.cfg.KeysURL,
		}
		d.provider = c.NewProvider(ctx)
		return d, nil
	}
	p, err := oidc.NewProvider(ctx, o.cfg.Issuer)
	if err != nil {
		return nil, fmt.Errorf("discover %s: %w", o.cfg.Issuer, errors.Join(errAway, err))
	}
	var more struct {
		AuthURL     string   `json:"authorization_endpoint"`
		TokenURL    string   `json:"token_endpoint"`
		UserInfoURL string   `json:"userinfo_endpoint"`
		KeysURL     string   `json:"jwks_uri"`
		EndSession  string   `json:"end_session_endpoint"`
		TellsIssuer bool     `json:"authorization_response_iss_parameter_supported"`
		Algorithms  []string `json:"id_token_signing_alg_values_supported"`
	}
	if err := p.Claims(&more); err != nil {
		return nil, fmt.Errorf("discover %s: %w", o.cfg.Issuer, err)
	}
	c := oidc.ProviderConfig{IssuerURL: o.cfg.Issuer, Algorithms: asymmetric(more.Algorithms)}
	for _, v := range []struct {
		name, found, override string
		to                    *string
	}{
		{"authorization_endpoint", more.AuthURL, o.cfg.AuthorizeURL, &c.AuthURL}, {"token_endpoint", more.TokenURL, o.cfg.TokenURL, &c.TokenURL},
		{"jwks_uri", more.KeysURL, o.cfg.KeysURL, &c.JWKSURL}, {"userinfo_endpoint", more.UserInfoURL, o.cfg.UserInfoURL, &c.UserInfoURL},
	} {
		if *v.to = v.found; v.override != "" {
			*v.to = v.override
		}
		if !isHTTP(*v.to) && (*v.to != "" || v.name != "userinfo_endpoint") {
			return nil, fmt.Errorf("discover %s: %s is %q", o.cfg.Issuer, v.name, *v.to)
		}
	}
	d.provider, d.tellsIssuer = c.NewProvider(ctx), more.TellsIssuer
	if d.endSession == "" && isHTTP(more.EndSession) {
		d.endSession = more.EndSession
	}
	return d, nil
}

// asymmetric keeps the signature algorithms whose keys are public: neither "none" nor those that our secret would sign.
func asymmetric(algorithms []string) []string {
	known := []string{oidc.RS256, oidc.RS384, oidc.RS512, oidc.ES256, oidc.ES384, oidc.ES512, oidc.PS256, oidc.PS384, oidc.PS512, oidc.EdDSA}
	var out []string
	for _, a := range algorithms {
		if slices.Contains(known, a) {
			out = append(out, a)
		}
	}
	if len(out) == 0 {
		return []string{oidc.RS256}
	}
	return out
}

func (o *oidcProvider) oauth(d *discovered) *oauth2.Config {
	ep := d.provider.Endpoint()
	ep.AuthStyle = oauth2.AuthStyleInHeader
	if o.cfg.ClientAuth != "basic" {
		ep.AuthStyle = oauth2.AuthStyleInParams
	}
	return &oauth2.Config{ClientID: o.cfg.ClientID, ClientSecret: o.cfg.ClientSecret, Endpoint: ep, RedirectURL: o.back, Scopes: o.cfg.Scopes}
}

func (o *oidcProvider) begin(ctx context.Context, b BeginParams, k *kept) (string, error) {
	d, err := o.doc.get(ctx)
	if err != nil {
		return "", err
	}
	k.Nonce, k.Verifier = random(), oauth2.GenerateVerifier()
	opts := []oauth2.AuthCodeOption{oauth2.S256ChallengeOption(k.Verifier), oidc.Nonce(k.Nonce)}
	set := func(name, value string) {
		if value != "" {
			opts = append(opts, oauth2.SetAuthURLParam(name, value))
		}
	}
	acr := k.ACR
	if len(acr) == 0 {
		acr = o.cfg.ACR
	}
	set("acr_values", strings.Join(acr, " "))
	set("prompt", b.Prompt)
	set("login_hint", b.LoginHint)
	set("ui_locales", b.Lang)
	switch {
	case k.MaxAge > 0:
		set("max_age", strconv.FormatInt(k.MaxAge, 10))
	case k.Fresh:
		set("max_age", "0") // makes auth_time come, by which the fresh proof is seen
	}
	return o.oauth(d).AuthCodeURL(b.State, opts...), nil
}

func (o *oidcProvider) finish(ctx context.Context, form url.Values, k *kept) (assertion, error) {
	d, err := o.doc.get(ctx)
	if err != nil {
		return assertion{}, err
	}
	// An answer of another provider than the one that was asked is a mix-up attack (RFC 9207; RFC 9700, section 4.4).
	if iss := form.Get("iss"); iss != "" && iss != o.cfg.Issuer || iss == "" && d.tellsIssuer {
		return assertion{}, fmt.Errorf("the answer's iss is %q, expected %q", cut(iss, 100), o.cfg.Issuer)
	}
	if e := form.Get("error"); e != "" {
		return assertion{}, answeredError(e, form.Get("error_description"))
	}
	codes := form["code"]
	if len(codes) != 1 || codes[0] == "" {
		return assertion{}, errors.New("the answer has no code")
	}
	ctx = oidc.ClientContext(ctx, o.client)
	tok, err := o.oauth(d).Exchange(ctx, codes[0], oauth2.VerifierOption(k.Verifier))
	if err != nil {
		var refused *oauth2.RetrieveError
		if errors.As(err, &refused) {
			return assertion{}, fmt.Errorf("token endpoint: %s %s", refused.ErrorCode, cut(refused.ErrorDescription, 200))
		}
		return assertion{}, fmt.Errorf("token endpoint: %w", err)
	}
	raw, ok := tok.Extra("id_token").(string)
	if !ok || raw == "" {
		return assertion{}, errors.New("the token endpoint gave no id_token")
	}
	a, subject, err := o.idToken(ctx, d, raw, k.Nonce, tok.AccessToken)
	if err != nil {
		return assertion{}, err
	}
	if d.provider.UserInfoEndpoint() != "" && o.cfg.UserInfo != "never" {
		return a, o.userInfo(ctx, d, tok, subject, a.claims)
	}
	return a, nil
}

// answeredError is what a provider answers in place of a code (OpenID Connect Core 1.0, section 3.1.2.6).
func answeredError(code, description string) error {
	cause := fmt.Errorf("the provider answered %q: %s", cut(code, 80), cut(description, 200))
	switch code {
	case "temporarily_unavailable", "server_error":
		return errors.Join(errAway, cause)
	case "access_denied", "login_required", "interaction_required", "consent_required", "account_selection_required":
		return errors.Join(errDenied, cause)
	case "unmet_authentication_requirements":
		return errors.Join(errStepUp, cause)
	}
	return cause
}

// idToken validates an ID token. Spec: OpenID Connect Core 1.0, section 3.1.3.7.
func (o *oidcProvider) idToken(ctx context.Context, d *discovered, raw, nonce, accessToken string) (assertion, string, error) {
	t, err := o.verifier(d).Verify(ctx, raw)
	if err != nil {
		return assertion{}, "", err
	}
	if nonce == "" || subtle.ConstantTimeCompare([]byte(t.Nonce), []byte(nonce)) != 1 {
		return assertion{}, "", errors.New("the id_token's nonce is not that of this sign-in")
	}
	if t.IssuedAt.After(o.now().Add(o.cfg.ClockSkew)) {
		return assertion{}, "", fmt.Errorf("the id_token was issued in the future, at %s", t.IssuedAt)
	}
	if t.AccessTokenHash != "" {
		if err := t.VerifyAccessToken(accessToken); err != nil {
			return assertion{}, "", fmt.Errorf("at_hash: %w", err)
		}
	}
	var body rawJSON
	if err := t.Claims(&body); err != nil {
		return assertion{}, "", err
	}
	c, err := parseClaims(body)
	if err != nil {
		return assertion{}, "", fmt.Errorf("the id_token's claims: %w", err)
	}
	azp := asText(c["azp"])
	if azp != "" && azp != o.cfg.ClientID || azp == "" && len(t.Audience) > 1 {
		return assertion{}, "", fmt.Errorf("the id_token was issued to %q", azp)
	}
	a := assertion{claims: c, acr: asText(c["acr"]), amr: c.texts("amr"), sid: asText(c["sid"]), idToken: raw}
	if n, err := strconv.ParseFloat(asText(c["auth_time"]), 64); err == nil && n > 0 && n < 1e11 {
		a.authTime = time.Unix(int64(n), 0)
	}
	return a, t.Subject, nil
}

// rawJSON takes claims as they are.
type rawJSON []byte

// UnmarshalJSON implements json.Unmarshaler.
func (r *rawJSON) UnmarshalJSON(b []byte) error {
	*r = append((*r)[:0], b...)
	return nil
}

// verifier checks signature, issuer, audience and expiry, with leeway for clocks that differ.
func (o *oidcProvider) verifier(d *discovered) *oidc.IDTokenVerifier {
	return d.provider.Verifier(&oidc.Config{ClientID: o.cfg.ClientID, Now: func() time.Time { return o.now().Add(-o.cfg.ClockSkew) }})
}

// userInfo adds what only the user info endpoint tells. The ID token's claims are signed: they stay.
// Spec: OpenID Connect Core 1.0, section 5.3.
func (o *oidcProvider) userInfo(ctx context.Context, d *discovered, tok *oauth2.Token, subject string, c claims) error {
	info, err := d.provider.UserInfo(ctx, oauth2.StaticTokenSource(tok))
	if err != nil {
		return fmt.Errorf("user info: %w", err)
	}
	if info.Subject != subject {
		return errors.New("the user info is somebody else's")
	}
	var body rawJSON
	if err := info.Claims(&body); err != nil {
		return fmt.Errorf("user info: %w", err)
	}
	more, err := parseClaims(body)
	if err != nil {
		return fmt.Errorf("user info: %w", err)
	}
	signed := maps.Clone(c)
	maps.Copy(c, more)
	maps.Copy(c, signed)
	return nil
}

// logoutURL is where a browser ends its session at the provider. Spec: OpenID Connect RP-Initiated Logout 1.0.
func (o *oidcProvider) logoutURL(ctx context.Context, idToken, back, state string) (string, error) {
	d, err := o.doc.get(ctx)
	if err != nil || d.endSession == "" {
		return "", err
	}
	u, err := url.Parse(d.endSession)
	if err != nil {
		return "", err
	}
	q := u.Query()
	q.Set("client_id", o.cfg.ClientID)
	if idToken != "" {
		q.Set("id_token_hint", idToken)
	}
	if back != "" {
		q.Set("post_logout_redirect_uri", back)
	}
	if state != "" {
		q.Set("state", state)
	}
	u.RawQuery = q.Encode()
	return u.String(), nil
}
