package clientapi

import (
	"crypto/hmac"
	"crypto/sha1"
	"encoding/base64"
	"net/http"
	"strconv"
	"time"

	"github.com/moothall/moothall/homeserver/web"
)

// TurnConfig names the TURN servers that help calls through firewalls. Without URIs there are none.
type TurnConfig struct {
	URIs []string
	// SharedSecret makes credentials that expire (the "TURN REST API" that coturn calls use-auth-secret). Without it
	// Username and Password are handed out as they are.
	SharedSecret       string
	Username, Password string
	Lifetime           time.Duration // of credentials; 0: one day
}

func (a *API) voipRoutes() []web.Route {
	return []web.Route{
		{Pattern: "GET /_matrix/client/v3/voip/turnServer", Auth: web.User, Rate: web.RateRead, Handler: a.turnServer},
	}
}

// turnServer handles GET /_matrix/client/v3/voip/turnServer. Without a TURN server the answer is an empty object: clients
// take a list of no URIs for a server that they then fail to use.
func (a *API) turnServer(w http.ResponseWriter, r *http.Request) error {
	t := &a.Turn
	if len(t.URIs) == 0 {
		return empty(w)
	}
	lifetime := t.Lifetime
	if lifetime <= 0 {
		lifetime = 24 * time.Hour
	}
	username, password := t.Username, t.Password
	if t.SharedSecret != "" {
		username = strconv.FormatInt(time.Now().Add(lifetime).Unix(), 10) + ":" + string(web.Requester(r).UserID)
		mac := hmac.New(sha1.New, []byte(t.SharedSecret)) // the algorithm that TURN servers know
		mac.Write([]byte(username))
		password = base64.StdEncoding.EncodeToString(mac.Sum(nil))
	}
	return web.WriteJSON(w, map[string]any{
		"username": username,
		"password": password,
		"uris":     t.URIs,
		"ttl":      int64(lifetime / time.Second),
	})
}
