package homeserver

import (
	"crypto/ed25519"
	"encoding/base64"
	"math"
	"net/http"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/moothall/moothall/homeserver/event"
	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/web"
)

// serverFactRoutes are what other servers and services ask before they speak with this one.
func (s *Server) serverFactRoutes() []web.Route {
	return []web.Route{
		{Pattern: "GET /.well-known/matrix/server", Handler: s.wellKnownServer},
		{Pattern: "GET /.well-known/matrix/policy_server", Handler: s.wellKnownPolicyServer},
		{Pattern: "GET /_matrix/federation/v1/version", Rate: web.RateRead, Handler: s.federationVersion},
		{Pattern: "GET /_matrix/key/v2/server", Rate: web.RateRead, Handler: s.serverKeys},
		{Pattern: "GET /_matrix/key/v2/query/{serverName}", Rate: web.RateRead, Handler: s.queryServerKeys},
		{Pattern: "POST /_matrix/key/v2/query", Rate: web.RateRead, Handler: s.queryKeys},
	}
}

// wellKnownServer handles GET /.well-known/matrix/server.
// Spec: server-server API, "Server discovery".
func (s *Server) wellKnownServer(w http.ResponseWriter, _ *http.Request) error {
	if s.cfg.WellKnown.Server == "" {
		return mxerr.NotFound("this server is not reached by another name")
	}
	return web.WriteJSON(w, map[string]string{"m.server": s.cfg.WellKnown.Server})
}

// wellKnownPolicyServer handles GET /.well-known/matrix/policy_server. This server is no policy server.
func (s *Server) wellKnownPolicyServer(http.ResponseWriter, *http.Request) error {
	return mxerr.NotFound("this server is no policy server")
}

// federationVersion handles GET /_matrix/federation/v1/version.
func (s *Server) federationVersion(w http.ResponseWriter, _ *http.Request) error {
	return web.WriteJSON(w, map[string]any{"server": map[string]string{"name": "Moothall", "version": Version()}})
}

// keyValidity is how long others may rely on the signing key without asking again. Spec: more than 7 days do not count.
const keyValidity = 7 * day

type verifyKey struct {
	Key string `json:"key"`
}

type serverKeys struct {
	ServerName    string               `json:"server_name"`
	VerifyKeys    map[string]verifyKey `json:"verify_keys"`
	OldVerifyKeys map[string]verifyKey `json:"old_verify_keys"`
	ValidUntil    int64                `json:"valid_until_ts"`
}

// serverKeys handles GET /_matrix/key/v2/server.
// Spec: server-server API, "Publishing Keys".
func (s *Server) serverKeys(w http.ResponseWriter, _ *http.Request) error {
	signed, err := s.ownKeys()
	if err != nil {
		return err
	}
	return web.WriteRaw(w, signed)
}

// ownKeys are the keys of this server, signed by it.
func (s *Server) ownKeys() ([]byte, error) {
	public := s.key.Private.Public().(ed25519.PublicKey)
	unsigned, err := json.Marshal(serverKeys{
		ServerName:    s.cfg.ServerName,
		VerifyKeys:    map[string]verifyKey{s.key.KeyID: {base64.RawStdEncoding.EncodeToString(public)}},
		OldVerifyKeys: map[string]verifyKey{},
		ValidUntil:    time.Now().Add(keyValidity).UnixMilli(),
	})
	if err != nil {
		return nil, err
	}
	return event.SignJSON(unsigned, s.cfg.ServerName, s.key)
}

// queryServerKeys handles GET /_matrix/key/v2/query/{serverName}.
// Spec: server-server API, "Querying Keys Through Another Server".
func (s *Server) queryServerKeys(w http.ResponseWriter, r *http.Request) error {
	if _, err := web.QueryInt(r, "minimum_valid_until_ts", 0, 0, math.MaxInt); err != nil {
		return err
	}
	return s.writeKeysOf(w, web.PathParam(r, "serverName") == s.cfg.ServerName)
}

// queryKeys handles POST /_matrix/key/v2/query, which asks for several servers at once. Whichever keys of this one are wanted, all
// of them are the answer, valid for as long as they can be.
func (s *Server) queryKeys(w http.ResponseWriter, r *http.Request) error {
	type wanted struct {
		ValidUntil int64 `json:"minimum_valid_until_ts"`
	}
	req, err := web.ReadJSON[struct {
		Servers *map[string]map[string]wanted `json:"server_keys"`
	}](r)
	if err != nil {
		return err
	}
	if req.Servers == nil {
		return mxerr.MissingParam("'server_keys' is required: an object")
	}
	_, own := (*req.Servers)[s.cfg.ServerName]
	return s.writeKeysOf(w, own)
}

// writeKeysOf answers for this server alone: it knows the keys of no other and asks nobody for them, so those are left out, as
// the specification has it for servers that are not reached.
func (s *Server) writeKeysOf(w http.ResponseWriter, own bool) error {
	out := struct {
		Servers []jsontext.Value `json:"server_keys"`
	}{Servers: []jsontext.Value{}}
	if own {
		signed, err := s.ownKeys()
		if err != nil {
			return err
		}
		out.Servers = append(out.Servers, signed)
	}
	return web.WriteJSON(w, out)
}
