package hooks

import (
	"net/http"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/store"
	"github.com/moothall/moothall/homeserver/web"
)

// Info is a hook as it is listed: without its secret.
type Info struct {
	Name        string         `json:"name"`
	URL         string         `json:"url"`
	Format      string         `json:"format"`
	Auth        string         `json:"auth"`
	Target      string         `json:"target"`
	User        id.UserID      `json:"user_id"` // what it writes as
	DisplayName string         `json:"display_name"`
	AvatarURL   string         `json:"avatar_url,omitzero"`
	Options     jsontext.Value `json:"options"`
	Creator     id.UserID      `json:"creator,omitzero"`
	Created     string         `json:"created"`
	Used        string         `json:"used,omitzero"`
}

func when(ms int64) string {
	if ms == 0 {
		return ""
	}
	return time.UnixMilli(ms).UTC().Format(time.RFC3339)
}

// getHooks handles GET /_moothall/admin/v1/hooks.
func (h *Hooks) getHooks(w http.ResponseWriter, r *http.Request) error {
	var list []store.Hook
	err := h.d.Store.Read(r.Context(), func(tx *store.Tx) error {
		var err error
		list, err = tx.Hooks()
		return err
	})
	if err != nil {
		return err
	}
	out := []Info{}
	for _, x := range list {
		if x.Revoked != 0 {
			continue
		}
		out = append(out, Info{
			Name: x.ID, URL: h.d.PublicURL + base + x.ID, Format: x.Format, Auth: x.Auth, Target: x.Target, User: h.d.Accounts.UserID(h.d.Config.BotPrefix + x.ID),
			DisplayName: x.DisplayName, AvatarURL: x.AvatarURL, Options: jsontext.Value(x.Options), Creator: x.Creator, Created: when(x.Created), Used: when(x.Used),
		})
	}
	return web.WriteJSON(w, struct {
		Hooks   []Info   `json:"hooks"`
		Formats []string `json:"formats"`
	}{out, Formats()})
}

// postHook handles POST /_moothall/admin/v1/hooks. The hook is there even where it cannot write yet: "warning" says why.
func (h *Hooks) postHook(w http.ResponseWriter, r *http.Request) error {
	body, err := web.ReadRawObject(r)
	if err != nil {
		return err
	}
	n, err := decode[NewHook](body)
	if err != nil {
		return err
	}
	ctx := r.Context()
	made, err := Create(ctx, h.d.Store, h.d.ServerName, h.d.PublicURL, n, web.Requester(r).UserID, h.now())
	if err != nil {
		return err
	}
	out := struct {
		Made
		User    id.UserID `json:"user_id"`
		Warning string    `json:"warning,omitzero"`
	}{Made: made, User: h.d.Accounts.UserID(h.d.Config.BotPrefix + n.Name)}
	hk, found, err := h.read(ctx, n.Name)
	if err != nil {
		return err
	}
	if found {
		if _, _, err := h.place(ctx, &hk); err != nil {
			e := mxerr.As(err)
			if e == nil {
				return err
			}
			out.Warning = e.Message
		}
	}
	return web.WriteJSONStatus(w, http.StatusCreated, out)
}

// deleteHook handles DELETE /_moothall/admin/v1/hooks/{hook}.
func (h *Hooks) deleteHook(w http.ResponseWriter, r *http.Request) error {
	found, err := Revoke(r.Context(), h.d.Store, web.PathParam(r, "hook"), h.now())
	return empty(w, found, err)
}

func empty(w http.ResponseWriter, found bool, err error) error {
	if err != nil {
		return err
	}
	if !found {
		return mxerr.NotFound("there is nothing of this name")
	}
	return web.WriteJSON(w, struct{}{})
}

// postTest handles POST /_moothall/admin/v1/hooks/{hook}/test: a message of the server's own.
func (h *Hooks) postTest(w http.ResponseWriter, r *http.Request) error {
	hk, found, err := h.read(r.Context(), web.PathParam(r, "hook"))
	if err != nil {
		return err
	}
	if !found || hk.Revoked != 0 {
		return mxerr.NotFound("there is no such hook")
	}
	out, err := h.test(r.Context(), &hk)
	if err != nil {
		return err
	}
	return web.WriteJSON(w, out)
}

// SubscriptionInfo is a subscription as it is listed: without its secret.
type SubscriptionInfo struct {
	Name         string    `json:"name"`
	URL          string    `json:"url"`
	Filter       Filter    `json:"filter"`
	Creator      id.UserID `json:"creator,omitzero"`
	Created      string    `json:"created"`
	Paused       bool      `json:"paused"`
	FailingSince string    `json:"failing_since,omitzero"`
	NextAttempt  string    `json:"next_attempt,omitzero"`
	LastError    string    `json:"last_error,omitzero"`
	Delivered    int64     `json:"delivered"`
	Waiting      int64     `json:"waiting"`
	Dead         int64     `json:"dead"`
}

// getSubscriptions handles GET /_moothall/admin/v1/hooks/subscriptions.
func (h *Hooks) getSubscriptions(w http.ResponseWriter, r *http.Request) error {
	list, err := h.subscriptions(r.Context(), true)
	if err != nil {
		return err
	}
	out := []SubscriptionInfo{}
	for _, s := range list {
		info := SubscriptionInfo{
			Name: s.ID, URL: s.URL, Creator: s.Creator, Created: when(s.Created), Paused: s.Paused, FailingSince: when(s.FailingSince),
			NextAttempt: when(s.NextAt), LastError: s.LastError, Delivered: s.Delivered, Waiting: s.Waiting, Dead: s.Dead,
		}
		if err := json.Unmarshal(s.Filter, &info.Filter); err != nil {
			return err
		}
		out = append(out, info)
	}
	return web.WriteJSON(w, struct {
		Subscriptions []SubscriptionInfo `json:"subscriptions"`
	}{out})
}

// postSubscription handles POST /_moothall/admin/v1/hooks/subscriptions.
func (h *Hooks) postSubscription(w http.ResponseWriter, r *http.Request) error {
	body, err := web.ReadRawObject(r)
	if err != nil {
		return err
	}
	n, err := decode[NewSubscription](body)
	if err != nil {
		return err
	}
	secret, err := Subscribe(r.Context(), h.d.Store, n, web.Requester(r).UserID, h.now())
	if err != nil {
		return err
	}
	return web.WriteJSONStatus(w, http.StatusCreated, struct {
		Name   string `json:"name"`
		Secret string `json:"secret"`
	}{n.Name, secret})
}

// deleteSubscription handles DELETE /_moothall/admin/v1/hooks/subscriptions/{name}.
func (h *Hooks) deleteSubscription(w http.ResponseWriter, r *http.Request) error {
	found, err := Unsubscribe(r.Context(), h.d.Store, web.PathParam(r, "name"))
	return empty(w, found, err)
}

// postPause handles POST /_moothall/admin/v1/hooks/subscriptions/{name}/pause and …/resume.
func (h *Hooks) postPause(on bool) web.Handler {
	return func(w http.ResponseWriter, r *http.Request) error {
		found, err := Pause(r.Context(), h.d.Store, web.PathParam(r, "name"), on)
		if found {
			h.wake()
		}
		return empty(w, found, err)
	}
}

// DeadLetter is an event that was given up for a subscription.
type DeadLetter struct {
	Position int64      `json:"position"`
	EventID  id.EventID `json:"event_id,omitzero"`
	RoomID   id.RoomID  `json:"room_id,omitzero"`
	Attempts int64      `json:"attempts"`
	GivenUp  string     `json:"given_up"`
	Error    string     `json:"error"`
}

const deadPage = 100

// getDead handles GET /_moothall/admin/v1/hooks/subscriptions/{name}/dead-letters?after=POSITION.
func (h *Hooks) getDead(w http.ResponseWriter, r *http.Request) error {
	after, err := web.QueryInt(r, "after", 0, 0, 1<<53)
	if err != nil {
		return err
	}
	var list []store.HookDelivery
	err = h.d.Store.Read(r.Context(), func(tx *store.Tx) error {
		list, err = tx.DeadHookDeliveries(web.PathParam(r, "name"), int64(after), deadPage)
		return err
	})
	if err != nil {
		return err
	}
	out := []DeadLetter{}
	for _, d := range list {
		letter := DeadLetter{Position: d.Pos, Attempts: d.Attempts, GivenUp: when(d.Dead), Error: d.Error}
		events, err := h.d.Rooms.EventsByNID(r.Context(), []int64{d.NID})
		if err != nil {
			return err
		}
		if len(events) > 0 && events[0] != nil {
			letter.EventID, letter.RoomID = events[0].PDU.ID(), events[0].PDU.RoomID()
		}
		out = append(out, letter)
	}
	return web.WriteJSON(w, struct {
		DeadLetters []DeadLetter `json:"dead_letters"`
	}{out})
}

// postReplay handles POST /_moothall/admin/v1/hooks/subscriptions/{name}/replay; "position" names one event.
func (h *Hooks) postReplay(w http.ResponseWriter, r *http.Request) error {
	req, err := web.ReadOptionalJSON[struct {
		Position int64 `json:"position"`
	}](r)
	if err != nil {
		return err
	}
	n, err := Replay(r.Context(), h.d.Store, web.PathParam(r, "name"), req.Position)
	if err != nil {
		return err
	}
	h.wake()
	return web.WriteJSON(w, struct {
		Replayed int64 `json:"replayed"`
	}{n})
}
