package clientapi

import (
	"context"
	"net/http"
	"slices"

	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/account"
	"github.com/moothall/moothall/homeserver/web"
)

// Stages of user-interactive authentication that are passed in the browser.
// Spec: client-server API, "Single Sign-On", "OAuth authentication".
const (
	stageOAuth             = "m.oauth"
	stageCrossSigningReset = "org.matrix.cross_signing_reset" // the same before v1.17
)

// IdentityProvider is one of those that GET /login names.
type IdentityProvider struct {
	ID    string `json:"id"`
	Name  string `json:"name"`
	Icon  string `json:"icon,omitempty"`
	Brand string `json:"brand,omitempty"`
}

// SSODeps is sign-in in the browser as the endpoints need to know of it.
type SSODeps struct {
	// Providers lists the identity providers.
	Providers func() []IdentityProvider
	// OAuth says that the server is an OAuth 2.0 authorization server too.
	OAuth bool
	// Passwords says that people sign in with a password that this server checks.
	Passwords bool
	// LegacyRefresh refuses refresh tokens that OAuth 2.0 gave: they are good at its own endpoint alone, where one that was
	// stolen is found out.
	LegacyRefresh func(ctx context.Context, token string) error
	// Proofs lists the stages of user-interactive authentication of which one confirms an operation.
	Proofs func(ctx context.Context, who *web.Identity, operation string) ([]string, error)
	// TokenUsed is told which device a login token has signed in; nil: nobody wants to know.
	TokenUsed func(ctx context.Context, token string, user id.UserID, device id.DeviceID) error
	// ApprovalURL is where a person confirms what an authentication session is about (m.oauth).
	ApprovalURL func(session string) string
}

// signInByToken is signIn with a login token, which may come from a browser whose session somebody can end.
func (a *API) signInByToken(w http.ResponseWriter, r *http.Request, user id.UserID, in account.SignIn, token string) error {
	device, tokens, err := a.Accounts.SignIn(r.Context(), user, in)
	if err != nil {
		return err
	}
	if a.SSO != nil && a.SSO.TokenUsed != nil {
		if err := a.SSO.TokenUsed(r.Context(), token, user, device); err != nil {
			return err
		}
	}
	return web.WriteJSON(w, newLoginResponse(user, device, tokens))
}

type ssoFlow struct {
	Type      string             `json:"type"`
	Providers []IdentityProvider `json:"identity_providers,omitempty"`
	// Spec: client-server API, "OAuth 2.0 aware clients", and its name before v1.18.
	Preferred bool `json:"oauth_aware_preferred,omitempty"`
	Delegated bool `json:"org.matrix.msc3824.delegated_oidc_compatibility,omitempty"`
}

// ssoFlow is m.login.sso; nil where there is none.
func (a *API) ssoFlow() *ssoFlow {
	if a.SSO == nil {
		return nil
	}
	return &ssoFlow{Type: account.StageSSO, Providers: a.SSO.Providers(), Preferred: a.SSO.OAuth, Delegated: a.SSO.OAuth}
}

// passwords tells whether m.login.password is offered.
func (a *API) passwords() bool { return a.SSO == nil || a.SSO.Passwords }

// proofFlows are the ways in which whoever makes a request can confirm an operation.
func (a *API) proofFlows(r *http.Request, operation string) ([]uiaFlow, error) {
	if a.SSO == nil {
		return passwordFlow, nil
	}
	stages, err := a.SSO.Proofs(r.Context(), web.Requester(r), operation)
	flows := make([]uiaFlow, len(stages))
	for i, stage := range stages {
		flows[i] = uiaFlow{Stages: []string{stage}}
	}
	return flows, err
}

// stageParams is what clients need to know of the stages of flows.
func (a *API) stageParams(flows []uiaFlow, session string) map[string]any {
	out := map[string]any{}
	for _, stage := range []string{stageOAuth, stageCrossSigningReset} {
		if a.SSO != nil && slices.ContainsFunc(flows, func(f uiaFlow) bool { return slices.Contains(f.Stages, stage) }) {
			out[stage] = map[string]string{"url": a.SSO.ApprovalURL(session)}
		}
	}
	return out
}
