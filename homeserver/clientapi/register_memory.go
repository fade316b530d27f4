package clientapi

import (
	"context"
	"net/http"

	"github.com/go-json-experiment/json"
	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/account"
	"github.com/moothall/moothall/homeserver/mxerr"
)

// registration is what the requests of one registration have said so far. Older clients name the account at the first one only and
// bring nothing but "auth" to the others (docs/decisions/0461).
type registration struct {
	Username      *string     `json:"username,omitzero"`
	PasswordHash  string      `json:"password_hash,omitzero"` // the password itself is not kept
	DeviceID      id.DeviceID `json:"device_id,omitzero"`
	DeviceName    *string     `json:"initial_device_display_name,omitzero"`
	InhibitLogin  *bool       `json:"inhibit_login,omitzero"`
	RefreshTokens *bool       `json:"refresh_token,omitzero"`
}

// recallRegistration reads what earlier requests of the session said.
func (a *API) recallRegistration(ctx context.Context, auth *authData) (before registration, err error) {
	if auth == nil || auth.Session == "" {
		return before, nil
	}
	s, found, err := a.Accounts.FindUIA(ctx, auth.Session, operationRegister, "")
	if err != nil || !found || len(s.Params) == 0 {
		return before, err
	}
	return before, json.Unmarshal(s.Params, &before)
}

// complete fills in what the request leaves out and returns what is known now. A password counts for the name alone that it was
// checked with.
func (before registration) complete(req *registerRequest) registration {
	now := registration{req.Username, "", req.DeviceID, req.DeviceName, req.InhibitLogin, req.RefreshTokens}
	if now.Username == nil {
		now.Username = before.Username
	}
	if req.Password == nil && same(now.Username, before.Username) {
		now.PasswordHash = before.PasswordHash
	}
	if now.DeviceID == "" {
		now.DeviceID = before.DeviceID
	}
	if now.DeviceName == nil {
		now.DeviceName = before.DeviceName
	}
	if now.InhibitLogin == nil {
		now.InhibitLogin = before.InhibitLogin
	}
	if now.RefreshTokens == nil {
		now.RefreshTokens = before.RefreshTokens
	}
	req.Username, req.DeviceID, req.DeviceName, req.InhibitLogin, req.RefreshTokens = now.Username, now.DeviceID, now.DeviceName, now.InhibitLogin, now.RefreshTokens
	return now
}

// equal tells whether both say the same.
func (before registration) equal(now registration) bool {
	return same(before.Username, now.Username) && before.PasswordHash == now.PasswordHash && before.DeviceID == now.DeviceID &&
		same(before.DeviceName, now.DeviceName) && same(before.InhibitLogin, now.InhibitLogin) && same(before.RefreshTokens, now.RefreshTokens)
}

// keepRegistration remembers what is known for the next request, where challenge, the answer to this one, asks for one.
func (a *API) keepRegistration(ctx context.Context, s account.UIA, req registerRequest, before, now registration, challenge error) error {
	if e := mxerr.As(challenge); e == nil || e.Status != http.StatusUnauthorized || s.ID == "" {
		return challenge
	}
	if req.Password != nil {
		hash, err := a.Accounts.HashPassword(ctx, *req.Password)
		if err != nil {
			return err
		}
		now.PasswordHash = hash
	}
	if len(s.Params) > 0 && before.equal(now) || now.equal(registration{}) {
		return challenge
	}
	params, err := json.Marshal(now)
	if err != nil {
		return err
	}
	if err := a.Accounts.RememberUIA(ctx, s.ID, params); err != nil {
		return err
	}
	return challenge
}

// is gives a member that may be missing.
func is(b *bool) bool { return b != nil && *b }

// same tells whether both are missing or equal.
func same[T comparable](a, b *T) bool { return a == b || a != nil && b != nil && *a == *b }
