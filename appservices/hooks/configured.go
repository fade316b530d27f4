package hooks

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/moothall/moothall/compliance/audit"
	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/store"
)

// Check tells what is wrong with a subscription of the configuration, which names its secret.
func (n *NewSubscription) Check() error {
	if n.Secret == "" {
		return mxerr.BadJSON("'secret' is missing: whsec_ and base64 of 24 random bytes or more").With("path", "/secret")
	}
	return n.check()
}

// configure makes the subscriptions those of the configuration: what is new there begins with the next event, what is gone from
// there ends. Those that were made otherwise stay, but for one of the same name, which the configuration takes over.
func (h *Hooks) configure(ctx context.Context) error {
	return h.d.Store.Write(ctx, func(tx *store.Tx) error {
		list, err := tx.HookSubscriptions(false)
		if err != nil {
			return err
		}
		before := map[string]store.HookSubscription{}
		for _, s := range list {
			before[s.ID] = s
		}
		for i := range h.d.Config.Subscriptions {
			n := &h.d.Config.Subscriptions[i]
			filter, err := json.Marshal(n.Filter, json.Deterministic(true))
			if err != nil {
				return err
			}
			old := before[n.Name]
			delete(before, n.Name)
			if old.Config && old.URL == n.URL && string(old.Secret) == n.Secret && bytes.Equal(old.Filter, filter) {
				continue
			}
			s := store.HookSubscription{ID: n.Name, URL: n.URL, Secret: store.Content(n.Secret), Filter: filter, Created: h.now()}
			if err := tx.PutConfiguredSubscription(s); err != nil {
				return err
			}
			if err := audit.Append(ctx, tx, audit.Entry{
				Action: "hook.subscription.created", Target: n.Name, Details: map[string]any{"url": n.URL, "filter": n.Filter, "from": "configuration"},
			}); err != nil {
				return err
			}
		}
		for name, s := range before {
			if !s.Config {
				continue
			}
			if _, err := tx.DeleteHookSubscription(name); err != nil {
				return err
			}
			if err := audit.Append(ctx, tx, audit.Entry{Action: "hook.subscription.deleted", Target: name, Details: map[string]any{"from": "configuration"}}); err != nil {
				return err
			}
		}
		return nil
	})
}

const configureAgain = 5 * time.Second

// keepConfigured does so at the start, as soon as the database takes it.
func (h *Hooks) keepConfigured(ctx context.Context) {
	for {
		err := h.configure(ctx)
		if err == nil || ctx.Err() != nil {
			h.wake()
			return
		}
		h.d.Logger.Warn("subscriptions of the configuration cannot be written, trying again", "error", err)
		select {
		case <-ctx.Done():
			return
		case <-time.After(configureAgain):
		}
	}
}

// errConfigured says where a subscription ends that stands in the configuration.
func errConfigured(name string) error {
	return mxerr.New(http.StatusConflict, "M_UNKNOWN", fmt.Sprintf("the subscription %q stands in the configuration (hooks.subscriptions): take it out there, and start the server anew", name))
}
