package homeserver

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/appservices/hooks"
	"github.com/moothall/moothall/homeserver/push"
	"github.com/moothall/moothall/homeserver/store"
)

// newHooks makes the part that systems post to and that events go out by.
func (s *Server) newHooks() (*hooks.Hooks, error) {
	outside, err := s.cfg.outsideClient()
	if err != nil {
		return nil, err
	}
	private, err := s.cfg.hookNetworks()
	if err != nil {
		return nil, fmt.Errorf("hooks.allow_networks: %w", err)
	}
	outside.AllowPrivate = append(outside.AllowPrivate, private...)
	client, err := push.NewClient(outside)
	if err != nil {
		return nil, err
	}
	return hooks.New(hooks.Deps{
		Store: s.store, Rooms: s.rooms, Accounts: s.accounts, Profiles: s.profiles, Audit: s.audit, ServerName: s.cfg.ServerName,
		PublicURL: s.cfg.PublicURL, Config: s.cfg.HooksConfig(), Client: client, Logger: s.log, SaveFile: s.hookFile, Service: s.groups.Service,
	}), nil
}

// hookFile keeps an attachment of a post.
func (s *Server) hookFile(ctx context.Context, user id.UserID, name, contentType string, b []byte) (hooks.File, error) {
	f, err := s.media.SaveFile(ctx, user, name, contentType, b)
	return hooks.File(f), err
}

// CreateHook makes a hook from the command line. Its secret is shown this once.
func CreateHook(ctx context.Context, cfg Config, log *slog.Logger, n hooks.NewHook) (made hooks.Made, err error) {
	err = withStore(ctx, &cfg, log, func(ctx context.Context, s *store.Store) error {
		made, err = hooks.Create(ctx, s, cfg.ServerName, cfg.PublicURL, n, "", time.Now().UnixMilli())
		return err
	})
	return made, err
}

// HookList reads hooks and subscriptions.
func HookList(ctx context.Context, cfg Config, log *slog.Logger) (list []store.Hook, subs []store.HookSubscription, err error) {
	err = withStore(ctx, &cfg, log, func(ctx context.Context, s *store.Store) error {
		return s.Read(ctx, func(tx *store.Tx) error {
			if list, err = tx.Hooks(); err != nil {
				return err
			}
			subs, err = tx.HookSubscriptions(true)
			return err
		})
	})
	return list, subs, err
}

var errNoHook = errors.New("there is none of this name; moothall hook list shows them")

// RevokeHook ends a hook or, if sub is set, a subscription.
func RevokeHook(ctx context.Context, cfg Config, log *slog.Logger, name string, sub bool) error {
	return withStore(ctx, &cfg, log, func(ctx context.Context, s *store.Store) error {
		var found bool
		var err error
		if sub {
			found, err = hooks.Unsubscribe(ctx, s, name)
		} else {
			found, err = hooks.Revoke(ctx, s, name, time.Now().UnixMilli())
		}
		if err == nil && !found {
			err = errNoHook
		}
		return err
	})
}

// TestHook posts to a hook of the running server at a URL with a token that works for a minute, and returns the answer.
func TestHook(ctx context.Context, cfg Config, log *slog.Logger, name, url, body string) (string, error) {
	token := ""
	err := withStore(ctx, &cfg, log, func(ctx context.Context, s *store.Store) (err error) {
		hk, found := store.Hook{}, false
		err = s.ReadOne(ctx, func(tx *store.Tx) (err error) {
			hk, found, err = tx.Hook(name)
			return err
		})
		if err != nil {
			return err
		}
		if !found {
			return errNoHook
		}
		if body == "" {
			body = hooks.Sample(hk.Format)
		}
		if token, err = hooks.TestToken(ctx, s, name, time.Now().UnixMilli()); err == nil && token == "" {
			err = errNoHook
		}
		return err
	})
	if err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, strings.TrimSuffix(url, "/")+"/_moothall/hooks/v1/"+name, strings.NewReader(body))
	if err != nil {
		return "", err
	}
	req.Header.Set("Authorization", "Bearer "+token)
	req.Header.Set("Content-Type", "application/json")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return "", err
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("the server answered %d: %s", resp.StatusCode, b)
	}
	return string(b), err
}

// SubscribeHook makes a subscription from the command line and returns its secret, which is shown this once.
func SubscribeHook(ctx context.Context, cfg Config, log *slog.Logger, n hooks.NewSubscription) (secret string, err error) {
	err = withStore(ctx, &cfg, log, func(ctx context.Context, s *store.Store) error {
		secret, err = hooks.Subscribe(ctx, s, n, "", time.Now().UnixMilli())
		return err
	})
	return secret, err
}

// DeadHookLetters lists what was given up for a subscription.
func DeadHookLetters(ctx context.Context, cfg Config, log *slog.Logger, name string) (list []store.HookDelivery, err error) {
	err = withStore(ctx, &cfg, log, func(ctx context.Context, s *store.Store) error {
		return s.Read(ctx, func(tx *store.Tx) error {
			list, err = tx.DeadHookDeliveries(name, 0, 1000)
			return err
		})
	})
	return list, err
}

// ReplayHook lets what was given up for a subscription be tried again; pos 0 is all. It tells how many.
func ReplayHook(ctx context.Context, cfg Config, log *slog.Logger, name string, pos int64) (n int64, err error) {
	err = withStore(ctx, &cfg, log, func(ctx context.Context, s *store.Store) error {
		n, err = hooks.Replay(ctx, s, name, pos)
		return err
	})
	return n, err
}

// HookFilter reads what a subscription chooses, for people.
func HookFilter(s store.HookSubscription) string {
	var f hooks.Filter
	if err := json.Unmarshal(s.Filter, &f); err != nil {
		return "unreadable"
	}
	var parts []string
	for _, r := range f.Rooms {
		parts = append(parts, string(r))
	}
	parts = append(parts, f.Types...)
	for _, u := range f.Senders {
		parts = append(parts, string(u))
	}
	for _, u := range f.NotSenders {
		parts = append(parts, "not "+string(u))
	}
	if len(parts) == 0 {
		return "everything"
	}
	return strings.Join(parts, ", ")
}
