package sso

import (
	"net/http"

	"github.com/go-json-experiment/json"

	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/web"
)

const (
	unstableMetadata = "/_matrix/client/unstable/org.matrix.msc2965"

	grantCode    = "authorization_code"
	grantRefresh = "refresh_token"
	grantDevice  = "urn:ietf:params:oauth:grant-type:device_code"
)

func (s *SSO) metadataRoutes() []web.Route {
	return []web.Route{
		{Pattern: "GET /_matrix/client/v1/auth_metadata", Rate: web.RateRead, Handler: s.metadata},
		// What clients asked for before v1.15 of the specification, and where OAuth and OpenID libraries look.
		{Pattern: "GET " + unstableMetadata + "/auth_metadata", Rate: web.RateRead, Handler: s.metadata},
		{Pattern: "GET " + unstableMetadata + "/auth_issuer", Rate: web.RateRead, Handler: s.authIssuer},
		{Pattern: "GET /.well-known/oauth-authorization-server", Rate: web.RateRead, Handler: s.metadata},
		{Pattern: "GET /.well-known/openid-configuration", Rate: web.RateRead, Handler: s.metadata},
	}
}

// issuer identifies the authorization server. RFC 8414, section 2.
func (s *SSO) issuer() string { return s.PublicURL + "/" }

// metadata handles GET /_matrix/client/v1/auth_metadata. Spec: client-server API, "Server metadata discovery"; RFC 8414.
func (s *SSO) metadata(w http.ResponseWriter, _ *http.Request) error {
	base := s.PublicURL + pathOAuth
	out := map[string]any{
		"issuer":                                         s.issuer(),
		"authorization_endpoint":                         base + "/authorize",
		"token_endpoint":                                 base + "/token",
		"revocation_endpoint":                            base + "/revoke",
		"registration_endpoint":                          base + "/register",
		"device_authorization_endpoint":                  base + "/device",
		"jwks_uri":                                       base + "/keys",
		"response_types_supported":                       []string{"code"},
		"response_modes_supported":                       []string{"query", "fragment"},
		"grant_types_supported":                          []string{grantCode, grantRefresh, grantDevice},
		"code_challenge_methods_supported":               []string{"S256"},
		"token_endpoint_auth_methods_supported":          []string{"none"},
		"revocation_endpoint_auth_methods_supported":     []string{"none"},
		"authorization_response_iss_parameter_supported": true,
		"scopes_supported":                               []string{scopeOpenID, scopeAPI, scopeDevice},
		"subject_types_supported":                        []string{"public"},
		"id_token_signing_alg_values_supported":          []string{"ES256"},
		"account_management_uri":                         s.PublicURL + PathAccount,
		"account_management_actions_supported":           accountActions(),
	}
	if s.mayRegister() {
		out["prompt_values_supported"] = []string{"create"}
	}
	b, err := json.Marshal(out, json.Deterministic(true))
	if err != nil {
		return err
	}
	w.Header().Set("Cache-Control", "public, max-age=3600")
	return web.WriteRaw(w, b)
}

// authIssuer handles GET /_matrix/client/unstable/org.matrix.msc2965/auth_issuer.
func (s *SSO) authIssuer(w http.ResponseWriter, _ *http.Request) error {
	return web.WriteJSON(w, map[string]string{"issuer": s.issuer()})
}

// oauthError answers as OAuth 2.0 wants errors to be. RFC 6749, section 5.2.
type oauthError struct {
	Status      int    `json:"-"`
	Code        string `json:"error"`
	Description string `json:"error_description,omitzero"`
}

// Error implements error.
func (e *oauthError) Error() string { return e.Code + ": " + e.Description }

func badRequest(code, description string) *oauthError {
	return &oauthError{http.StatusBadRequest, code, description}
}

// endpoint turns the errors of an endpoint for clients into OAuth's.
func endpoint(h web.Handler) web.Handler {
	return func(w http.ResponseWriter, r *http.Request) error {
		w.Header().Set("Cache-Control", "no-store")
		err := h(w, r)
		if err == nil {
			return nil
		}
		var e *oauthError
		if asOAuth(err, &e) {
			return web.WriteJSONStatus(w, e.Status, e)
		}
		if m := mxerr.As(err); m != nil && m.Status < 500 && m.Status != http.StatusTooManyRequests {
			return web.WriteJSONStatus(w, http.StatusBadRequest, badRequest("invalid_request", m.Message))
		}
		return err
	}
}
