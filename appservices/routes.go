package appservices

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/web"
)

// Routes is the table of the package's endpoints. The third-party lookups are here because only services answer them.
func (s *Services) Routes() []web.Route {
	const third = "GET /_matrix/client/v3/thirdparty"
	return []web.Route{
		{Pattern: "POST /_matrix/client/v1/appservice/{appserviceId}/ping", Auth: web.AppService, Rate: web.RateRead, Handler: s.ping},
		{Pattern: third + "/protocols", Auth: web.User, Rate: web.RateRead, Handler: s.protocols},
		{Pattern: third + "/protocol/{protocol}", Auth: web.NoGuest, Rate: web.RateRead, Handler: s.protocol},
		{Pattern: third + "/location/{protocol}", Auth: web.NoGuest, Rate: web.RateRead, Handler: s.lookup("location", "protocol", "")},
		{Pattern: third + "/user/{protocol}", Auth: web.NoGuest, Rate: web.RateRead, Handler: s.lookup("user", "protocol", "")},
		{Pattern: third + "/location", Auth: web.NoGuest, Rate: web.RateRead, Handler: s.lookup("location", "", "alias")},
		{Pattern: third + "/user", Auth: web.NoGuest, Rate: web.RateRead, Handler: s.lookup("user", "", "userid")},
	}
}

const (
	queryTime  = 10 * time.Second
	maxAnswer  = 1 << 20
	shownBytes = 1000 // of a wrong answer
)

// request makes a request to a service and returns status and body.
func (s *Services) request(ctx context.Context, x *Service, method, path string, query url.Values, body []byte) (int, []byte, error) {
	target := x.url + path
	if len(query) > 0 {
		target += "?" + query.Encode()
	}
	req, err := http.NewRequestWithContext(ctx, method, target, bytes.NewReader(body))
	if err != nil {
		return 0, nil, err
	}
	req.Header.Set("Authorization", "Bearer "+x.HSToken)
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := s.Client.Do(req)
	if err != nil {
		return 0, nil, concealed(err)
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	return resp.StatusCode, b, err
}

// concealed takes the address out of an error of package net/http: it may hold a secret.
func concealed(err error) error {
	if u, ok := errors.AsType[*url.Error](err); ok {
		return u.Err
	}
	return err
}

// ping handles POST /_matrix/client/v1/appservice/{appserviceId}/ping.
func (s *Services) ping(w http.ResponseWriter, r *http.Request) error {
	req, err := web.ReadOptionalJSON[struct {
		TransactionID string `json:"transaction_id"`
	}](r)
	if err != nil {
		return err
	}
	who := web.Requester(r)
	x := s.current().byID[who.AppService]
	if x == nil || x.ID != web.PathParam(r, "appserviceId") {
		return mxerr.Forbidden("the access token is not that of this application service")
	}
	if x.url == "" {
		return mxerr.New(http.StatusBadRequest, "M_URL_NOT_SET", "the application service has no url in its registration")
	}
	body, err := json.Marshal(struct {
		TransactionID string `json:"transaction_id,omitzero"`
	}{req.TransactionID})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(r.Context(), queryTime)
	defer cancel()
	began := s.Now()
	status, answer, err := s.request(ctx, x, http.MethodPost, "/_matrix/app/v1/ping", nil, body)
	switch {
	case ctx.Err() != nil && r.Context().Err() == nil:
		return mxerr.New(http.StatusGatewayTimeout, "M_CONNECTION_TIMEOUT", "the application service did not answer in time")
	case err != nil:
		return mxerr.New(http.StatusBadGateway, "M_CONNECTION_FAILED", "the application service cannot be reached: "+err.Error())
	case status < 200 || status > 299:
		return mxerr.New(http.StatusBadGateway, "M_BAD_STATUS", fmt.Sprintf("the application service answered with status %d", status)).
			With("status", status).With("body", shown(answer))
	}
	s.Store.Broadcast(topicRetry, x.ID) // whoever delivers need not wait any longer
	return web.WriteJSON(w, map[string]int64{"duration_ms": s.Now().Sub(began).Milliseconds()})
}

func shown(b []byte) string {
	if len(b) > shownBytes {
		b = b[:shownBytes]
	}
	if !utf8.Valid(b) {
		return strings.ToValidUTF8(string(b), "\uFFFD")
	}
	return string(b)
}

// withProtocol lists the services that offer a protocol; "" means any.
func (s *Services) withProtocol(protocol string) (out []*Service) {
	for _, x := range s.current().all {
		for _, p := range x.Protocols {
			if x.url != "" && (protocol == "" || p == protocol) {
				out = append(out, x)
				break
			}
		}
	}
	return out
}

// askAll asks services at the same time and gives the bodies of those that answer 200, in the order of the services.
func (s *Services) askAll(ctx context.Context, services []*Service, path string, query url.Values) [][]byte {
	ctx, cancel := context.WithTimeout(ctx, queryTime)
	defer cancel()
	answers := make([][]byte, len(services))
	var wg sync.WaitGroup
	for i, x := range services {
		wg.Go(func() {
			status, b, err := s.request(ctx, x, http.MethodGet, path, query, nil)
			if err != nil || status != http.StatusOK {
				s.Logger.Info("an application service does not answer a look-up", "appservice", x.ID, "status", status, "error", err)
				return
			}
			answers[i] = b
		})
	}
	wg.Wait()
	return answers
}

// protocolOf asks the services for a protocol; the instances of several services are those of one protocol.
func (s *Services) protocolOf(ctx context.Context, protocol string) (map[string]jsontext.Value, bool) {
	var out map[string]jsontext.Value
	var instances []jsontext.Value
	services := s.withProtocol(protocol)
	for i, b := range s.askAll(ctx, services, "/_matrix/app/v1/thirdparty/protocol/"+url.PathEscape(protocol), nil) {
		var p map[string]jsontext.Value
		if b == nil || json.Unmarshal(b, &p) != nil {
			continue
		}
		var some []map[string]jsontext.Value
		if err := json.Unmarshal(p["instances"], &some); err == nil {
			for _, instance := range some {
				v, err := named(services[i], instance)
				if err != nil {
					continue
				}
				instances = append(instances, v)
			}
		}
		if out == nil {
			out = p
		}
	}
	if out == nil {
		return nil, false
	}
	if instances == nil {
		instances = []jsontext.Value{}
	}
	raw, err := json.Marshal(instances)
	if err != nil {
		return nil, false
	}
	out["instances"] = raw
	return out, true
}

// named gives an instance the id by which the room directory of its network is asked for.
func named(x *Service, instance map[string]jsontext.Value) (jsontext.Value, error) {
	var network string
	if err := json.Unmarshal(instance["network_id"], &network); err == nil && network != "" && instance != nil {
		raw, err := json.Marshal(x.ID + "|" + network)
		if err != nil {
			return nil, err
		}
		instance["instance_id"] = raw
	}
	return json.Marshal(instance)
}

// protocols handles GET /_matrix/client/v3/thirdparty/protocols.
func (s *Services) protocols(w http.ResponseWriter, r *http.Request) error {
	out := map[string]map[string]jsontext.Value{}
	for _, x := range s.withProtocol("") {
		for _, p := range x.Protocols {
			if _, done := out[p]; done {
				continue
			}
			if v, ok := s.protocolOf(r.Context(), p); ok {
				out[p] = v
			}
		}
	}
	return web.WriteJSON(w, out)
}

// protocol handles GET /_matrix/client/v3/thirdparty/protocol/{protocol}.
func (s *Services) protocol(w http.ResponseWriter, r *http.Request) error {
	v, ok := s.protocolOf(r.Context(), web.PathParam(r, "protocol"))
	if !ok {
		return mxerr.NotFound("this server has no bridge that speaks this protocol")
	}
	return web.WriteJSON(w, v)
}

// lookup handles the look-ups of locations and users: param is the name of the path parameter with the protocol, or
// required that of the query parameter that has to be there.
func (s *Services) lookup(kind, param, required string) web.Handler {
	return func(w http.ResponseWriter, r *http.Request) error {
		path := "/_matrix/app/v1/thirdparty/" + kind
		protocol := ""
		query := r.URL.Query()
		query.Del("access_token")
		if param != "" {
			protocol = web.PathParam(r, param)
			path += "/" + url.PathEscape(protocol)
		} else if query.Get(required) == "" {
			return mxerr.MissingParam("query parameter '" + required + "' is required")
		}
		services := s.withProtocol(protocol)
		if protocol != "" && len(services) == 0 {
			return mxerr.NotFound("this server has no bridge that speaks this protocol")
		}
		out := []jsontext.Value{}
		for _, b := range s.askAll(r.Context(), services, path, query) {
			var some []jsontext.Value
			if b != nil && json.Unmarshal(b, &some) == nil {
				out = append(out, some...)
			}
		}
		if len(out) == 0 && protocol == "" {
			return mxerr.NotFound("no bridge knows what was asked for")
		}
		return web.WriteJSON(w, out)
	}
}

// QueryUser asks the services that claim a user id to make the user, and tells whether one did.
// Spec: application service API, "Querying".
func (s *Services) QueryUser(ctx context.Context, user id.UserID) bool {
	return s.query(ctx, "/_matrix/app/v1/users/"+url.PathEscape(string(user)), func(x *Service) bool { return x.users.match(string(user)) })
}

// QueryAlias asks the services that claim a room alias to make the room, and tells whether one did.
// Spec: application service API, "Querying".
func (s *Services) QueryAlias(ctx context.Context, alias string) bool {
	return s.query(ctx, "/_matrix/app/v1/rooms/"+url.PathEscape(alias), func(x *Service) bool { return x.aliases.match(alias) })
}

func (s *Services) query(ctx context.Context, path string, claims func(x *Service) bool) bool {
	for _, x := range s.current().all {
		if x.url == "" || !claims(x) {
			continue
		}
		ctx, cancel := context.WithTimeout(ctx, queryTime)
		status, _, err := s.request(ctx, x, http.MethodGet, path, nil, nil)
		cancel()
		if err == nil && status == http.StatusOK {
			return true
		}
		if err != nil || status != http.StatusNotFound {
			s.Logger.Info("an application service does not answer a query", "appservice", x.ID, "status", status, "error", err)
		}
	}
	return false
}
