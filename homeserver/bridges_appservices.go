package homeserver

import (
	"context"
	"crypto/tls"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/appservices"
	"github.com/moothall/moothall/homeserver/clientapi"
)

// newServices reads the registrations of application services.
func (s *Server) newServices() (*appservices.Services, error) {
	outside, err := s.cfg.outsideClient()
	if err != nil {
		return nil, err
	}
	return appservices.New(appservices.Deps{
		Store: s.store, Accounts: s.accounts, Keys: s.keys, Rooms: s.rooms, Logger: s.log, ServerName: s.cfg.ServerName,
		Paths: s.cfg.AppServices.Registrations,
		// The addresses are the operator's own choice: they are asked directly, wherever they are.
		Client: &http.Client{
			Timeout: time.Minute,
			Transport: &http.Transport{
				TLSClientConfig:     &tls.Config{RootCAs: outside.RootCAs, MinVersion: tls.VersionTLS12},
				MaxIdleConnsPerHost: 8, IdleConnTimeout: 90 * time.Second, ForceAttemptHTTP2: true,
			},
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
	})
}

// exclusiveUser is account.Deps.Exclusive; accounts are there before the services.
func (s *Server) exclusiveUser(user id.UserID) bool {
	return s.services != nil && s.services.ExclusiveUser(user)
}

// clientServices is what the client API needs of the services.
func (s *Server) clientServices() *clientapi.AppServiceDeps {
	return &clientapi.AppServiceDeps{
		Any: s.services.Any, Of: s.services.Of, UserAllowed: s.services.UserAllowed, AliasAllowed: s.services.AliasAllowed,
		QueryUser: s.services.QueryUser, QueryAlias: s.services.QueryAlias,
	}
}

// typing and presence tell the services; package clientsync is made before them.
func (s *Server) typing(room int64, users []id.UserID)    { s.services.Typing(room, users) }
func (s *Server) presence(user id.UserID, content []byte) { s.services.Presence(user, content) }

// runServices delivers to the services; SIGHUP makes it read the registrations at once.
func (s *Server) runServices(ctx context.Context) error {
	hangup := make(chan os.Signal, 1)
	signal.Notify(hangup, syscall.SIGHUP)
	defer signal.Stop(hangup)
	return s.services.Run(ctx, hangup)
}
